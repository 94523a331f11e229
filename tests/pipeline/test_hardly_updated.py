"""A run of which nearly all iterations are skipped is not reported under its method's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pad_fast
from pad_fast.cli.main import main
from pad_fast.distillation.skipping import hardly_updated
from pad_fast.errors import DistillationStopped
from pad_fast.reporting.numbers import own_rows

from ..support.settings import SMALL, flags
from ..support.small import QUIET

# Steps so small that every iteration's loss is the one of a run without a threshold.
STILL = {**SMALL, "iterations": 20, "lr_img": 1e-9, "lr_y": 1e-9, "lr_lr": 1e-15, "eval_epochs": 1}


def losses(out: Path) -> list[float]:
    result = pad_fast.distill(out=out, progress=QUIET, **{**STILL, "threshold": None, "eval_baselines": False})
    assert [row.name for row in result.evaluation] == ["PAD"]
    return sorted(row["loss"] for row in result.history)


@pytest.mark.parametrize(
    ("skipped", "hardly"), [([1] * 9 + [0], True), ([1] * 8 + [0, 0], False), ([0], False), ([1], True), ([], False)]
)
def test_a_tenth_of_the_iterations_is_too_few(skipped: list[int], hardly: bool) -> None:
    found = hardly_updated([{"loss": 1.0, "skipped": each} for each in skipped])
    assert (found is not None) == hardly
    if found is not None:
        assert found.startswith(f"{sum(skipped)} of {len(skipped)} iterations were skipped")
    assert hardly_updated([{"loss": 1.0}] * 9) is None  # methods that skip nothing


@pytest.mark.parametrize("back_off", [False, True])
def test_a_short_run_that_updates_nothing_stops_at_its_end(tmp_path: Path, back_off: bool) -> None:
    settings = {**STILL, "threshold": 1e-9, "iterations": 7, "back_off": back_off}
    with pytest.raises(DistillationStopped, match=r"all of the first 7 iterations were skipped.*start it at"):
        pad_fast.distill(out=tmp_path, progress=QUIET, **settings)
    assert (tmp_path / "checkpoint").exists() and not (tmp_path / "evaluation.json").exists()


def test_terminal_evaluation_page_and_status_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = losses(tmp_path / "first")
    words = flags({name: value for name, value in STILL.items() if name != "threshold"})
    run = ["distill", "--out", str(tmp_path / "run"), *words]
    assert main([*run, "--threshold", str((at[1] + at[2]) / 2)]) == 1
    said = capsys.readouterr()
    assert "18 of 20 iterations were skipped" in said.err and "or use back_off=True (--back-off)" in said.err
    assert "PAD, hardly updated" in said.out and "random real" in said.out
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"]
    assert "PAD, hardly updated" in {row["name"] for row in rows}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "18 of 20 iterations were skipped" in page and "PAD, hardly updated" in page
    loaded = pad_fast.load(tmp_path / "run")
    assert [row.name for row in own_rows(loaded.evaluation, loaded.config)] == ["PAD, hardly updated"]
    assert main([*run, "--threshold", str((at[1] + at[2]) / 2)]) == 1, "the same when it is read again"
    # One more, and it is a run like any other.
    capsys.readouterr()
    assert main([*run[:2], str(tmp_path / "other"), *words, "--threshold", str((at[2] + at[3]) / 2)]) == 0
    assert "hardly" not in capsys.readouterr().out
