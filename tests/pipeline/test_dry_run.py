"""`pad-fast distill --dry-run`: what a run would be, and nothing of it."""

from __future__ import annotations

import pytest

from pad_fast.cli.main import main
from pad_fast.errors import ConfigError
from pad_fast.pipeline.dry_run import dry_run

from ..support.settings import SMALL, flags


def test_it_prints_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "--dry-run", "--quiet", *flags(SMALL)]) == 0
    said = capsys.readouterr().out
    assert [*tmp_path.iterdir()] == []
    lines = {words[0]: words for words in map(str.split, said.splitlines()) if words}
    assert lines["iterations"] == ["iterations", "12", "given"] and lines["seed"] == ["seed", "0", "default"]
    assert lines["lr_img"] == ["lr_img", "10.0", "of", "the", "data,", "preset", "or", "method"]
    assert "1,437 training and 360 test images, 1 x 8 x 8, 10 classes" in said
    assert "steps of an expert  72 (18 an epoch)" in said and "snapshots reached   0:4" in said
    for stage, work in {
        "scores": "1 networks x 1 epochs",
        "experts": "2 experts x 4 epochs",
        "distill": "12 iterations x 3 student steps",
        "evaluate": "8 networks x 6 epochs, 2 x 1 on all data",
    }.items():
        assert work in said and "about" in lines[stage], stage
    assert "MiB at most so far" in said and "experts on disk" in said
    assert "The run's folder: runs/digits-ipc1-pad" in said


def test_times_grow_with_the_work_and_stages_that_are_there_cost_nothing(tmp_path):
    settings = {**SMALL, "out": tmp_path / "run", "progress": False}
    short = {stage.name: stage.seconds for stage in dry_run(**settings).stages}
    assert list(short) == ["scores", "experts", "distill", "evaluate"] and all(value > 0 for value in short.values())
    long = {stage.name: stage.seconds for stage in dry_run(**{**settings, "iterations": 12_000}).stages}
    assert long["distill"] > 100 * short["distill"]
    assert main(["distill", "--out", str(tmp_path / "run"), "--quiet", *flags(SMALL)]) == 0
    again = {stage.name: stage for stage in dry_run(**settings).stages}
    assert again["scores"].seconds == again["experts"].seconds == 0 and "there already" in again["experts"].work


@pytest.mark.parametrize("method", ["dm", "mtt"])
def test_other_methods(tmp_path, method):
    settings = {**SMALL, "threshold": None, "eval_baselines": False}
    found = dry_run(method=method, out=tmp_path / "run", progress=False, **settings)
    names = [stage.name for stage in found.stages]
    assert names == (["distill", "evaluate"] if method == "dm" else ["experts", "distill", "evaluate"])
    assert ("experts on disk" in found.memory) == (method == "mtt") and not (tmp_path / "run").exists()


def test_what_a_run_would_refuse_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lower the start range"):
        dry_run(**{**SMALL, "max_start_epoch": 40}, out=tmp_path / "run", progress=False)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "config.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="which a run would overwrite"):
        dry_run(**SMALL, out=tmp_path / "my", progress=False)
