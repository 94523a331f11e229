"""Who decides a setting: an explicit argument before the file, also where it equals the default."""

from __future__ import annotations

import importlib
import inspect
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import pad_fast
from pad_fast import Config
from pad_fast.errors import ConfigError
from pad_fast.pipeline import sweep
from pad_fast.settings.resolve import UNSET

from ..support.settings import changed_everywhere
from ..support.small import QUIET

# A run records absolute paths: tests/pipeline/test_same_data.py.
OTHERS = {**changed_everywhere(), "order_file": "/orders/table.pt", "buffer_path": "/a b/ä"}
DEFAULTS = {item.name: item.default for item in fields(Config)}
# What a sweep takes several values of, as its arguments give one value each.
SWEPT: dict[str, dict[str, Any]] = {
    "seed": {"seeds": [0]},
    "prune": {"prune": ["none"]},
    "mask": {"mask": ["depth:0.5"]},
    "mask_ratio": {"mask": ["depth:0.5"]},
}


class Resolved(Exception):
    """Raised in place of a run, with what it would have run with."""

    def __init__(self, config: Config, device: str, data_dir: Any) -> None:
        super().__init__()
        self.config, self.device, self.data_dir = config, device, data_dir


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`distill` and `sweep` raise :class:`Resolved` where they would begin."""
    for name in ("distill", "sweep"):
        module = importlib.import_module(f"pad_fast.pipeline.{name}")
        loaded_from: list[Any] = [None]

        class Stopped:
            """A pipeline whose device is the text that was asked for."""

            def __init__(self, config: Config, out: Path, device: str, *_: Any, **__: Any) -> None:
                self.config, self.device = config, device

            def require_usable(self, data: Any, found: list[Any] = loaded_from) -> None:
                raise Resolved(self.config, self.device, found[0])

            def run(self, dataset: Any, data_dir: Any, *, download: bool = False) -> None:
                raise Resolved(self.config, self.device, data_dir)

        monkeypatch.setattr(module, "Pipeline", Stopped)
        monkeypatch.setattr(module, "resolve_device", lambda device: device)
        if name == "sweep":
            monkeypatch.setattr(module, "_own_gpu", lambda device: device)
            monkeypatch.setattr(
                module,
                "load_dataset",
                lambda *_, data_dir, found=loaded_from, **__: found.__setitem__(0, data_dir),
            )


def resolved(function: Any, *arguments: Any, **options: Any) -> Resolved:
    with pytest.raises(Resolved) as stop:
        function(*arguments, out="nowhere", progress=QUIET, **options)
    return stop.value


def written(folder: Path, **values: Any) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def forms(folder: Path, **values: Any) -> list[Any]:
    """The same settings as a file and as a mapping."""
    return [written(folder, **values), str(written(folder, **values)), values]


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_argument_of_distill_beats_the_file_with_the_default_too(tmp_path: Path, name: str) -> None:
    default, other = DEFAULTS[name], OTHERS[name]
    assert default != other
    for config in forms(tmp_path, **{name: other}):
        assert getattr(resolved(pad_fast.distill, config=config).config, name) == other
        assert getattr(resolved(pad_fast.distill, config=config, **{name: default}).config, name) == default
    ready = Config(**{name: other})
    assert getattr(resolved(pad_fast.distill, config=ready).config, name) == other
    assert getattr(resolved(pad_fast.distill, config=ready, **{name: default}).config, name) == default


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_argument_of_sweep_beats_the_file_with_the_default_too(tmp_path: Path, name: str) -> None:
    default, other = DEFAULTS[name], OTHERS[name]
    argument = SWEPT.get(name, {name: default})
    # A ratio says nothing where nothing is masked.
    beside = {"mask": "loss"} if name == "mask_ratio" else {}
    for config in [*forms(tmp_path, **beside, **{name: other}), Config(**beside, **{name: other})]:
        assert getattr(resolved(sweep, config=config).config, name) == other
        assert getattr(resolved(sweep, config=config, **argument).config, name) == default


def test_everything_at_once(tmp_path: Path) -> None:
    for config in [*forms(tmp_path, **OTHERS), Config(**OTHERS)]:
        assert resolved(pad_fast.distill, config=config).config == Config(**OTHERS)
        assert resolved(pad_fast.distill, config=config, **DEFAULTS).config == Config()


def test_the_data_set_given_by_position_is_explicit(tmp_path: Path) -> None:
    for config in forms(tmp_path, dataset="cifar10"):
        for function in (pad_fast.distill, sweep):
            assert resolved(function, config=config).config.dataset == "cifar10"
            assert resolved(function, "digits", config=config).config.dataset == "digits"


@pytest.mark.parametrize("function", [pad_fast.distill, sweep])
def test_device_and_data_folder(tmp_path: Path, function: Any) -> None:
    for config in forms(tmp_path, device="cuda:7", data_dir="/theirs"):
        found = resolved(function, config=config)
        assert (found.device, found.data_dir) == ("cuda:7", "/theirs")
        found = resolved(function, config=config, device="auto", data_dir=None)
        assert (found.device, found.data_dir) == ("auto", None)
        found = resolved(function, config=config, device="cpu", data_dir="/ours")
        assert (found.device, found.data_dir) == ("cpu", "/ours")
    found = resolved(function)
    assert (found.device, found.data_dir) == ("auto", None)
    # Only in a file of the reference is a number a GPU of another machine.
    assert resolved(function, device="0").device == "0"


def test_an_argument_beats_the_preset_with_the_default_too() -> None:
    chosen = resolved(pad_fast.distill, preset="cifar10-ipc10").config
    assert (chosen.dataset, chosen.ipc, chosen.batch_syn, chosen.zca) == ("cifar10", 10, 500, True)
    chosen = resolved(pad_fast.distill, "digits", preset="cifar10-ipc10", ipc=1, batch_syn=None, zca=False).config
    assert (chosen.dataset, chosen.ipc, chosen.batch_syn, chosen.zca) == ("digits", 1, None, False)


def test_what_is_not_given_is_the_default() -> None:
    config = resolved(pad_fast.distill).config
    assert (config.dataset, config.ipc, config.method, config.seed, config.backend) == ("digits", 1, "pad", 0, "auto")
    config = resolved(sweep).config
    assert (config.dataset, config.prune, config.mask, config.mask_ratio, config.seed) == (
        ("digits", "none", "none", 0.0, 0)
    )
    assert not config.eval_baselines


def test_a_mapping_means_what_a_file_with_the_same_words_means(tmp_path: Path) -> None:
    words = {"dataset": "CIFAR10", "ipc": 10, "Iteration": 5000, "depth_ratio": 0.25, "loss_ratio": 0}
    one, other = (resolved(pad_fast.distill, config=config).config for config in (words, written(tmp_path, **words)))
    assert one == other and one.expansion_end_epoch == 3000
    for config in forms(tmp_path, **words):
        found = resolved(pad_fast.distill, config=config, iterations=10_000, mask="loss", mask_ratio=0.5).config
        assert (found.iterations, found.mask, found.mask_ratio) == (10_000, "loss", 0.5)
        found = resolved(sweep, config=config, iterations=10_000).config
        assert (found.iterations, found.mask, found.mask_ratio) == (10_000, "depth", 0.25)


def test_a_sweep_refuses_a_setting_that_is_given_twice() -> None:
    assert resolved(sweep, seed=3).config.seed == 3
    with pytest.raises(ConfigError, match="seed is given beside seeds"):
        sweep(out="nowhere", progress=QUIET, seed=3, seeds=[0])
    with pytest.raises(ConfigError, match="mask_ratio is given beside mask"):
        sweep(out="nowhere", progress=QUIET, mask=["depth:0.5"], depth_ratio=0.25)


@pytest.mark.parametrize("function", [pad_fast.distill, sweep])
def test_a_config_of_another_type_is_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"config is 7; give a YAML file, a mapping or a Config"):
        function(out="nowhere", progress=QUIET, config=7)


def test_the_marker_can_be_read() -> None:
    assert "seed: 'int | Unset' = UNSET" in str(inspect.signature(pad_fast.distill))
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
