"""TensorBoard and Weights & Biases are asked for by name, come from their own packages, and get the run's numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import pad_fast
from pad_fast.errors import ConfigError
from pad_fast.runs.trackers import open_trackers, require_trackers

from ..support.settings import SMALL
from ..support.small import QUIET

WANDB = """
calls = []
class Run:
    id = "abc123"
    def log(self, values, step): calls.append(("log", step, dict(values)))
    def finish(self): calls.append(("finish",))
def init(**options):
    calls.append(("init", options))
    return Run()
def Image(path): return ("image", path)
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package of that name that writes down how it is called."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield lambda: sys.modules["wandb"].calls
    sys.modules.pop("wandb", None)


def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("tensorboard", "wandb") else found(name)
    )
    for name in ("tensorboard", "wandb"):
        with pytest.raises(ConfigError, match=f"pip install {name}"):
            pad_fast.distill(out=tmp_path / "run", log=name, progress=QUIET, **SMALL)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker():
    with pytest.raises(ConfigError, match="Did you mean 'tensorboard'"):
        require_trackers(["tensorbord"])


def test_wandb_gets_every_row_and_the_result(tmp_path, wandb):
    out = tmp_path / "run"
    pad_fast.distill("digits", out=out, log=["wandb"], progress=QUIET, **{**SMALL, "layer_loss_every": 4})
    calls = list(wandb())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [call for call in calls if call[0] == "log"]
    assert [call[1] for call in logged] == [*range(12), 12]
    for row, (_, _, values) in zip(rows, logged, strict=False):
        assert (values["loss"], values["lr"], values["skipped"]) == (row["loss"], row["lr"], row["skipped"])
        assert ("layer_loss/classifier" in values) == (row["iteration"] % 4 == 0)
    result = logged[-1][2]
    stored = json.loads((out / "evaluation.json").read_text())["rows"]
    accuracies = next(row["accuracies"] for row in stored if row["name"] == "PAD")
    assert result["accuracy/PAD/ConvNetD2W8"] == pytest.approx(sum(accuracies) / len(accuracies))
    assert result["images"] == ("image", str(out / "images.png"))
    assert calls[0][0] == "init" and calls[0][1]["config"]["iterations"] == 12 and calls[0][1]["id"] is None
    assert [call[0] for call in calls].count("init") == 1 and calls[-1] == ("finish",)
    pad_fast.distill("digits", out=out, log=["wandb"], progress=QUIET, **{**SMALL, "layer_loss_every": 4})
    again = wandb()[len(calls) :]
    assert [call[0] for call in again] == ["init", "log", "finish"]
    assert again[0][1]["id"] == "abc123", "a repeated result goes where the rows went"


def test_tensorboard_files_hold_the_rows(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(["tensorboard"], tmp_path, {"seed": 1})
    for iteration in range(5):
        tracker.row({"iteration": iteration, "loss": 1 / (iteration + 1), "expert": 3})
    tracker.close()
    # A resumed run drops what was written beyond its checkpoint.
    (tracker,) = open_trackers(["tensorboard"], tmp_path, {"seed": 1}, begun=3)
    tracker.row({"iteration": 3, "loss": 9.0})
    picture = Path(tmp_path / "images.png")
    from PIL import Image

    Image.new("RGB", (4, 4), (255, 0, 0)).save(picture)
    tracker.result([pad_fast.evaluation.AccuracyRow("PAD", "MLP", (1.0, 2.0))], picture, 4)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("loss")] == [
        (0, 1.0), (1, 0.5), (2, 0.3333), (3, 9.0)
    ]  # fmt: skip
    assert events.Scalars("accuracy/PAD/MLP")[0].value == 1.5
    assert "images" in events.Tags()["images"] and "expert" not in events.Tags()["scalars"]
