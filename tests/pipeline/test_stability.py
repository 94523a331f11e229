"""Bad settings of the digits' preset: they stop a run, and with `back_off` it learns what the tuned ones do."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from pad_fast.errors import DistillationStopped
from pad_fast.pipeline import Pipeline
from pad_fast.settings.resolve import make_settings

from ..support.small import QUIET

FEW: dict[str, Any] = {
    "num_experts": 4,
    "iterations": 150,
    "eval_networks": 1,
    "eval_epochs": 1,
    "eval_baselines": False,
}
BAD: dict[str, dict[str, Any]] = {
    "lr_init 10 times": {"lr_init": 0.2},
    "lr_init 100 times": {"lr_init": 2.0},
    "threshold 0.1": {"threshold": 0.1},
    "lr_lr 100 times, no threshold": {"lr_lr": 0.01, "threshold": None},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores and experts, which all runs share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tuned(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the matching loss comes to."""
    return late_loss(tmp_path_factory.mktemp("tuned"), cache)


def late_loss(out: Path, cache: Path, **changes: Any) -> float:
    config = make_settings(overrides={**FEW, **changes}).config
    pipeline = Pipeline(config, out, torch.device("cpu"), QUIET, resume=False, overwrite=True, cache=cache)
    result = pipeline.run("digits", None)
    assert len(result.history) == FEW["iterations"]
    return median(row["loss"] for row in result.history[-30:])


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_bad_settings_come_to_the_loss_of_the_tuned_ones(tmp_path: Path, cache: Path, tuned: float, name: str) -> None:
    assert tuned < 0.5
    with pytest.raises(DistillationStopped, match="Lower lr_lr|all of the first 50 iterations were skipped"):
        late_loss(tmp_path / "run", cache, **BAD[name])
    assert late_loss(tmp_path / "run", cache, back_off=True, **BAD[name]) < 1.25 * tuned


@pytest.mark.slow
def test_a_rate_that_is_searched_comes_to_the_loss_of_the_tuned_one(tmp_path: Path, cache: Path, tuned: float) -> None:
    assert late_loss(tmp_path / "run", cache, lr_img="auto") < 1.1 * tuned
