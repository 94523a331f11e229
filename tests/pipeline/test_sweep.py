"""Sweeps: the grid, shared stages, repetition, processes, and what is written."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from pad_fast import Progress
from pad_fast.cli.main import main
from pad_fast.errors import ConfigError, InputError
from pad_fast.evaluation import EvaluationReport
from pad_fast.pipeline.pipeline import Pipeline
from pad_fast.pipeline.sweep import Cell, parse_axis, sweep
from pad_fast.reporting.sweep_page import SweepResult
from pad_fast.runtime import locks

from ..support.html import Page
from ..support.settings import SMALL, flags
from ..support.small import QUIET

TINY: dict[str, Any] = {
    "method": "dm",
    "model": "ConvNetD2W8",
    "iterations": 3,
    "batch_real": 20,
    "score_networks": 1,
    "score_epochs": 1,
    "eval_networks": 2,
    "eval_epochs": 3,
}
GRID: dict[str, Any] = {"prune": ["none", "hardest:0.2,0.5"], "mask": ["none", "depth:0"], "seeds": [0, 3]}


def run(out: Path, **changes: Any) -> SweepResult | None:
    return sweep(out=out, **{"progress": QUIET, **GRID, **TINY, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    assert run(folder) is not None
    return folder


def test_every_cell_is_a_run_and_the_table_is_their_accuracies(finished: Path) -> None:
    runs = sorted(path.name for path in (finished / "runs").iterdir())
    assert len(runs) == 3 * 2 * 2 and "prune-hardest-0.5_mask-depth-0_seed-3" in runs
    written = json.loads((finished / "sweep.json").read_text())
    assert len(written["cells"]) == 6 and written["seeds"] == [0, 3] and written["settings"]["method"] == "dm"
    cell = next(c for c in written["cells"] if c["prune"] == ["hardest", 0.2] and c["mask"] == ["depth", 0.0])
    expected: list[float] = []
    for seed in (0, 3):
        folder = finished / "runs" / f"prune-hardest-0.2_mask-depth-0_seed-{seed}"
        expected += next(r for r in json.loads((folder / "evaluation.json").read_text())["rows"] if r["name"] == "DM")[
            "accuracies"
        ]
    assert cell["accuracies"] == expected and len(expected) == 4
    table = (finished / "sweep.md").read_text()
    assert "| pruned \\ masked | none | depth 0 |" in table
    assert f"{fmean(expected):.1f} ± {stdev(expected):.1f}" in table


def test_download_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(dataset: str, *, download: bool, **_: Any) -> None:
        asked.append((dataset, download))
        raise InputError("nothing is fetched here")

    monkeypatch.setattr(importlib.import_module("pad_fast.pipeline.sweep"), "load_dataset", refuse)
    for options in ([], ["--download"]):
        assert main(["sweep", "--out", str(tmp_path), "--dataset", "cifar10", "--device", "cpu", *options]) == 2
    assert asked == [("cifar10", False), ("cifar10", True)]


def test_with_validation_the_chosen_iterate_counts(tmp_path: Path) -> None:
    chosen = {"prune": ["none"], "mask": ["none"], "seeds": [0], "validation_fraction": 0.2, "validation_every": 1}
    result = run(tmp_path, **chosen, checkpoint_every=1, validation_networks=1)
    assert result is not None
    report = EvaluationReport.read(tmp_path / "runs" / "prune-none_mask-none_seed-0" / "evaluation.json")
    assert [row.name for row in report.rows] == ["DM, best", "DM, last"]
    assert list(result.accuracies.values()) == [report.row("DM, best").accuracies]


def test_the_page_draws_both_filters_with_error_bars(finished: Path) -> None:
    page = (finished / "sweep.html").read_text()
    assert "What pruning does (FIEx)" in page and "fraction of every class left out" in page
    assert 'class="spread"' in page and "hardest, masked: none" in page and "hardest, masked: depth 0" in page
    # One point makes no curve over the masks.
    assert "What masking layers does" not in page


def test_the_page_is_a_heat_map_with_links_to_the_runs(finished: Path) -> None:
    source = (finished / "sweep.html").read_text()
    page = Page(source)
    heats = [
        float((cell["style"] or "").removeprefix("--heat:").rstrip("%")) for cell in page.all("td") if "style" in cell
    ]
    stored = json.loads((finished / "sweep.json").read_text())["cells"]
    means = [sum(cell["accuracies"]) / len(cell["accuracies"]) for cell in stored]
    low, high = min(means), max(means)
    assert heats == pytest.approx([100 * (mean - low) / (high - low) for mean in means], abs=0.5)
    links = [link["href"] or "" for link in page.all("a")]
    assert len(links) == len(list((finished / "runs").iterdir())) and all((finished / link).is_file() for link in links)
    assert "Baselines (random, easiest, k-means, the full set): not evaluated." in page.text


def test_baselines_come_with_the_same_command(finished: Path, tmp_path: Path) -> None:
    """What the page advises: it trains them once for each seed, and repeats nothing else."""
    folder = Path(shutil.copytree(finished, tmp_path / "sweep"))
    before = {path: path.read_bytes() for path in folder.glob("runs/*/distilled.safetensors")}
    result = run(folder, eval_baselines=True)
    assert result is not None
    assert {path: path.read_bytes() for path in before} == before
    page = Page((folder / "sweep.html").read_text())
    assert {row.name for row in result.baselines} == {"random real", "easiest real", "k-means centres", "full data"}
    named = [row[0] for row in page.rows if len(row) == 5]
    assert {"random real", "full data"} <= set(named) and any("(best cell)" in name for name in named)
    assert "Baselines" not in page.text and len(page.all("a")) == len(before)


def test_one_network_has_no_standard_deviation() -> None:
    none = ("none", 0.0)
    result = SweepResult(
        "pad", "imagefolder:/home/somebody/birds", 1, {(none, none): (51.25,), (none, ("depth", 0.5)): (50.0,)}
    )
    assert "±" not in result.table() and "51.2" in result.table()
    source = result.page()
    assert "±" not in Page(source).text and "PAD on birds, 1 per class" in source and "/home" not in source


def test_no_mask_is_a_curves_beginning_but_not_for_dm() -> None:
    none, masks = ("none", 0.0), [("none", 0.0), ("depth", 0.25), ("depth", 0.5)]
    accuracies = {(none, mask): (50.0 + mask[1], 52.0) for mask in masks}
    for method, start in (("dc", 0.0), ("dm", 0.25)):
        (line,) = SweepResult(method, "digits", 1, accuracies)._lines(("depth", "loss"), True)
        assert list(line.x) == [x for x in (0.0, 0.25, 0.5) if x >= start]
        assert line.y[-1] == 51.25 and line.label == "depth, pruned: none"


def test_scores_are_made_once_per_seed_and_not_for_what_prunes_nothing(finished: Path) -> None:
    assert len(list((finished / "cache").glob("scores-*.safetensors"))) == 2
    assert not list(finished.glob("runs/*/cache"))
    described = json.loads((finished / "runs" / "prune-none_mask-none_seed-0" / "run.json").read_text())
    assert described["prune"] == "none" and described["mask"] == "none"


def test_repeating_runs_nothing_again_and_writes_the_same(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: (finished / name).read_bytes() for name in ("sweep.json", "sweep.md", "sweep.html")}
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    assert run(finished, progress=Progress()) is not None
    assert capfd.readouterr().err.count("distill: reusing") == 12
    assert {name: (finished / name).read_bytes() for name in before} == before
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == times


def test_a_killed_sweep_is_completed(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0

    def dies(self: Pipeline, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == 4:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    whole = Pipeline.run
    monkeypatch.setattr(Pipeline, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not (tmp_path / "sweep.json").exists()
    monkeypatch.setattr(Pipeline, "run", whole)
    run(tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == (finished / "sweep.json").read_bytes()


def test_processes_divide_the_runs_and_the_last_one_writes(finished: Path, tmp_path: Path) -> None:
    assert run(tmp_path, part=(0, 2)) is None
    assert len(list((tmp_path / "runs").iterdir())) == 6 and not (tmp_path / "sweep.json").exists()
    assert run(tmp_path, part=(1, 2)) is not None
    assert (tmp_path / "sweep.html").read_bytes() == (finished / "sweep.html").read_bytes()
    with pytest.raises(ConfigError, match="counts from 0"):
        run(tmp_path, part=(2, 2))


def test_torchrun_says_which_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run(tmp_path) is None
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_trajectory_matching_shares_experts(tmp_path: Path) -> None:
    small = {**SMALL, "iterations": 2, "checkpoint_every": 2, "eval_networks": 1, "eval_epochs": 2}
    settings = {**small, "prune": ["none", "hardest:0.3"], "mask": ["depth:0.25", "loss:0.5"], "seeds": [0]}
    assert run(tmp_path, method="pad", **{**settings, "part": (0, 2)}) is None
    # Both masks of one pruning, whose experts they share.
    assert {path.name.partition("_")[0] for path in (tmp_path / "runs").iterdir()} == {"prune-none"}
    result = run(tmp_path, method="pad", **settings)
    assert result is not None and len(result.accuracies) == 4
    assert len(list((tmp_path / "cache").glob("experts-*/"))) == 2


def test_a_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            with locks.locked(tmp_path / "x" / "a.lock"):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(most) == 80 and max(most) == 1


def test_axes() -> None:
    kinds = ("hardest", "easiest")
    assert parse_axis(["none", "easiest:0.1", "hardest:0,0.25"], kinds, "prune") == [
        ("none", 0.0),
        ("easiest", 0.1),
        ("hardest", 0.0),
        ("hardest", 0.25),
    ]
    assert Cell(("hardest", 0.0), ("layers", 2.0), 1).name == "prune-hardest-0_mask-layers-2_seed-1"
    wrong = {
        "hrdest:0.1": "Did you mean 'hardest'",
        "hardest:": "has '' where ratios are expected",
        "hardest:0.1,x": "has '0.1,x' where ratios",
        "hardest": "where ratios are expected",
    }
    for text, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            parse_axis([text], kinds, "prune")
    with pytest.raises(ConfigError, match=r"hardest 0\.1 is asked for twice"):
        parse_axis(["hardest:0.1", "hardest:0.1"], kinds, "prune")


def test_a_wrong_cell_is_an_error_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mask is 'loss'"):
        run(tmp_path, mask=["none", "loss:0.5"])
    with pytest.raises(InputError, match="leaves out all 2 blocks"):
        run(tmp_path, mask=["none", "depth:0.75"])
    with pytest.raises(ConfigError, match="unknown setting 'iteratons'.*Did you mean 'iterations'"):
        run(tmp_path, iteratons=3)
    assert not list(tmp_path.iterdir())


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid"
    command = ["sweep", "--out", str(out), "--quiet", "--prune", "none", "easiest:0.3", "--mask", "depth:0"]
    assert main([*command, "--seeds", "2", *flags(TINY)]) == 0
    said = capsys.readouterr().out
    assert "| easiest 0.3 |" in said and str(out / "sweep.html") in said
    assert main([*command, "--mask", "deep:0.1", *flags(TINY)]) == 2
    assert "Did you mean 'depth'" in capsys.readouterr().err


@pytest.mark.slow
def test_under_torchrun(finished: Path, tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    grid = ["--prune", *GRID["prune"], "--mask", *GRID["mask"], "--seeds", "0", "3"]
    command = [*torchrun, "-m", "pad_fast.cli", "sweep", "--out", str(tmp_path), "--quiet", *grid, *flags(TINY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sweep.json").read_bytes() == (finished / "sweep.json").read_bytes()
    assert done.stdout.count("| pruned") >= 1
