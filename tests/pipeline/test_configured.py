"""Settings that turn into the arguments of a stage."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import pad_fast
from pad_fast.errors import StoreError
from pad_fast.evaluation import EvaluationReport, evaluate
from pad_fast.pipeline import configured
from pad_fast.settings.config import Config

from ..support.experts import trained_on_a_cpu
from ..support.settings import SMALL
from ..support.small import QUIET, small_data


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments `evaluate` was called with."""
    arguments: dict[str, Any] = {}

    def stands_in(*args: Any, **named: Any) -> EvaluationReport:
        arguments.update(inspect.signature(evaluate).bind(*args, **named).arguments)
        return EvaluationReport(())

    monkeypatch.setattr(configured, "evaluate", stands_in)
    return arguments


def evaluated(settings: Config | dict[str, Any], **changes: Any) -> None:
    place: dict[str, Any] = {"models": ("MLP",), "cache": Path("cache"), "device": torch.device("cpu")}
    configured.evaluate_as_configured(settings, {}, small_data(), progress=QUIET, **place, **changes)


def test_every_setting_of_the_evaluation_reaches_it(called: dict[str, Any]) -> None:
    numbers = {
        item.name: number
        for number, item in enumerate(fields(Config), 2)
        if item.metadata["stage"] == "evaluate" and not isinstance(item.default, bool)
    }
    switches = {
        item.name: not item.default
        for item in fields(Config)
        if item.metadata["stage"] == "evaluate" and isinstance(item.default, bool)
    }
    settings = {**numbers, **switches}
    assert set(settings) <= set(configured._EVALUATE)
    evaluated(settings)
    assert {configured._EVALUATE[name]: value for name, value in settings.items()}.items() <= called.items()


def test_a_config_decides_everything_but_what_is_changed(called: dict[str, Any]) -> None:
    evaluated(Config(eval_networks=7, dsa_mode="reference", seed=5, eval_robust=True), repeats=2, robust=False)
    assert (called["repeats"], called["dsa_mode"], called["seed"], called["robust"]) == (2, "reference", 5, False)
    assert (called["models"], called["device"], called["epochs"]) == (("MLP",), "cpu", Config().eval_epochs)


def test_settings_that_are_not_given_are_left_to_the_function(called: dict[str, Any]) -> None:
    evaluated({"eval_networks": 3, "ipc": 10})
    assert called["repeats"] == 3
    assert not {"epochs", "seed", "dsa_mode", "backend", "ipc"} & set(called)


def test_replay_buffers_that_stand_still_are_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "experts").mkdir()
    trained_on_a_cpu(tmp_path / "experts" / "replay_buffer_0.pt", copied=False)
    with pytest.raises(StoreError, match=r"replay_buffer_0\.pt holds the same weights in every snapshot"):
        pad_fast.distill(
            small_data(), out=tmp_path / "run", progress=QUIET, **{**SMALL, "buffer_path": str(tmp_path / "experts")}
        )
    assert not (tmp_path / "run").exists()
