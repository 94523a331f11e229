"""Files of an earlier version load, resume and report: fixtures/<commit>/ holds its files as they were.

Only public names are used here, and files are read past the library, so that moving code about cannot move the test
with it. A result depends on the processor that computed it, so what is computed anew is compared as an update.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pad_fast
from pad_fast import Config, Difficulty, DistilledDataset, ExpertStore, Progress
from pad_fast.cli import main

from ..support.comparison import relative_error
from ..support.paths import ROOT

WRITTEN = ROOT / "tests" / "fixtures" / "b8a8185"
MADE_WITH = json.loads((WRITTEN / "run" / "timing.json").read_text())["environment"]
ITERATIONS, AT_CHECKPOINT = 8, 4
UPDATE = 1e-4  # of x - x0, relative: 3.4e-6 is the worst seen, on one thread and two, with AVX-512, AVX2 and neither
STORAGES = {"float32": 0.0, "float16": 2.0**-11, "bfloat16-delta": 2.0**-8}
EXPERTS = {
    "model": "ConvNetD2W8",
    "backend": "autograd",
    "score-networks": 1,
    "score-epochs": 1,
    "num-experts": 2,
    "train-epochs": 4,
    "add-end-epoch": 1,
    "removal1-epoch": 2,
    "removal2-epoch": 3,
    "test-every": 2,
}
SCORES = {"model": "ConvNetD2W8", "backend": "autograd", "score-networks": 2, "score-epochs": 2}

Copy = Callable[[str], Path]


@pytest.fixture(autouse=True)
def same_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and caches of another torch are refused by design, which is not the question here."""
    monkeypatch.setattr(torch, "__version__", MADE_WITH["torch"])


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Copies a fixture to where it may be changed, its files as old as files can be: see :func:`rewritten`."""

    def copied(name: str) -> Path:
        place = tmp_path / name
        shutil.copytree(WRITTEN / name, place)
        for path in place.rglob("*"):
            os.utime(path, (0, 0))
        return place

    return copied


def rewritten(folder: Path, *patterns: str) -> list[str]:
    """The files that are new or were written again since they were copied."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    assert found, f"there is no {patterns} in {folder}"
    return [str(path.relative_to(folder)) for path in found if path.stat().st_mtime_ns]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def evaluation_of(run: Path) -> dict[str, list[float]]:
    """Accuracies by the name of their row."""
    return {row["name"]: row["accuracies"] for row in json.loads((run / "evaluation.json").read_text())["rows"]}


def command(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def flags(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        yield from (f"--{name}", str(value))


@dataclass(frozen=True)
class Killed:
    """A run that was killed in iteration 6, its checkpoint two iterations before, and what it would have come to."""

    name: str
    row: str
    learned: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def checkpoint(self) -> dict[str, Tensor]:
        return load_file(WRITTEN / self.name / "checkpoint")

    @property
    def expected(self) -> DistilledDataset:
        return pad_fast.load(WRITTEN / "expected" / f"{self.name.removeprefix('killed-')}.safetensors")


KILLED = (
    Killed(
        "killed-pad",
        "PAD",
        ("images", "label_logits", "lr"),
        ("cache/experts-*/*", "cache/scores-*", "cache/zca-*", "preview.*"),
    ),
    Killed("killed-dm", "DM", ("images",), ("cache/scores-*", "preview.*")),
)


# -- a finished run -------------------------------------------------------------------------------------------------


def test_a_finished_run_loads(copy: Copy) -> None:
    run = copy("run")
    result, raw = pad_fast.load(run), load_file(run / "distilled.safetensors")
    assert list(result.images.shape) == [10, 1, 8, 8]
    assert torch.equal(result.images, raw["images"])
    assert result.label_logits is not None
    assert torch.equal(result.label_logits, raw["label_logits"])
    assert result.labels.tolist() == list(range(10))
    assert result.lr == float(raw["lr"])
    assert result.class_names == tuple("0123456789")
    assert result.whitening is not None
    assert result.whitening.kind == "mean-std"
    assert -0.5 < result.pixels().min() < result.pixels().max() < 1.5
    described = json.loads((run / "run.json").read_text())
    assert described.pop("dataset_fingerprint") != pad_fast.load_dataset("digits").fingerprint, "a part is held out"
    assert result.config == described
    # Validation chose the iterate of the checkpoint in the middle; the last one lies beside it.
    chosen = json.loads((run / "validation.json").read_text())["best"]
    assert list(result.history) == rows_of(run / "metrics.jsonl")[:chosen]
    last = pad_fast.load(run / "last")
    assert list(last.history) == rows_of(run / "metrics.jsonl")
    assert len(last.history) == ITERATIONS
    assert not torch.equal(last.images, result.images)
    for iteration, saved in ((chosen, result), (ITERATIONS, last)):
        (kept,) = run.glob(f"cache/iterates-*/{iteration:08}")
        assert torch.equal(pad_fast.load(kept).images, saved.images)


def test_the_trio_of_a_finished_run_loads(copy: Copy) -> None:
    run = copy("run")
    whole = pad_fast.load(run)
    (run / "distilled.safetensors").unlink()
    trio = pad_fast.load(run)
    assert torch.equal(trio.images, whole.images)
    assert trio.label_logits is not None
    assert whole.label_logits is not None
    assert torch.equal(trio.label_logits, whole.label_logits)
    assert trio.lr == pytest.approx(whole.lr, rel=1e-6)


def test_a_finished_run_is_reused(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy("run")
    kept = ("cache/**/*", "last/*", "*.safetensors", "*.pt", "checkpoint", "metrics.jsonl", "*ation.json")
    result = pad_fast.distill(config=run / "config.yaml", out=run, device="cpu")
    said = capsys.readouterr().err
    for stage in ("scores", "experts", "distill", "evaluate"):
        assert f"{stage}: reusing" in said
    assert rewritten(run, *kept) == []
    assert {row.name: list(row.accuracies) for row in result.evaluation} == evaluation_of(WRITTEN / "run")
    assert torch.equal(result.images, pad_fast.load(WRITTEN / "run").images)
    timing = json.loads((run / "timing.json").read_text())
    assert timing["finished"]
    before = json.loads((WRITTEN / "run" / "timing.json").read_text())["stages"]
    for stage in ("scores", "experts", "distill", "evaluate"):
        assert timing["stages"][stage] == {**before[stage], "reused": True}, "the cost is of the run that computed it"


@pytest.mark.skipif(pad_fast.__version__ != MADE_WITH["pad_fast"], reason="each version evaluates anew, by design")
def test_networks_of_an_evaluation_are_known(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    """The table is put together from the results of single networks."""
    run = copy("run")
    (run / "evaluation.json").unlink()
    result = pad_fast.distill(config=run / "config.yaml", out=run, device="cpu")
    said = capsys.readouterr().err
    assert "distill: reusing" in said
    assert "evaluate: 24 of 24 networks are known already" in said
    assert rewritten(run, "cache/evaluation/*") == []
    assert (run / "evaluation.json").read_bytes() == (WRITTEN / "run" / "evaluation.json").read_bytes()
    assert [len(row.accuracies) for row in result.evaluation] == [2] * 12


def test_a_finished_run_goes_on_for_longer(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy("run")
    more = {"iterations": ITERATIONS + 4, "eval_networks": 1, "eval_robust": False, "eval_baselines": False}
    result = pad_fast.distill(config=run / "config.yaml", out=run, device="cpu", resume=True, **more)
    assert f"distill: resuming after iteration {ITERATIONS}" in capsys.readouterr().err
    rows = rows_of(run / "metrics.jsonl")
    assert rows[:ITERATIONS] == rows_of(WRITTEN / "run" / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS + 4))
    tried = json.loads((run / "validation.json").read_text())["accuracies"]
    assert {"4", "8", "12"} == set(tried)
    assert [row.name for row in result.evaluation] == ["PAD, best", "PAD, last"]


def test_a_finished_run_reports(copy: Copy) -> None:
    run = copy("run")
    (run / "images.png").unlink()
    command("report", run)
    page = (run / "report.html").read_text()
    for name, accuracies in evaluation_of(run).items():
        assert name in page
        assert f"{sum(accuracies) / len(accuracies):.1f}" in page
    assert "ConvNetD2W8" in page
    assert MADE_WITH["cpu"] in page
    assert page.count("<h2") >= (WRITTEN / "run" / "report.html").read_text().count("<h2") > 5, "as many sections"
    assert rewritten(run, "images.png") == ["images.png"]


def test_a_finished_run_is_evaluated(copy: Copy, tmp_path: Path) -> None:
    run, rows = copy("run"), tmp_path / "rows.json"
    scores = WRITTEN / "scores" / "finished" / "difficulty.safetensors"
    few = ("--eval-networks", "1", "--eval-epochs", "60", "--eval-full-epochs", "1", "--cache-dir", tmp_path / "cache")
    place = ("--model", "ConvNetD2W8", "--difficulty", scores, "--device", "cpu", "--backend", "autograd")
    command("evaluate", run, "--out", rows, "--seed", "3", *few, *place)
    accuracies = {row["name"]: row["accuracies"] for row in json.loads(rows.read_text())["rows"]}
    assert list(accuracies) == ["random real", "easiest real", "k-means centres", "PAD", "full data"]
    # The first network of the run's own table, trained again.
    assert accuracies["PAD"] == pytest.approx(evaluation_of(run)["PAD, best"][:1], abs=2)


# -- runs that were killed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", KILLED, ids=[each.name for each in KILLED])
def test_a_killed_run_reports(copy: Copy, killed: Killed) -> None:
    run = copy(killed.name)
    command("report", run)
    page = (run / "report.html").read_text()
    assert f"{rows_of(run / 'metrics.jsonl')[-1]['loss']:.3g}"[:4] in page
    assert rewritten(run, "images.png") == ["images.png"], "the images of the checkpoint"


@pytest.mark.parametrize("killed", KILLED, ids=[each.name for each in KILLED])
def test_a_killed_run_resumes(copy: Copy, capsys: pytest.CaptureFixture[str], killed: Killed) -> None:
    run, start, expected = copy(killed.name), killed.checkpoint, killed.expected
    command("distill", "--config", run / "config.yaml", "--out", run, "--resume", "--device", "cpu")
    said = capsys.readouterr().err
    assert f"distill: resuming after iteration {AT_CHECKPOINT}" in said
    assert "scores: reusing" in said
    assert rewritten(run, *killed.kept) == []
    # What was done stays, the rows behind the checkpoint are done again.
    rows, before = rows_of(run / "metrics.jsonl"), rows_of(WRITTEN / killed.name / "metrics.jsonl")
    assert len(before) == 6
    assert rows[:AT_CHECKPOINT] == before[:AT_CHECKPOINT]
    assert len(rows) == ITERATIONS
    for row, other in zip(rows, expected.history, strict=True):
        assert row == pytest.approx(other, rel=UPDATE)
    result = pad_fast.load(run)
    assert list(result.history) == rows
    for name in killed.learned:
        since = start["average" if name == "images" and "average" in start else name].double()
        update, wanted = (torch.as_tensor(getattr(each, name)).double() - since for each in (result, expected))
        assert float(wanted.norm()) > 0
        assert relative_error(update, wanted) < UPDATE
    # Settings that there were not yet have their defaults.
    assert result.config == {**Config().describe(), **expected.config}
    assert list(evaluation_of(run)) == [killed.row]
    assert json.loads((run / "timing.json").read_text())["stages"]["distill"]["resumed"]


def test_other_settings_are_refused_still(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy("killed-pad")
    arguments = ("--config", run / "config.yaml", "--out", run, "--resume", "--device", "cpu", "--lr-img", "3")
    assert main(["distill", *map(str, arguments)]) == 2
    assert "holds a run with other settings (lr_img: 10.0, now 3.0)" in capsys.readouterr().err
    assert rewritten(run, "*") == []


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("run", "killed-pad", "killed-dm")
    command("compare", *(WRITTEN / name for name in names), "--out", tmp_path / "page.html")
    said, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    best = evaluation_of(WRITTEN / "run")["PAD, best"]
    for name in names:
        assert name in said
        assert name in page
    assert f"{sum(best) / len(best):.1f}" in said
    assert "bfloat16-delta" in page, "a setting in which they differ"
    assert "note:" not in said, "something could not be read"


# -- a sweep --------------------------------------------------------------------------------------------------------


def test_a_finished_sweep_is_reused(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    swept = copy("sweep")
    first = next((swept / "runs").glob("*mask-none*")) / "config.yaml"
    command("sweep", "--config", first, "--mask", "none", "depth:0", "--out", swept, "--device", "cpu")
    said = capsys.readouterr().err
    assert said.count("distill: reusing") == said.count("evaluate: reusing") == 2
    assert rewritten(swept, "cache/**/*.safetensors", "runs/*/*.safetensors", "runs/*/checkpoint") == []
    assert (swept / "sweep.json").read_bytes() == (WRITTEN / "sweep" / "sweep.json").read_bytes()
    # Its cells have one network each, which has no standard deviation any more.
    written = (WRITTEN / "sweep" / "sweep.md").read_text(encoding="utf-8")
    assert (swept / "sweep.md").read_text(encoding="utf-8") == written.replace(" ± 0.0", "") != written
    command("report", swept)
    assert capsys.readouterr().out.strip().endswith(".html")


# -- experts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_experts_are_read(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = WRITTEN / "experts" / storage
    store, exact = ExpertStore.open(folder), load_file(WRITTEN / "experts" / "float32" / "expert_00001.safetensors")
    assert len(store) == 2
    assert store.storage == storage
    assert store.kept == (0, 1, 2, 3, 4)
    parameters = pad_fast.network("ConvNetD2W8", channels=1, classes=10, resolution=8).parameters()
    assert store.shapes == tuple(parameter.shape for parameter in parameters)
    first = exact["snapshots"][0]
    for epoch, snapshot in enumerate(exact["snapshots"]):
        scale = snapshot if storage == "float16" else snapshot - first
        bound = STORAGES[storage] * scale.abs() + (1e-6 if STORAGES[storage] else 0)
        assert bool(((store.snapshot(1, epoch) - snapshot).abs() <= bound).all())
    assert store.facts(1)["accuracy"].keys() == {"2", "4"}
    command("experts", "info", folder)
    said = capsys.readouterr().out
    assert storage in said
    assert "ConvNetD2W8" in said
    assert f"{store.facts(0)['accuracy']['4']:.2f}" in said
    command("experts", "verify", folder)
    assert "2 experts, all as they were written" in capsys.readouterr().out


def test_damaged_experts_are_found_still(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy("experts") / "float16" / "expert_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["experts", "verify", str(path.parent)]) == 2
    assert "expert_00001.safetensors is damaged: the bytes of snapshot 4 have changed" in capsys.readouterr().out


def test_experts_are_converted(tmp_path: Path) -> None:
    """A conversion writes what training wrote then, byte for byte."""
    source = WRITTEN / "experts" / "float32"
    for storage in ("float16", "bfloat16-delta"):
        command("experts", "convert", source, tmp_path / storage, "--expert-storage", storage, "--quiet")
        for path in sorted((WRITTEN / "experts" / storage).iterdir()):
            assert (tmp_path / storage / path.name).read_bytes() == path.read_bytes()
    command("experts", "convert", source, tmp_path / "replay", "--replay", "--quiet")
    replayed, store = ExpertStore.open(tmp_path / "replay"), ExpertStore.open(source)
    assert len(replayed) == 2
    assert all(torch.equal(replayed.snapshot(i, e), store.snapshot(i, e)) for i in (0, 1) for e in range(5))


def test_training_of_experts_goes_on(copy: Copy) -> None:
    folder = copy("experts") / "unfinished"
    assert len(ExpertStore.open(folder)) == 1
    assert (folder / ".expert_00001.safetensors.part").exists()
    digits = ("--lr-expert", 0.02, "--batch-train", 64)  # the preset had these then
    command("experts", "--out", folder, *flags(EXPERTS), *digits, "--device", "cpu")
    assert rewritten(folder, "*") == ["expert_00001.safetensors"]
    assert not list(folder.glob(".*.part"))
    store, whole = ExpertStore.open(folder), ExpertStore.open(WRITTEN / "experts" / "float32")
    start, end = whole.snapshot(1, 0), whole.snapshot(1, -1)
    assert relative_error(store.snapshot(1, 0), start) < 1e-7
    assert relative_error(store.snapshot(1, -1) - start, end - start) < UPDATE
    assert store.facts(1)["loss"] == pytest.approx(whole.facts(1)["loss"], rel=UPDATE)
    assert store.facts(1)["accuracy"] == pytest.approx(whole.facts(1)["accuracy"], abs=1)


def test_experts_serve_a_new_run(tmp_path: Path) -> None:
    """The settings of the run are those of the killed one, its experts those of the store."""
    config, store = WRITTEN / "run" / "config.yaml", WRITTEN / "experts" / "bfloat16-delta"
    changes = {"validation_fraction": 0, "iterations": 2, "eval_networks": 1, "eval_robust": False}
    result = pad_fast.distill(
        config=config,
        out=tmp_path / "run",
        buffer_path=str(store),
        eval_baselines=False,
        device="cpu",
        progress=Progress(quiet=True),
        **changes,
    )
    assert len(result.history) == 2
    assert {row["expert"] for row in result.history} <= {0, 1}
    assert not list((tmp_path / "run" / "cache").glob("experts-*"))


# -- difficulty scores ----------------------------------------------------------------------------------------------


def test_scores_are_read() -> None:
    path = WRITTEN / "scores" / "finished" / "difficulty.safetensors"
    difficulty, raw = Difficulty.load(path), load_file(path)
    data = pad_fast.load_dataset("digits")
    difficulty.require(data)
    assert difficulty.fingerprint == data.fingerprint
    assert difficulty.method == "el2n"
    assert difficulty.settings["networks"] == 2
    assert difficulty.settings["model"] == "ConvNetD2W8"
    assert torch.equal(difficulty.scores, raw["scores"])
    assert difficulty.variance is not None
    assert torch.equal(difficulty.variance, raw["variance"])
    assert difficulty.forgetting is not None
    assert float(difficulty.forgetting.max()) == 2
    for indices in difficulty.order:
        assert bool((difficulty.scores[indices].diff() >= 0).all())
    described = json.loads((path.parent / "difficulty.json").read_text())
    assert described["settings"] == difficulty.settings
    assert [each["easiest"] for each in described["classes"]] == [each[:5].tolist() for each in difficulty.order]


def test_an_order_table_is_read() -> None:
    table, scores = (Difficulty.load(WRITTEN / "scores" / f"even.{kind}") for kind in ("pt", "safetensors"))
    assert table.method == "order"
    assert [each.tolist() for each in table.order] == [each.tolist() for each in scores.order]
    assert torch.equal(torch.load(WRITTEN / "scores" / "even.pt", weights_only=True), torch.stack(scores.order))


@pytest.mark.parametrize(("name", "networks"), [("killed", 1), ("finished", 2)])
def test_scoring_goes_on(copy: Copy, capsys: pytest.CaptureFixture[str], name: str, networks: int) -> None:
    folder = copy("scores") / name
    before = sorted(each.name for each in (folder / "difficulty.networks").iterdir())
    assert len(before) == networks
    command("score", "--out", folder, *flags(SCORES), "--device", "cpu")
    assert f"scores: {networks} of 2 networks are trained already" in capsys.readouterr().err
    assert rewritten(folder, *(f"difficulty.networks/{each}" for each in before)) == []
    assert len(list((folder / "difficulty.networks").iterdir())) == 2
    made = Difficulty.load(folder / "difficulty.safetensors")
    then = Difficulty.load(WRITTEN / "scores" / "finished" / "difficulty.safetensors")
    assert torch.allclose(made.scores, then.scores, rtol=1e-4, atol=1e-6)
    assert made.settings == then.settings
    assert "easiest" in (folder / "difficulty.html").read_text()
