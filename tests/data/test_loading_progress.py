"""What is said while data are read, pictures decoded and ZCA fitted; nothing unless somebody listens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from pad_fast import Progress, load_dataset
from pad_fast.data import fit_normalization, fit_zca
from pad_fast.runtime import progress

from ..support.advice.entry import command
from ..support.settings import SMALL, flags
from ..support.small import noise


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """200 training and 40 test images of two classes, gray."""
    for split, count in (("train", 100), ("test", 20)):
        for position, label in enumerate("ab"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(noise(8, 8, seed=1000 * position + number + len(split)))
                image.save(tmp_path / "set" / split / label / f"{number}.png")
    return tmp_path / "set"


def test_load_dataset_is_silent_by_itself(pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_dataset(pictures)
    fit_zca(torch.rand(20, 1, 4, 4))
    assert capfd.readouterr() == ("", "")


def test_a_log_says_what_is_read_and_how_far(
    pictures: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.11 * next(now))
    load_dataset(pictures, progress=Progress())
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("% ")[0] for line in lines] == [f"data: {pictures}: {done:3}" for done in (38, 76, 100)]
    assert "240/240" in lines[-1] and "image/s" in lines[-1]


def test_torch_data_sets_tell_how_far_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    parts = TensorDataset(torch.rand(30, 1, 8, 8), torch.arange(30) % 2)
    load_dataset((parts, parts), progress=Progress())
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("% ")[0] for line in lines] == ["data: the training set: 100", "data: the test set: 100"]


def test_zca_says_what_takes_long(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = load_dataset((torch.rand(9000, 1, 4, 4), torch.arange(9000) % 2))
    fit_normalization(data, "zca", caches=[tmp_path], progress=Progress())
    lines = capfd.readouterr().err.splitlines()
    assert "zca: covariance: 100%" in lines[0] and "2/2" in lines[0]
    assert lines[1:] == ["zca: decomposing the 16 x 16 covariance"]
    fit_normalization(data, "zca", caches=[tmp_path], progress=Progress())
    assert capfd.readouterr().err == ""  # it is kept
    fit_normalization(data, "mean-std", progress=Progress())
    assert capfd.readouterr().err == ""


SCORES = ("model", "score_networks", "score_epochs")
STAGES = {
    "distill": tuple(SMALL),
    "score": SCORES,
    "experts": (*SCORES, "num_experts", "train_epochs", "add_end_epoch", "removal1_epoch", "removal2_epoch"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_commands_begin_with_the_data(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], stage: str
) -> None:
    source = f"imagefolder:{pictures}"
    words = flags({name: SMALL[name] for name in STAGES[stage]})
    if stage == "distill":
        # Noise is not learned in a few iterations; a run of which nearly all are skipped ends as an error.
        words += ["--threshold", "none", "--lr-lr", "0"]
    command(stage, "--dataset", source, "--out", tmp_path / "out", "--zca", *words)
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith(f"data: {pictures}: 100% 240/240")
    assert said[1].startswith("zca: covariance: 100%") and said[2] == "zca: decomposing the 64 x 64 covariance"
    if stage == "distill":
        command("evaluate", tmp_path / "out", "--eval-networks", 1, "--eval-epochs", 1, "--no-eval-baselines")
        assert capfd.readouterr().err.startswith(f"data: {pictures}: 100% 240/240")


def test_quiet_is_quiet(pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command("score", "--dataset", f"imagefolder:{pictures}", "--out", tmp_path / "out", "--model", SMALL["model"],
            "--score-networks", 1, "--score-epochs", 1, "--zca", "--quiet")  # fmt: skip
    assert capfd.readouterr().err == ""
