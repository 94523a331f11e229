"""Runs that were killed go on by themselves, and nobody's files are lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pad_fast
from pad_fast import DistilledDataset, Progress
from pad_fast.cli.main import main
from pad_fast.distillation.skipping import PATIENCE
from pad_fast.errors import ConfigError, DatasetError, DistillationStopped, StoreError
from pad_fast.pipeline import pipeline
from pad_fast.pipeline.sweep import sweep
from pad_fast.runs.folder import LOCK, WRITTEN
from pad_fast.runtime import locks

from ..support.settings import SMALL, flags
from ..support.small import MODEL, QUIET, small_data

TINY: dict[str, Any] = {
    **SMALL,
    "model": MODEL,
    "eval_networks": 1,
    "eval_epochs": 1,
    "eval_baselines": False,
    "lr_lr": 1e-8,
}
DATA = small_data()
SAME = ("distilled.safetensors", "metrics.jsonl", "run.json", "config.yaml", "evaluation.json", "checkpoint")


class Killed(Progress):
    """Ends the process, as it were, when iteration 10 is to begin: two after the second checkpoint."""

    def track(self, items: Iterable[Any], label: str, **how: Any) -> Iterator[Any]:
        for number, item in enumerate(super().track(items, label, **how)):
            if label == "distill" and number == 9:
                raise KeyboardInterrupt
            yield item


def distill(out: Path, **changes: Any) -> DistilledDataset:
    data = changes.pop("data", DATA)
    return pad_fast.distill(data, out=out, progress=changes.pop("progress", QUIET), **{**TINY, **changes})


def killed(out: Path, **changes: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(out, progress=Killed(quiet=True), **changes)
    assert not (out / "distilled.safetensors").exists() and (out / "checkpoint").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    distill(folder)
    return folder


def test_the_same_call_goes_on_after_a_kill(tmp_path, whole, capfd):
    killed(tmp_path / "run")
    distill(tmp_path / "run", progress=Progress())
    assert "distill: resuming after iteration 8" in capfd.readouterr().err
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


def test_resume_needs_the_folder_alone(tmp_path, whole, capfd):
    killed(tmp_path / "run", data="digits", iterations=10)
    capfd.readouterr()
    result = pad_fast.resume(tmp_path / "run")
    assert "distill: resuming after iteration 8" in capfd.readouterr().err and len(result.history) == 10
    assert main(["resume", str(tmp_path / "run"), "--iterations", "12"]) == 0
    told = capfd.readouterr()
    assert "resuming after iteration 10" in told.err and str(tmp_path / "run" / "report.html") in told.out
    undisturbed = distill(tmp_path / "whole", data="digits")
    assert torch.equal(pad_fast.load(tmp_path / "run").images, undisturbed.images)
    assert main(["resume", str(tmp_path / "nothing")]) == 2
    assert "there is no folder" in capfd.readouterr().err


def test_resume_of_tensors_needs_them(tmp_path, whole):
    killed(tmp_path / "run")
    with pytest.raises(DatasetError, match="dataset=...") as caught:
        pad_fast.resume(tmp_path / "run", progress=False)
    assert "'tensors' is unknown" in str(caught.value)
    with pytest.raises(DatasetError, match="is not what .* began with"):
        pad_fast.resume(tmp_path / "run", dataset=small_data(seed=1), progress=False)
    pad_fast.resume(tmp_path / "run", dataset=DATA, progress=False)
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_of_a_sweep_goes_on_with_the_sweeps_experts(tmp_path, capfd):
    settings = {key: value for key, value in TINY.items() if key != "eval_baselines"}
    sweep("digits", out=tmp_path / "sweep", prune=["none"], progress=QUIET, **{**settings, "iterations": 4})
    (run,) = (tmp_path / "sweep" / "runs").iterdir()
    capfd.readouterr()
    assert len(pad_fast.resume(run, iterations=6).history) == 6
    assert f"experts: reusing {tmp_path / 'sweep' / 'cache'}" in capfd.readouterr().err
    assert not (run / "cache").exists()


def test_the_device_and_the_folder_of_data_are_kept(tmp_path):
    distill(tmp_path / "run", iterations=2, device="cpu", data_dir="sets")
    written = (tmp_path / "run" / "place.json").read_text()
    assert json.loads(written) == {"data_dir": str(Path("sets").absolute()), "device": "cpu"}
    distill(tmp_path / "auto", iterations=2)
    assert not (tmp_path / "auto" / "place.json").exists()
    assert pad_fast.resume(tmp_path / "run", dataset=DATA, progress=False).folder == tmp_path / "run"
    assert (tmp_path / "run" / "place.json").read_text() == written
    (tmp_path / "run" / "place.json").write_text("[1]")
    with pytest.raises(StoreError, match="is damaged or no place"):
        pad_fast.resume(tmp_path / "run", dataset=DATA)
    distill(tmp_path / "run", iterations=2)
    assert json.loads((tmp_path / "run" / "place.json").read_text()) == {}, "as this call says"


def test_more_iterations_name_the_way(tmp_path, whole):
    with pytest.raises(ConfigError, match=r"iterations: 12, now 14\); go on .* resume=True \(--resume\)"):
        distill(whole, iterations=14)
    with pytest.raises(ConfigError) as caught:
        distill(whole, iterations=14, lr_img=0.5)
    assert "--resume" not in str(caught.value), "it would not help"


def test_beginning_anew_is_said(tmp_path, capfd):
    killed(tmp_path / "run")
    again = distill(tmp_path / "run", overwrite=True, progress=Progress())
    said = capfd.readouterr().err
    assert "starting at iteration 0, and replacing the checkpoint" in said and len(again.history) == 12


def test_a_mistyped_folder_with_resume_is_refused_before_any_work(tmp_path, whole, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "configured_data", lambda *_, **__: pytest.fail("data were read"))
    mistyped = str(whole) + "s"
    assert main(["distill", "--resume", "--out", mistyped, *flags(SMALL)]) == 2
    assert f"{mistyped}: there is no folder" in capsys.readouterr().err and not Path(mistyped).exists()


def test_a_run_with_other_settings_does_not_wait_for_the_first(tmp_path, whole, monkeypatch):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_bytes((whole / "run.json").read_bytes())  # before its first checkpoint
    monkeypatch.setattr(pipeline.Pipeline, "_writing", lambda _: pytest.fail("it would wait"))
    with (
        locks.locked(out / LOCK),
        pytest.raises(ConfigError, match=r"which a process is working on \(lr_img: 100.0, now 0.5\)"),
    ):
        distill(out, lr_img=0.5)


def test_a_run_that_had_not_begun_to_distil_gives_way_to_other_settings(tmp_path, whole):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_bytes((whole / "run.json").read_bytes())
    (out / LOCK).touch()  # of a process that was killed
    assert distill(out, lr_img=0.5, iterations=2).config["lr_img"] == 0.5


@pytest.mark.parametrize("name", WRITTEN)
def test_other_files_of_our_names_are_left_alone(tmp_path, name, monkeypatch):
    monkeypatch.setattr(pipeline, "configured_data", lambda *_, **__: pytest.fail("data were read"))
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / name).write_text("mine\n")
    with pytest.raises(ConfigError, match=f"holds {name}, which a run would overwrite"):
        distill(tmp_path / "my", overwrite=True)
    assert (tmp_path / "my" / name).read_text() == "mine\n"
    assert [path.name for path in (tmp_path / "my").iterdir()] == [name]


def test_every_file_of_a_run_is_among_those_names(tmp_path, whole):
    unnamed = {path.name for path in whole.iterdir()} - {*WRITTEN, "run.json", "run.lock", "cache"}
    assert unnamed == set()


def test_files_of_other_names_are_no_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("mine\n")
    distill(tmp_path, iterations=2)
    assert (tmp_path / "notes.txt").read_text() == "mine\n"


@pytest.mark.parametrize("command", ["distill", "sweep", "score", "experts"])
def test_an_empty_out_is_an_error(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--out", ""])
    assert stop.value.code == 2 and "--out is empty" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="out is empty"):
        pad_fast.distill(DATA, out="")


def test_a_run_that_never_moved_stops_again(tmp_path):
    """Repeating it does not carry it past the check that stopped it."""
    for _ in range(2):
        with pytest.raises(DistillationStopped, match=f"all of the first {PATIENCE} iterations were skipped"):
            distill(tmp_path / "run", threshold=1e-6, iterations=60, checkpoint_every=20)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == PATIENCE and all(row["skipped"] for row in rows)


def test_a_loaded_run_has_its_evaluation_and_folder(tmp_path, whole):
    loaded = pad_fast.load(whole)
    assert [row.name for row in loaded.evaluation] == ["PAD"] and loaded.folder == whole
    assert pad_fast.load(whole / "distilled.safetensors").evaluation == loaded.evaluation
    assert pad_fast.load(whole / "images_best.pt").evaluation == ()
    # What belongs to a run that this one replaces, or cannot be read, is not its evaluation.
    timing = json.loads((whole / "timing.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("distilled.safetensors", "evaluation.json"):
        (copy / name).write_bytes((whole / name).read_bytes())
    assert len(pad_fast.load(copy).evaluation) == 1
    timing["finished"] = False
    del timing["stages"]["evaluate"]
    (copy / "timing.json").write_text(json.dumps(timing))
    assert pad_fast.load(copy).evaluation == ()
    (copy / "timing.json").unlink()
    (copy / "evaluation.json").write_text("{")
    assert pad_fast.load(copy).evaluation == ()


def test_the_terminal_says_where_page_and_images_are(tmp_path, capsys):
    assert main(["distill", "--out", str(tmp_path / "run"), "--quiet", *flags({**SMALL, "iterations": 2})]) == 0
    said = capsys.readouterr()
    for name in ("report.html", "images.png"):
        assert str(tmp_path / "run" / name) in said.out and (tmp_path / "run" / name).is_file()
    assert said.err == ""


def test_a_run_of_another_version_is_refused(tmp_path, whole):
    described = {**json.loads((whole / "run.json").read_text()), "tempo": 3}
    (tmp_path / "run.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="no setting 'tempo'"):
        pad_fast.resume(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreError):
        pad_fast.resume(tmp_path)
