"""`pad_fast.distill()` from end to end: outputs, caching, reproducibility, resume, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pad_fast
from pad_fast import Config, DistilledDataset, ExpertStore, Progress
from pad_fast.cli.main import main
from pad_fast.distillation.state import read_checkpoint
from pad_fast.errors import ConfigError, DatasetError, DistillationStopped, InputError, StoreError
from pad_fast.evaluation import EvaluationReport
from pad_fast.pipeline import configured
from pad_fast.reporting.present import present, report_data
from pad_fast.reporting.report import render_report
from pad_fast.runs.folder import read_run

from ..support.settings import SMALL, flags

QUIET = Progress(quiet=True)
CLOCK = {"timing.json", "report.html"}  # the measured times, and the page that shows them


def distill(out: Path, dataset: Any = "digits", **changes: Any) -> DistilledDataset:
    return pad_fast.distill(dataset, out=out, progress=changes.pop("progress", QUIET), **{**SMALL, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CLOCK
    }
    if (folder / "report.html").exists():
        untimed = dataclasses.replace(report_data(read_run(folder)), stages={})
        found["report.html"] = render_report(untimed).encode()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    distill(folder)
    return folder


def test_outputs(finished):
    names = set(contents(finished))
    assert {
        "config.yaml",
        "run.json",
        "checkpoint",
        "metrics.jsonl",
        "distilled.safetensors",
        "images_best.pt",
        "labels_best.pt",
        "lr_best.pt",
        "evaluation.json",
        "images.png",
        "report.html",
    } <= names
    assert not any(name.endswith(".part") for name in names)
    result = pad_fast.load(finished)
    assert list(result.images.shape) == [10, 1, 8, 8] and result.label_logits is not None
    assert list(result.label_logits.shape) == [10, 10] and result.labels.tolist() == list(range(10))
    assert len(result.history) == SMALL["iterations"] and result.lr > 0
    assert result.config["model"] == SMALL["model"]
    assert torch.equal(torch.load(finished / "images_best.pt", weights_only=True), result.images)
    assert torch.equal(torch.load(finished / "labels_best.pt", weights_only=True), result.label_logits)
    assert float(torch.load(finished / "lr_best.pt", weights_only=True)) == pytest.approx(result.lr, rel=1e-6)
    with Image.open(finished / "images.png") as picture:
        assert picture.size[0] >= 320 and picture.size[1] >= 64
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20
    page = (finished / "report.html").read_text()
    rows = json.loads((finished / "evaluation.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["random real", "easiest real", "k-means centres", "PAD", "full data"]
    for row in rows:
        mean = sum(row["accuracies"]) / len(row["accuracies"])
        assert f"{mean:.1f}" in page and row["name"] in page


def test_the_images_were_optimised(finished):
    """Two steps of sanity: updates happened, and the matching loss of the first iterations is finite and positive."""
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["skipped"] for row in rows) < len(rows)
    assert all(row["loss"] > 0 for row in rows)
    assert rows[-1]["lr"] != rows[0]["lr"]


def test_same_seed_same_files_other_seed_other_images(finished, tmp_path):
    distill(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(finished)
    other = distill(tmp_path / "other", seed=1)
    assert not torch.equal(other.images, pad_fast.load(finished).images)


def test_a_finished_run_is_reused_and_says_so(finished, capfd):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    result = distill(finished, progress=Progress())
    said = capfd.readouterr().err
    for stage in ("scores", "experts", "distill", "evaluate"):
        assert f"{stage}: reusing" in said
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before
    assert [row.name for row in result.evaluation] == [
        "random real",
        "easiest real",
        "k-means centres",
        "PAD",
        "full data",
    ]


def test_changed_settings_are_not_silently_reused(tmp_path, capfd):
    out = tmp_path / "run"
    distill(out)
    first = contents(out)
    with pytest.raises(ConfigError, match=r"lr_img: 10\.0, now 11\.0.*overwrite"):
        distill(out, lr_img=11.0)
    assert contents(out) == first, "a refused run must not touch the folder"
    capfd.readouterr()
    distill(out, lr_img=11.0, overwrite=True, progress=Progress())
    said = capfd.readouterr().err
    assert "experts: reusing" in said and "distill: reusing" not in said
    assert contents(out)["images_best.pt"] != first["images_best.pt"]
    # Evaluation settings may change without touching the result.
    distill(out, lr_img=11.0, eval_networks=1, progress=Progress())
    said = capfd.readouterr().err
    assert "distill: reusing" in said and "evaluate: reusing" not in said


def without_setting(out: Path, name: str) -> None:
    """Make a run one of a version that did not have a setting."""
    for path in (out / "run.json", out / "config.yaml"):
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if f"{name}:" not in line.replace('"', "")]
        assert len(kept) == len(lines) - 1
        path.write_text("".join(kept))


def test_a_run_that_is_older_than_a_setting_goes_on(tmp_path, capfd):
    """It has the default of what it does not name: for the folder, the keys of its stages, and its config.yaml."""
    out = tmp_path / "run"
    first = distill(out)
    stages = {path.name for path in (out / "cache").iterdir()}
    without_setting(out, "back_off")
    with pytest.raises(ConfigError, match=r"back_off: False, now True"):
        distill(out, back_off=True)
    capfd.readouterr()
    again = pad_fast.distill(config=out / "config.yaml", out=out, progress=Progress())
    said = capfd.readouterr().err
    assert all(f"{stage}: reusing" in said for stage in ("scores", "experts", "distill", "evaluate"))
    assert torch.equal(again.images, first.images)
    without_setting(out, "back_off")
    longer = distill(out, iterations=SMALL["iterations"] + 4, resume=True)
    assert longer.history[: SMALL["iterations"]] == list(first.history)
    assert {path.name for path in (out / "cache").iterdir()} == stages, "its stages have the names they had"
    assert "back_off: false" in (out / "config.yaml").read_text()


def test_a_run_that_backs_off_is_another_one_with_the_same_experts(tmp_path, finished):
    """Where nothing goes wrong, with the same images."""
    careful = distill(tmp_path / "run", back_off=True)
    assert torch.equal(careful.images, pad_fast.load(finished).images)
    experts = [[path.name for path in (out / "cache").glob("*-*")] for out in (tmp_path / "run", finished)]
    assert sorted(experts[0]) == sorted(experts[1]) and experts[0]
    keys = []
    for out in (tmp_path / "run", finished):
        with read_checkpoint(out / "checkpoint") as (_, described):
            keys.append(described["key"])
    assert keys[0] != keys[1]


def test_back_offs_are_told_by_terminal_rows_and_report(tmp_path, capfd):
    out = tmp_path / "run"
    with pytest.raises(DistillationStopped):
        distill(out, lr_img=1e32, threshold=None)
    capfd.readouterr()
    options = [
        "distill",
        *flags({**SMALL, "lr_img": 1e32, "iterations": 20, "eval_networks": 1}),
        "--threshold",
        "none",
    ]
    assert main([*options, "--back-off", "--no-eval-baselines", "--overwrite", "--out", str(out)]) == 0
    said = capfd.readouterr().err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    count = rows[-1]["back_offs"]
    assert count > 0 and f"distill: back-offs: {count}, lr_img" in said
    assert said.count("the images' step (lr_img) is halved") == 1
    assert f"Back-offs, each with smaller steps: {count}." in (out / "report.html").read_text()


def test_more_experts_extend_the_store(tmp_path):
    distill(tmp_path / "run", num_experts=1)
    distill(tmp_path / "run", num_experts=2, overwrite=True)
    (folder,) = (tmp_path / "run" / "cache").glob("experts-*")
    assert len(ExpertStore.open(folder)) == 2
    fewer = distill(tmp_path / "run", num_experts=1, overwrite=True)
    assert {row["expert"] for row in fewer.history} == {0}


def test_experts_may_keep_what_the_plan_reaches(tmp_path, finished):
    changes = {"min_start_epoch": 1, "keep": "plan"}
    sparse = distill(tmp_path / "sparse", **changes)
    (folder,) = (tmp_path / "sparse" / "cache").glob("experts-*")
    assert ExpertStore.open(folder).kept == (1, 3, 4)
    full = distill(tmp_path / "full", **{**changes, "keep": "all"})
    assert torch.equal(sparse.images, full.images) and sparse.history == full.history
    with pytest.raises(StoreError, match=r"snapshot 0 was not kept: .* keeps 1,3:5"):
        distill(tmp_path / "other", buffer_path=str(folder))
    with pytest.raises(ConfigError, match="keep is '0:3', but these settings reach snapshots 3:5 as well"):
        distill(tmp_path / "other", keep="0:3")
    # Another plan needs other experts: the folder of the first is not taken for theirs.
    distill(tmp_path / "sparse", keep="plan", overwrite=True)
    assert len(list((tmp_path / "sparse" / "cache").glob("experts-*"))) == 2


def test_whitening_is_fitted_once_in_a_run(tmp_path, monkeypatch):
    from pad_fast.cli.main import main
    from pad_fast.data import normalize

    fits = []
    original = normalize.fit_zca
    monkeypatch.setattr(normalize, "fit_zca", lambda *a, **k: fits.append(1) or original(*a, **k))
    distill(tmp_path / "run", zca=True)
    distill(tmp_path / "run", zca=True, lr_img=11.0, overwrite=True)
    chosen = flags({name: SMALL[name] for name in ("model", "num_experts", "train_epochs")})
    arguments = ["--out", str(tmp_path / "run" / "experts"), "--zca", "--no-curriculum", "--quiet"]
    assert main(["experts", *arguments, *chosen]) == 0
    assert len(fits) == 1


@pytest.mark.parametrize("method", ["datm", "ftd", "mtt", "tesla"])
def test_other_methods_are_settings_of_the_same_loop(tmp_path, method):
    result = distill(tmp_path / method, method=method)
    assert result.config["method"] == method and not result.config["curriculum"]
    hard = method in ("ftd", "mtt")
    assert (result.label_logits is None) == hard
    assert result.config["gradient"] == ("tesla" if method == "tesla" else "exact")
    assert result.config["expert_optimizer"] == ("gsam" if method in ("datm", "ftd") else "sgd")
    assert (result.config["ema_decay"] is not None) == (method == "ftd")
    assert [row.name for row in result.evaluation] == [
        "random real",
        "easiest real",
        "k-means centres",
        method.upper(),
        "full data",
    ]
    page = (tmp_path / method / "report.html").read_text()
    assert method.upper() in page
    # The trio alone, as the reference would read it, is the same set.
    trio = tmp_path / "trio"
    trio.mkdir()
    for name in ("images_best.pt", "labels_best.pt", "lr_best.pt"):
        (trio / name).write_bytes((tmp_path / method / name).read_bytes())
    assert torch.equal(pad_fast.load(trio).images, result.images)


def run_in_process(out: Path, *extra: str, **changes: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pad_fast.cli", "distill", "--out", str(out), *flags({**SMALL, **changes}), *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("rows_before_the_kill", [1, 9])
def test_resume_after_kill_ends_with_the_same_files(tmp_path, rows_before_the_kill):
    changes = {"iterations": 60, "eval_networks": 1, "eval_epochs": 2}
    process = run_in_process(tmp_path / "killed", **changes)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= rows_before_the_kill:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "killed" / "distilled.safetensors").exists()
    resumed = run_in_process(tmp_path / "killed", "--resume", **changes)
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    whole = run_in_process(tmp_path / "whole", **changes)
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    left = {k: v for k, v in contents(tmp_path / "killed").items() if not k.endswith(".part")}
    assert left == contents(tmp_path / "whole")


def test_a_finished_run_may_be_continued_for_longer(tmp_path, finished):
    distill(tmp_path / "run", iterations=8)
    with pytest.raises(ConfigError, match="iterations: 8, now 12"):
        distill(tmp_path / "run")
    distill(tmp_path / "run", resume=True)
    # What the shorter run's networks reached is kept as well.
    assert contents(finished).items() <= contents(tmp_path / "run").items()
    with pytest.raises(ConfigError, match="already at iteration 12"):
        distill(tmp_path / "run", iterations=5, resume=True)


def test_presenting_again(finished):
    page = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    assert present(finished) == finished / "report.html"
    assert (finished / "report.html").read_bytes() == page


def test_presenting_what_is_no_run(tmp_path):
    with pytest.raises(StoreError, match=r"no run of pad_fast \(run.json is missing\)"):
        present(tmp_path)


def tensors(classes: int = 3, count: int = 12, channels: int = 1, size: int = 8) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(count // classes)
    images = torch.rand(count, channels, size, size, generator=draws) + labels[:, None, None, None] * 0.2
    return images, labels, images.clone(), labels.clone()


def test_own_tensors_with_soft_and_zca(tmp_path):
    result = distill(tmp_path / "run", tensors(), zca=True, ipc=2, batch_syn=5, pix_init="real", lr_lr=1e-7)
    assert list(result.images.shape) == [6, 1, 8, 8]
    assert result.whitening is not None and result.whitening.kind == "zca"
    assert result.pixels().shape == result.images.shape


def test_buffers_of_the_reference(tmp_path, finished):
    (folder,) = (finished / "cache").glob("experts-*")
    store = ExpertStore.open(folder)
    shapes = [p.shape for p in pad_fast.network(SMALL["model"], channels=1, classes=10, resolution=8).parameters()]
    store.write_replay_buffer(tmp_path / "buffers" / "replay_buffer_0.pt", shapes)
    result = distill(tmp_path / "run", buffer_path=str(tmp_path / "buffers"), curriculum=False, eval_baselines=False)
    assert torch.isfinite(result.images).all()
    assert [row.name for row in result.evaluation] == ["PAD"]
    # Below the folder as published programs put them, beside those of another data set.
    for place in ("Digits/ConvNetD2W8", "CIFAR10_NO_ZCA/ConvNet"):
        (tmp_path / "root" / place).mkdir(parents=True)
        shutil.copy(tmp_path / "buffers" / "replay_buffer_0.pt", tmp_path / "root" / place)
    below = distill(tmp_path / "below", buffer_path=str(tmp_path / "root"), curriculum=False, eval_baselines=False)
    assert torch.equal(below.images, result.images)
    with pytest.raises(StoreError, match="another network"):
        distill(tmp_path / "other", buffer_path=str(tmp_path / "buffers"), model="ConvNetD2W9")
    with pytest.raises(ConfigError, match="the experts in .* end at 4"):
        distill(tmp_path / "long", buffer_path=str(tmp_path / "buffers"), max_start_epoch=5)
    with pytest.raises(StoreError, match="fingerprint"):
        distill(tmp_path / "data", tensors(classes=10, count=40), buffer_path=str(folder))


def test_a_refused_run_does_not_claim_its_folder(tmp_path):
    (tmp_path / "order.pt").write_bytes(b"not an order")
    for change in ({"order_file": str(tmp_path / "order.pt")}, {"buffer_path": str(tmp_path)}):
        with pytest.raises(StoreError):
            distill(tmp_path / "run", **change)
        assert not (tmp_path / "run").exists()
    distill(tmp_path / "run")


def test_nan_during_the_run_leaves_a_checkpoint(tmp_path):
    with pytest.raises(DistillationStopped, match="checkpoint"):
        distill(tmp_path / "run", lr_img=1e32, threshold=None)
    assert (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "distilled.safetensors").exists()


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("unknown data set", {"dataset": "digit"}, DatasetError, "Did you mean 'digits'"),
    ("missing folder", {"dataset": "imagefolder:does/not/exist"}, DatasetError, "does/not/exist"),
    ("ipc zero", {"ipc": 0}, ConfigError, "ipc is 0"),
    ("ipc negative", {"ipc": -3}, ConfigError, "ipc is -3"),
    ("ipc too large", {"ipc": 5000}, DatasetError, "ipc is 5000, and no class has more than"),
    (
        "start range",
        {"max_start_epoch": 4},
        ConfigError,
        "reaches snapshot 5, but experts are trained for train_epochs 4",
    ),
    ("matched epochs", {"expert_epochs": 9}, ConfigError, "reaches snapshot 10"),
    ("empty start range", {"min_start_epoch": 2}, ConfigError, "no start epoch"),
    ("empty stage", {"removal2_ratio": 1.0, "removal2_epoch": 2}, ConfigError, "shows no image of class 0"),
    ("initial ratio", {"initial_ratio": 0.0}, ConfigError, "shows no image"),
    ("mask ratio 1", {"mask_ratio": 1.0}, InputError, r"\[0, 1\)"),
    ("mask ratio negative", {"mask_ratio": -0.5}, InputError, r"\[0, 1\)"),
    ("mask leaves nothing", {"mask": "layers", "mask_ratio": 3}, InputError, "leaves nothing"),
    ("learning rate zero", {"lr_init": 0.0}, ConfigError, "lr_init is 0"),
    ("expert learning rate", {"lr_expert": -1.0}, ConfigError, "lr_expert is -1"),
    ("image learning rate", {"lr_img": 0.0}, ConfigError, "lr_img is 0"),
    ("nan learning rate", {"lr_y": float("nan")}, ConfigError, "lr_y is nan"),
    ("unknown setting", {"lr_imgs": 1.0}, ConfigError, "Did you mean 'lr_img'"),
    ("unknown method", {"method": "pda"}, ConfigError, "Did you mean 'pad'"),
    ("unknown network", {"model": "ConvNett"}, InputError, "Did you mean 'ConvNet"),
    ("unknown backend", {"backend": "autogard"}, pad_fast.PadFastError, "Did you mean 'autograd'"),
    ("unknown device", {"device": "tpu"}, InputError, "tpu"),
    ("dsa operation", {"dsa": "color_cropp"}, ConfigError, "crop"),
    ("prune rule", {"prune": "hardest"}, ConfigError, "hardest:0.2"),
    ("prune everything", {"prune": "hardest:0.999"}, ConfigError, "leaves no image|shows no image"),
    ("wrong type", {"iterations": "many"}, ConfigError, "iterations is 'many'"),
    ("missing config", {"config": "does/not/exist.yaml"}, ConfigError, "cannot read config"),
    ("preset", {"preset": "cifar10-ipc11"}, ConfigError, "Did you mean"),
]


@pytest.mark.parametrize(("name", "changes", "kind", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_refused_before_any_work(tmp_path, name, changes, kind, message):
    out = tmp_path / "run"
    started = time.monotonic()
    with pytest.raises(kind, match=message):
        distill(out, **changes)
    assert not (out / "cache").exists() and not (out / "checkpoint").exists()
    assert time.monotonic() - started < 20


def bad_tensors() -> list[tuple[str, tuple[Any, ...], str]]:
    images, labels, test_images, test_labels = tensors()
    broken = images.clone()
    broken[4, 0, 2, 2] = float("nan")
    return [
        ("nan pixels", (broken, labels, test_images, test_labels), "NaN|finite"),
        ("single class", (images, labels * 0, test_images, test_labels * 0), "class"),
        ("float labels", (images, labels.float() + 0.5, test_images, test_labels), "integer"),
        ("negative label", (images, labels - 1, test_images, test_labels), "-1"),
        ("class without images", (images, labels * 2, test_images, test_labels), "no image of class 1"),
        ("label count", (images, labels[:5], test_images, test_labels), "5"),
        ("other test size", (images, labels, torch.rand(12, 1, 9, 9), test_labels), "9"),
    ]


@pytest.mark.parametrize(("name", "data", "message"), bad_tensors(), ids=[row[0] for row in bad_tensors()])
def test_bad_data_is_refused(tmp_path, name, data, message):
    with pytest.raises(DatasetError, match=message):
        distill(tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_a_file_in_place_of_the_output_folder(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StoreError, match="not writable"):
        distill(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_read_only_output_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(StoreError, match="not writable"):
        distill(tmp_path / "locked" / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tmp_path):
    with pytest.raises(InputError, match="sees 0 GPUs"):
        distill(tmp_path / "run", device="cuda")


def test_a_damaged_run_is_named(tmp_path):
    out = tmp_path / "run"
    distill(out)
    (folder,) = (out / "cache").glob("experts-*")
    expert = folder / "expert_00001.safetensors"
    expert.write_bytes(expert.read_bytes()[:500])
    with pytest.raises(StoreError, match=r"expert_00001.*damaged"):
        distill(out)
    expert.unlink()
    (out / "checkpoint").write_bytes(b"something else")
    with pytest.raises(StoreError, match="damaged or no checkpoint of pad_fast"):
        distill(out, resume=True)


def test_a_held_out_part_chooses_the_iterate(tmp_path):
    """Best and last are both in the table; the choice is the one validation.json shows, and a repeat keeps it."""
    settings = {"validation_fraction": 0.25, "validation_every": 4, "validation_networks": 1, "eval_baselines": False}
    out = tmp_path / "run"
    result = distill(out, **settings)
    assert [row.name for row in result.evaluation] == ["PAD, best", "PAD, last"]
    chosen = json.loads((out / "validation.json").read_text())
    means = {int(name): sum(values) for name, values in chosen["accuracies"].items()}
    assert sorted(means) == [4, 8, 12] and chosen["best"] == max(means, key=lambda each: means[each])
    saved = {int(folder.name): pad_fast.load(folder) for folder in (out / "cache").glob("iterates-*/*")}
    assert sorted(saved) == [4, 8, 12]
    assert torch.equal(result.images, saved[chosen["best"]].images)
    last = pad_fast.load(out / "last")
    assert torch.equal(last.images, saved[12].images) and not torch.equal(saved[4].images, last.images)
    # Nothing else sees the part: whitening and experts are fitted to the rest.
    whole = pad_fast.load_dataset("digits")
    assert len(pad_fast.Difficulty.load(next((out / "cache").glob("scores-*"))).scores) == 1437 - 360
    assert not torch.equal(result.whitening.state()["mean"], torch.tensor(whole.mean))
    again = distill(out, **settings)
    assert torch.equal(again.images, result.images) and again.evaluation == result.evaluation


def test_iterates_are_kept_at_checkpoints():
    with pytest.raises(ConfigError, match="validation_every is 5, .* every 4 iterations; make it a multiple"):
        Config(validation_fraction=0.1, validation_every=5, checkpoint_every=4)


def test_download_is_passed_on(tmp_path, monkeypatch):
    asked = []

    def refuse(dataset, **named):
        asked.append((dataset, named["download"]))
        raise DatasetError("not there")

    monkeypatch.setattr(configured, "load_dataset", refuse)
    for download in (False, True):
        with pytest.raises(DatasetError, match="not there"):
            pad_fast.distill("cifar10", ipc=1, out=tmp_path / "run", download=download)
    assert asked == [("cifar10", False), ("cifar10", True)]


@pytest.mark.parametrize("channels", [2, 4, 13])
@pytest.mark.parametrize("method", ["pad", "dm"])
def test_images_of_any_channels_reach_the_report(tmp_path, channels, method):
    own = {"threshold": None, "curriculum": False} if method == "dm" else {}
    given = {"iterations": 2, "checkpoint_every": 1, "eval_epochs": 1, "eval_baselines": False, **own}
    images, labels = torch.rand(30, channels, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    distill(tmp_path, (images, labels), method=method, **given)
    assert (tmp_path / "images.png").exists()
    assert f"The mean of {channels} channels is drawn, in grey." in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("error", [InputError("no font"), OSError("no room"), RuntimeError("odd")])
def test_a_page_that_cannot_be_drawn_costs_nothing(tmp_path, monkeypatch, capsys, error):
    def fail(folder):
        raise error

    monkeypatch.setattr("pad_fast.pipeline.pipeline.present", fail)
    result = distill(tmp_path, progress=Progress())
    said = capsys.readouterr().err
    assert f"not drawn ({type(error).__name__}: {error})" in said and f"pad-fast report {tmp_path}" in said
    assert len(result.evaluation) == len(EvaluationReport.read(tmp_path / "evaluation.json").rows) > 1
    monkeypatch.undo()
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "images.png").exists() and (tmp_path / "report.html").exists()
