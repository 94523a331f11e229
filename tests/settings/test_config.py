"""Settings: types and ranges, YAML of ours and of the reference."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from pad_fast import Config
from pad_fast.errors import ConfigError
from pad_fast.settings.config import completed
from pad_fast.settings.families import is_published
from pad_fast.settings.yaml_files import REFERENCE_KEYS, known_keys, read_yaml, to_yaml, translate

from ..support.settings import changed_everywhere

REFERENCE_STYLE = """\
# the keys of published files, every one of them
dataset: CIFAR10
model: ConvNet
ipc: 10
name: ten a class
project: distillation
device: "0"
data_path: /data/sets
buffer_path: /data/buffers
zca: True
dsa: True
dsa_strategy: color_crop_cutout_flip_scale_rotate
res: 32
Iteration: 5000
syn_steps: 60
expert_epochs: 3
batch_syn: 250
batch_train: 128
lr_img: 2e2
lr_teacher: 1e-2
lr_lr: 1e-5
lr_y: 3.
Momentum_y: .9
threshold: 1.2
pix_init: samples_predicted_correctly
Sequential_Generation: True
min_start_epoch: 0
current_max_start_epoch: 12
max_start_epoch: 30
expansion_end_epoch: 800
num_eval: 3
eval_it: 500
skip_first_eva: True
depth_ratio: 0.4
loss_ratio: 0.0
ema_decay: 0.999
"""


def written(tmp_path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_of_the_reference_is_understood(tmp_path):
    assert read_yaml(written(tmp_path, REFERENCE_STYLE)) == {
        "dataset": "CIFAR10",
        "model": "ConvNet",
        "ipc": 10,
        "device": "auto",
        "data_dir": "/data/sets",
        "buffer_path": "/data/buffers",
        "zca": True,
        "dsa": "color_crop_cutout_flip_scale_rotate",
        "iterations": 5000,
        "syn_steps": 60,
        "expert_epochs": 3,
        "batch_syn": 250,
        "batch_train": 128,
        "lr_img": 200.0,
        "lr_init": 0.01,
        "lr_lr": 1e-5,
        "lr_y": 3.0,
        "momentum_y": 0.9,
        "threshold": 1.2,
        "pix_init": "samples_predicted_correctly",
        "sequential_generation": True,
        "min_start_epoch": 0,
        "current_max_start_epoch": 12,
        "max_start_epoch": 30,
        "expansion_end_epoch": 800,
        "eval_networks": 3,
        "mask": "depth",
        "mask_ratio": 0.4,
        "ema_decay": 0.999,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1E-05", 1e-5), ("-1e+2", -100.0), ("1.e-3", 1e-3), (".5e2", 50.0), ("2.5e-3", 2.5e-3)],
)
def test_exponents_are_numbers(tmp_path, text, value):
    found = read_yaml(written(tmp_path, f"lr_lr: {text}\nmodel: e5\nbuffer_path: 1e-5x\n"))
    assert found == {"lr_lr": value, "model": "e5", "buffer_path": "1e-5x"}
    assert isinstance(found["lr_lr"], float)


def test_a_whole_number_written_as_a_float_is_an_int():
    config = Config(iterations=1e4, lr_img=100)
    assert config.iterations == 10_000 and isinstance(config.iterations, int)
    assert isinstance(config.lr_img, float)


def test_paths_are_taken_as_text():
    assert Config(buffer_path=Path("a") / "b").buffer_path == str(Path("a") / "b")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"depth_ratio": 0.5}, {"mask": "depth", "mask_ratio": 0.5}),
        ({"loss_ratio": 0.3, "depth_ratio": 0}, {"mask": "loss", "mask_ratio": 0.3}),
        ({"depth_ratio": 0.3, "loss_ratio": 0}, {"mask": "depth", "mask_ratio": 0.3}),
        ({"depth_ratio": 0, "loss_ratio": 0.0}, {"mask_ratio": 0.0}),
        ({"depth_ratio": 0.5, "loss_ratio": 0.5}, {"mask": "loss", "mask_ratio": 0.5}),
        ({"device": [0, 1]}, {"device": "auto"}),
        ({"dsa": False, "dsa_strategy": "flip"}, {"dsa": "none"}),
        ({"dsa_strategy": "flip", "dsa": "False"}, {"dsa": "none"}),
        ({"dsa_strategy": "flip", "dsa": True}, {"dsa": "flip"}),
        ({"dsa": "True"}, {}),
        ({"dsa": "color_crop"}, {"dsa": "color_crop"}),
        ({"batch_syn": "None", "threshold": None}, {"batch_syn": None, "threshold": None}),
        ({"device": 0}, {"device": "auto"}),
        ({"device": "0,1, 2"}, {"device": "auto"}),
        ({"device": "cuda:1"}, {"device": "cuda:1"}),
        ({"res": 128, "dataset": "imagenette"}, {"resolution": 128, "dataset": "imagenette"}),
        ({"res": 128, "dataset": "CIFAR-100"}, {"dataset": "CIFAR-100"}),
        ({"resolution": 16, "dataset": "cifar10"}, {"resolution": 16, "dataset": "cifar10"}),
        ({"Iteration": 5, "iterations": 5}, {"iterations": 5}),
        ({"eval_it": 5, "skip_first_eva": False, "project": "x", "name": None}, {}),
    ],
)
def test_translation(values, expected):
    given = dict(values)
    assert translate(values, source="test") == expected
    assert values == given


@pytest.mark.parametrize(
    "values",
    [
        {"Iteration": 5, "iterations": 6},
        {"depth_ratio": 0.5, "mask": "loss"},
        {"mask_ratio": 0.2, "depth_ratio": 0.5},
        {"lr_teacher": 0.1, "lr_init": 0.2},
        {"dsa": "flip", "dsa_strategy": "crop"},
    ],
)
def test_contradictions_are_refused(values):
    one, other = values
    with pytest.raises(ConfigError, match=rf"here: '{one}' and '{other}' both set"):
        translate(values, source="here")


@pytest.mark.parametrize(
    ("key", "meant"),
    [("lr_image", "lr_img"), ("Iterations", "Iteration"), ("syn_step", "syn_steps"), ("Momentum_Y", "Momentum_y")],
)
def test_unknown_keys_name_the_nearest(tmp_path, key, meant):
    with pytest.raises(ConfigError, match=rf"settings\.yaml: unknown setting '{key}'\. Did you mean '{meant}'\?"):
        read_yaml(written(tmp_path, f"ipc: 1\n{key}: 1\n"))
    with pytest.raises(ConfigError, match="unknown setting 'zzzzzz'.$"):
        translate({"zzzzzz": 1}, source="override")


def test_what_makes_a_file_the_references():
    assert all(is_published({"ipc": 1, key: 0}) for key in (*REFERENCE_KEYS, "depth_ratio", "loss_ratio"))
    assert not is_published(Config().describe())
    assert not is_published({"ipc": 1, "dataset": "CIFAR10", "syn_steps": 20, "zca": True, "device": "cpu"})
    assert {*REFERENCE_KEYS, *(f.name for f in fields(Config))} <= set(known_keys())


def test_files_that_are_no_settings(tmp_path):
    assert read_yaml(written(tmp_path, "# nothing\n")) == {}
    for text, named in (
        ("- a\n- b\n", "must be a mapping"),
        ("1: 2\n", "must be a mapping"),
        ("words", "must be a mapping"),
        ("a: [1,\n", "not valid YAML"),
        ("ipc: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ):
        with pytest.raises(ConfigError, match=named):
            read_yaml(written(tmp_path, text))
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="cannot read config .*none.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_round_trip(tmp_path):
    config = Config(**changed_everywhere())
    assert [f.name for f in fields(Config) if getattr(config, f.name) == f.default] == []
    for each in (Config(), config):
        back = Config(**read_yaml(written(tmp_path, to_yaml(each))))
        assert back == each
        assert [type(v) for v in back.describe().values()] == [type(v) for v in each.describe().values()]


def test_describe_by_stage():
    config = Config(**changed_everywhere())
    stages = ("data", "scores", "experts", "distill", "run", "evaluate")
    pieces = [config.describe(stage) for stage in stages]
    assert sum(len(piece) for piece in pieces) == len(fields(Config))
    assert {k: v for piece in pieces for k, v in piece.items()} == config.describe()
    assert config.describe("experts", "scores")["lr_expert"] == config.lr_expert
    assert "seed" in config.describe("data") and "lr_img" not in config.describe("experts")


def test_results_are_found_by_a_later_setting_only_where_it_is_not_its_default():
    later = {item.name for item in fields(Config) if item.metadata["later"]}
    before = {name: value for name, value in Config().describe("distill").items() if name not in later}
    assert {"back_off", "ipc_per_class"} <= later and Config().digested("distill") == before
    assert Config(back_off=True).digested("distill") == {**before, "back_off": True}
    assert Config().digested("data", "scores") == Config().describe("data", "scores")


def test_a_setting_that_a_run_does_not_name_has_its_default():
    described = {name: value for name, value in Config(ipc=7).describe().items() if name != "back_off"}
    assert completed({**described, "dataset_fingerprint": "x"}) == {
        **Config(ipc=7).describe(),
        "dataset_fingerprint": "x",
    }


def test_words_that_stand_for_a_value(tmp_path):
    assert Config(lr_img="auto").lr_img == "auto"
    assert read_yaml(written(tmp_path, "lr_img: auto\n")) == {"lr_img": "auto"}
    for wrong, named in (("atuo", "lr_img is 'atuo'; it must be float or auto"), (True, "it must be float or auto")):
        with pytest.raises(ConfigError, match=named):
            Config(lr_img=wrong)
    with pytest.raises(ConfigError, match="lr_y is 'auto'; it must be float$"):
        Config(lr_y="auto")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ipc": "ten"}, "ipc is 'ten'; it must be int"),
        ({"ipc": True}, "ipc is True; it must be int"),
        ({"ipc": 1.5}, "ipc is 1.5"),
        ({"zca": 1}, "zca is 1; it must be bool"),
        ({"lr_img": "1e-5"}, "lr_img is '1e-5'; it must be float"),
        ({"lr_img": True}, "lr_img is True; it must be float"),
        ({"lr_img": None}, "lr_img is None; it must be float"),
        ({"batch_syn": "all"}, "it must be int or none"),
        ({"model": 3}, "model is 3; pass a network"),
        ({"ipc": 0}, "ipc is 0; it must be positive"),
        ({"lr_img": float("nan")}, "lr_img is nan"),
        ({"lr_img": float("inf")}, "lr_img is inf"),
        ({"iterations": float("inf")}, "iterations is inf"),
        ({"threshold": 0.0}, "threshold is 0.0; it must be positive"),
        ({"batch_syn": -1}, "batch_syn is -1"),
        ({"lr_y": -0.1}, "lr_y is -0.1; it must not be negative"),
        ({"momentum_img": 1.0}, r"momentum_img is 1.0; it must lie in \[0, 1\)"),
        ({"ema_decay": -0.5}, "ema_decay is -0.5"),
        ({"method": "dtam"}, "method is 'dtam'.*Did you mean 'datm'"),
        ({"mask": "deep"}, "mask is 'deep'"),
        ({"pix_init": "rael"}, "Did you mean 'real'"),
        ({"gradient": "exakt"}, "Did you mean 'exact'"),
        ({"min_start_epoch": 20}, "min_start_epoch 20 is not below max_start_epoch 20"),
        ({"min_start_epoch": 5, "current_max_start_epoch": 5}, "no start epoch to draw"),
    ],
)
def test_values_that_cannot_be_used(changed, named):
    with pytest.raises(ConfigError, match=named):
        Config(**changed)


def test_values_at_the_limit_are_accepted():
    Config(min_start_epoch=5, current_max_start_epoch=5, sequential_generation=False)
    Config(threshold=None, ema_decay=None, batch_syn=None, lr_y=0.0, momentum_y=0.0)


def test_start_range_must_lie_within_the_experts():
    config = Config(max_start_epoch=99, expert_epochs=2)  # starts at 98 at the latest
    assert config.last_snapshot == 100
    config.require_snapshots(100, "experts end at")
    with pytest.raises(ConfigError, match="reaches snapshot 100, but experts end at 99; lower the start range"):
        config.require_snapshots(99, "experts end at")


def test_configs_are_values():
    with pytest.raises(AttributeError):
        Config().ipc = 3
    assert replace(Config(), ipc=3) == Config(ipc=3) != Config()
