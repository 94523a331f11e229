"""Files and command lines of published programs: every key means what it means there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pad_fast import Config
from pad_fast.errors import ConfigError
from pad_fast.settings.families import FAMILIES, find_family
from pad_fast.settings.presets import preset
from pad_fast.settings.resolve import Settings, make_settings

# The cells of SPEC section 10, as the two programs' files write them: T, M, first and last start epoch, sequential
# generation (first upper end, iteration of the last), batch, lr_img, lr_lr, lr_y, threshold, mask ratio, whitening.
Cell = tuple[Any, ...]
PAD: dict[str, Cell] = {
    "CIFAR10-1": (80, 2, 0, 4, None, 1000, 100, "0.0000001", "5.", 1.1, 0.0),
    "CIFAR10-10": (80, 2, 0, 20, (10, 1000), 500, 100, "0.00001", "2.0", 1.0, 0.5),
    "CIFAR10-50": (80, 3, 0, 40, (20, 2000), 1000, 1000, "0.00001", "2.", 1.0, 0.25),
    "CIFAR10-500": (40, 2, 40, 70, (60, 2000), 1000, 50, "0.00001", "10.", 1.0, 0.5),
    "CIFAR10-1000": (100, 2, 40, 60, None, 1000, 50, "0.00001", "10.", 1.0, 0.5),
    "CIFAR100-1": (40, 3, 0, 30, (20, 1000), 1000, 1000, "0.00001", "10.0", 1.0, 0.5),
    "CIFAR100-10": (80, 2, 0, 50, (30, 2000), 1000, 1000, "0.00001", "10.0", 1.0, 0.5),
    "CIFAR100-50": (80, 2, 20, 70, None, 1000, 1000, "0.00001", "10.0", 1.0, 0.0),
    "CIFAR100-100": (80, 2, 30, 70, None, 1000, 50, "0.00001", "10.0", 1.0, 0.5),
    "Tiny-1": (40, 2, 0, 20, (15, 2000), 1000, 10000, "0.0001", "10.0", 1.0, 0.5),
    "Tiny-10": (40, 2, 10, 50, None, 500, 100, "0.0001", "10.0", 1.0, 0.5),
    "Tiny-50": (20, 2, 40, 70, None, 1000, 100, "0.0001", "10.0", 1.0, 0.5),
}
DATM: dict[str, Cell] = {
    **{name: (*cell[:10], None) for name, cell in PAD.items()},
    "CIFAR10-1": (80, 2, 0, 4, None, 10, 100, "0.0000001", "5.", 1.1, None),
    "CIFAR10-10": (80, 2, 0, 20, (10, 1000), 100, 100, "0.00001", "2.0", 1.0, None),
    "CIFAR10-50": (80, 2, 0, 40, (20, 2000), 500, 1000, "0.00001", "2.", 1.0, None),
    "CIFAR10-500": (40, 2, 40, 60, None, 1000, 50, "0.00001", "10.", 1.0, None),
    "CIFAR100-1": (40, 3, 0, 20, (10, 1000), 1000, 1000, "0.00001", "10.0", 1.0, None),
}
FILES = [(family, name) for family, cells in (("pad", PAD), ("datm", DATM)) for name in cells]


def text_of(family: str, name: str) -> str:
    """A file with the keys and values of the program's, in another order and wording."""
    cells = PAD if family == "pad" else DATM
    steps, matched, low, high, growing, batch, lr_img, lr_lr, lr_y, threshold, ratio = cells[name]
    dataset, ipc = name.split("-")
    lines = [f"dataset: {dataset}", f"ipc: {ipc}", f"project: {name}", "device: [0,1,2]", f"batch_syn: {batch}"]
    lines += ["res: 64", "model: ConvNetD4"] if dataset == "Tiny" else []
    lines += [f"syn_steps: {steps}", f"expert_epochs: {matched}", f"min_start_epoch: {low}", f"max_start_epoch: {high}"]
    if growing:
        lines += [f"current_max_start_epoch: {growing[0]}", f"expansion_end_epoch: {growing[1]}"]
        lines += ["Sequential_Generation: True"] if name == "CIFAR10-500" else []
    else:
        lines += ["Sequential_Generation: False"]
    lines += [f"lr_img: {lr_img}", f"lr_lr: {lr_lr}", f"lr_y: {lr_y}", "Momentum_y: 0.9", "lr_teacher: 0.01"]
    lines += [f"threshold: {threshold}", "Iteration: 10000", "ema_decay: 0.9995", "batch_train: 128", "num_eval: 1"]
    lines += [f"pix_init: {'real' if name == 'CIFAR100-50' else 'samples_predicted_correctly'}", "eval_it: 500"]
    lines += ["skip_first_eva: True", "buffer_path: ../buffer_storage/", "data_path: ../dataset"]
    # Some files say it twice, of which YAML takes the last.
    lines += ["zca: False", "zca: True"] if family == "pad" and name == "CIFAR10-10" else ["zca: True"]
    lines += [f"depth_ratio: {ratio}", f"loss_ratio: {ratio}"] if ratio is not None else []
    return "\n".join(lines) + "\n"


def settings_of(tmp_path: Path, family: str, name: str) -> Settings:
    path = tmp_path / "IPC.yaml"
    path.write_text(text_of(family, name), encoding="utf-8")
    return make_settings(config=path)


@pytest.mark.parametrize(("family", "name"), FILES)
def test_published_files_mean_what_their_programs_do(tmp_path, family, name):
    settings = settings_of(tmp_path, family, name)
    config = settings.config
    written = yaml.safe_load(text_of(family, name))
    assert (config.method, settings.device, settings.data_dir) == (family, "auto", "../dataset")
    for ours, theirs in {
        **{
            key: key for key in ("syn_steps", "expert_epochs", "min_start_epoch", "max_start_epoch", "batch_syn", "ipc")
        },
        **{key: key for key in ("lr_img", "lr_lr", "lr_y", "threshold", "pix_init", "buffer_path", "zca")},
        **{"lr_init": "lr_teacher", "iterations": "Iteration", "momentum_y": "Momentum_y"},
        **{"eval_networks": "num_eval", "eval_batch": "batch_train"},
    }.items():
        value = written[theirs]
        assert getattr(config, ours) == (float(value) if ours.startswith("lr") else value), ours
    # Carried along, and read by neither program.
    assert config.ema_decay is None
    assert config.batch_train == Config.batch_train
    assert config.sequential_generation == written.get("Sequential_Generation", True)
    if config.sequential_generation:
        assert config.current_max_start_epoch == written["current_max_start_epoch"]
        assert config.expansion_end_epoch == written["expansion_end_epoch"]
    ratio = written.get("loss_ratio", 0.0)
    assert config.mask_ratio == ratio
    if ratio:
        assert config.mask == "loss", "what the released program reads"
        assert sum("--mask depth" in note for note in settings.notes) == 1
    elif family == "datm":
        assert config.mask == "none" and not config.curriculum
    assert settings.notes[0].endswith(f"{FAMILIES[family].title}'s program (family: NAME says otherwise)")
    assert "ema_decay" in settings.notes[-1]


def test_there_are_24_files():
    assert len(FILES) == 24 == len({text_of(*each) for each in FILES})


@pytest.mark.parametrize("name", ["CIFAR10-10", "CIFAR100-1", "Tiny-1"])
def test_a_file_and_the_preset_of_its_cell_differ_in_what_the_program_reads(tmp_path, name):
    dataset, ipc = name.lower().split("-")
    config, cell = settings_of(tmp_path, "pad", name).config, preset(f"{dataset}-ipc{ipc}")
    differs = {key for key, value in cell.items() if getattr(config, key) != value}
    assert differs - {"dataset", "model"} == {"mask"}


def test_a_family_can_be_named(tmp_path):
    path = tmp_path / "IPC.yaml"
    path.write_text(text_of("datm", "CIFAR10-10") + "family: FTD\n", encoding="utf-8")
    config = make_settings(config=path).config
    assert (config.method, config.ema_decay, config.soft_labels) == ("ftd", 0.9995, False)
    with pytest.raises(ConfigError, match="unknown family 'dtm'; use one of mtt, ftd, tesla, datm, pad.*'datm'"):
        find_family({"family": "dtm"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"Iteration": 5, "texture": True}, "texture is True, but .*canvases.*; leave it out"),
        ({"Iteration": 5, "max_experts": 3}, "max_experts is 3, .*; leave it out"),
        ({"Iteration": 5, "random_trajectory": True}, "random_trajectory is True, .*; leave it out"),
        ({"family": "pad", "sort_method": "CIFAR10_Uncertainty"}, "use one that ends in grand, el2n, forgetting"),
        ({"family": "ftd", "rho_max": 0.02, "rho_min": 0.01}, "'rho_max' and 'rho_min' both set gsam_rho"),
        ({"family": "mtt", "mom": 0.5}, "mom is 0.5, but experts are trained without momentum; leave it out"),
    ],
)
def test_what_there_is_not_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        make_settings(config=words, program="experts")


def test_teacher_labels_are_an_experts_and_stay():
    config = make_settings(config={"family": "tesla", "teacher_label": True, "no_aug": True}).config
    assert (config.soft_labels, config.lr_y, config.gradient, config.dsa) == (True, 0.0, "tesla", "none")
    assert not make_settings(config={"family": "tesla"}).config.soft_labels


def test_the_images_of_teslas_program_move_by_half():
    settings = make_settings(config={"family": "tesla", "Iteration": 3, "lr_img": "200"})
    assert settings.config.lr_img == 100
    assert any("lr_img 200 becomes 100" in note for note in settings.notes)
    assert make_settings(config={"family": "tesla"}).config.lr_img == 500
    assert make_settings(config={"family": "mtt", "lr_img": 200}).config.lr_img == 200
    assert make_settings(config={"method": "tesla", "lr_img": 200}).config.lr_img == 200


# What the programs' pages say to type, with only the program's name changed, and some of what is meant by it.
SGD = {"expert_optimizer": "sgd", "curriculum": False, "lr_expert": 0.01, "batch_train": 256}
GSAM = {"expert_optimizer": "gsam", "curriculum": False, "gsam_rho": 0.01}
PLACES = "--buffer_path=../buffer_storage/ --data_path=../dataset/"
COMMANDS: list[tuple[str, dict[str, Any]]] = [
    (
        f"experts --dataset=CIFAR100 --model=ConvNet --train_epochs=50 --num_experts=100 --zca {PLACES}",
        {**SGD, "method": "mtt", "train_epochs": 50, "zca": True, "dataset": "CIFAR100"},
    ),
    (
        "distill --dataset=CIFAR100 --ipc=1 --syn_steps=20 --expert_epochs=3 --max_start_epoch=20 --zca --lr_img=1000 "
        f"--lr_lr=1e-05 --lr_teacher=0.01 {PLACES}",
        {"method": "mtt", "iterations": 5000, "batch_syn": None, "soft_labels": False, "zca": True, "mask": "none"}
        | {"max_start_epoch": 20, "threshold": None, "sequential_generation": False, "eval_batch": 256},
    ),
    (
        "distill --dataset=ImageNet --subset=imagefruit --model=ConvNetD5 --ipc=1 --res=128 --syn_steps=20 "
        f"--expert_epochs=2 --max_start_epoch=10 --lr_img=1000 --lr_lr=1e-06 --lr_teacher=0.01 {PLACES}",
        {"dataset": "imagefruit", "resolution": 128, "model": "ConvNetD5", "lr_lr": 1e-6, "zca": False},
    ),
    (
        "experts --dataset=ImageNet --subset=imagesquawk --model=ConvNetD5 --res=256 --train_epochs=50 "
        f"--num_experts=100 {PLACES}",
        {**SGD, "dataset": "imagesquawk", "resolution": 256},
    ),
    (
        f"experts --dataset=CIFAR100 --model=ConvNet --train_epochs=50 --num_experts=100 --zca {PLACES} --rho 0.01",
        {**GSAM, "method": "ftd", "gsam_alpha": 0.4},
    ),
    (
        f"experts --dataset=CIFAR10 --model=ConvNet --train_epochs=50 --num_experts=100 --zca {PLACES} "
        "--rho_max=0.01 --rho_min=0.01",
        {**GSAM, "method": "ftd"},
    ),
    (
        "distill --dataset=CIFAR10 --ipc=10 --syn_steps=30 --expert_epochs=2 --max_start_epoch=20 --zca --lr_img=100 "
        f"--lr_lr=1e-05 --lr_teacher=0.001 {PLACES} --ema_decay=0.9995 --Iteration=5000",
        {"method": "ftd", "ema_decay": 0.9995, "lr_init": 0.001, "pix_init": "real", "syn_steps": 30},
    ),
    (
        "distill --dataset=CIFAR100 --ipc=10 --syn_steps=20 --expert_epochs=2 --max_start_epoch=40 --zca "
        f"--lr_img=1000 --lr_lr=1e-05 --lr_teacher=0.01 --ema_decay=0.9995 --Iteration=5000 {PLACES}",
        {"method": "ftd", "max_start_epoch": 40},
    ),
    (
        f"experts --dataset=CIFAR10 --model=ConvNet --train_epochs=100 --num_experts=100 --zca {PLACES} --rho_max=0.01 "
        "--rho_min=0.01 --alpha=0.3 --lr_teacher=0.01 --mom=0. --batch_train=256",
        {**GSAM, "method": "datm", "gsam_alpha": 0.3, "batch_train": 256},
    ),
    (
        f"experts --dataset=CIFAR10 --model=ConvNet --train_epochs=100 --num_experts=100 --zca {PLACES} "
        '--sort_method="CIFAR10_GraNd" --rho_max=0.01 --rho_min=0.01 --alpha=0.3 --lr_teacher=0.01 --mom=0. '
        "--batch_train=256 --init_ratio=0.75 --add_end_epoch=20 --rm_epoch_first=40 --rm_epoch_second=60 "
        "--rm_easy_ratio_first=0.1 --rm_easy_ratio_second=0.2",
        {"method": "pad", "curriculum": True, "score_method": "grand", "initial_ratio": 0.75, "removal1_epoch": 40}
        | {"removal2_epoch": 60, "removal1_ratio": 0.1, "removal2_ratio": 0.2, "add_end_epoch": 20},
    ),
    ("experts --dataset=CIFAR10 --model=ConvNet --train_epochs=50 --num_experts=100 --zca", SGD),
    ("experts --dataset=ImageNet --model=ConvNetD4 --train_epochs=50 --num_experts=50", {**SGD, "num_experts": 50}),
    (
        "distill --dataset=CIFAR10 --ipc=1 --syn_steps=50 --expert_epochs=2 --max_start_epoch=5 --lr_img=1000 "
        "--lr_lr=1e-07 --lr_teacher=0.01 --family tesla",
        {"method": "tesla", "iterations": 10_000, "soft_labels": False, "zca": False, "gradient": "tesla"}
        | {"lr_img": 500.0},  # tests/matching/test_programs.py shows why
    ),
    (
        "distill --dataset=ImageNet --ipc=1 --syn_steps=10 --expert_epochs=3 --max_start_epoch=10 --lr_img=10000 "
        "--lr_lr=1e-04 --lr_teacher=0.01 --batch_syn=100 --model=ConvNetD4 --teacher_label",
        {"method": "tesla", "soft_labels": True, "lr_y": 0.0, "batch_syn": 100},
    ),
]


@pytest.mark.parametrize(("line", "expected"), COMMANDS, ids=[line.split(" --")[0] for line, _ in COMMANDS])
def test_published_command_lines(line, expected):
    from pad_fast.cli.options import given, place
    from pad_fast.cli.parser import PROGRAMS, parse
    from pad_fast.cli.published import settings_of as config_of

    options = parse(shlex.split(line))
    program = PROGRAMS[line.split()[0]]
    settings = make_settings(config=config_of(options), overrides=given(options), program=program, **place(options))
    assert {name: getattr(settings.config, name) for name in expected} == expected
    if PLACES in line:
        assert settings.data_dir == "../dataset/"
        assert (options.out if program == "experts" else settings.config.buffer_path) == "../buffer_storage/"
    elif program == "experts":
        assert options.out == "buffers"


@pytest.mark.parametrize("program", ["PAD", "DATM"])
def test_a_file_on_the_command_line(tmp_path, program):
    from pad_fast.cli.options import run_arguments
    from pad_fast.cli.parser import parse

    path = tmp_path / "IPC.yaml"
    path.write_text(text_of(program.lower(), "CIFAR10-10"), encoding="utf-8")
    arguments = run_arguments(parse(["distill", "--cfg", str(path), "--quiet"]))
    assert make_settings(config=arguments["config"]).config == make_settings(config=path).config


def test_a_word_spelled_their_way_among_ours_is_ours():
    from pad_fast.cli.options import given
    from pad_fast.cli.parser import parse

    options = parse(["distill", "--lr-y", "3", "--lr_img", "7", "--batch_train=64", "--soft_labels"])
    assert options.published == {}
    assert given(options) == {"lr_y": 3.0, "lr_img": 7.0, "batch_train": 64, "soft_labels": True}


def test_the_three_files_of_a_set(tmp_path, capsys):
    from pad_fast.cli.parser import parse

    files = {key: f"{tmp_path}/{name}_best.pt" for key, name in (("lr", "lr"), ("data", "images"), ("label", "labels"))}
    line = " ".join(["evaluate", *(f"--{key}_dir={file}" for key, file in files.items())])
    options = parse([*line.split(), "--zca"])
    assert (options.distilled, options.whitening, options.dataset) == ([f"{tmp_path}/images_best.pt"], "zca", "cifar10")
    assert parse(line.split()).whitening == parse([*line.split(), "--mean-std"]).whitening == "mean-std"
    named = parse([*line.split(), "--normalize=zca.pt"])
    assert (named.whitening, named.normalize) == (None, "zca.pt")
    with pytest.raises(SystemExit):
        parse(line.replace("labels_best", "labels_7").split())
    assert "put images_X.pt, labels_X.pt and lr_X.pt into one folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["experts", "score"])
@pytest.mark.parametrize("family", ["pad", "datm"])
def test_a_file_means_the_same_to_every_stage(tmp_path, monkeypatch, family, command):
    """It is one of the programs that distil: its batch is not the experts', whichever command reads it."""
    from pad_fast.cli import single_stage
    from pad_fast.cli.parser import parse
    from pad_fast.settings import resolve

    path = tmp_path / "IPC.yaml"
    path.write_text(text_of(family, "CIFAR10-10"), encoding="utf-8")
    found = []

    def kept(**given: Any) -> Settings:
        found.append(make_settings(**given))
        raise KeyboardInterrupt

    monkeypatch.setattr(resolve, "make_settings", kept)
    with pytest.raises(KeyboardInterrupt):
        single_stage.stage_inputs(parse([command, "--config", str(path), "--out", str(tmp_path / "out")]))
    assert found[0].config == make_settings(config=path).config
