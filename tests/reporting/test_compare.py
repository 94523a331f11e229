"""`pad-fast compare`: the numbers of each run, what differs between them, and their images side by side."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import median

import pytest
import torch

import pad_fast
from pad_fast.cli.main import main
from pad_fast.errors import ConfigError, StoreError
from pad_fast.reporting.compare import aligned, compare
from pad_fast.runtime import distributed
from pad_fast.runtime.distributed import Group

from ..support.html import HOSTILE, Page
from ..support.settings import SMALL
from ..support.small import QUIET


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that differ in the mask's ratio; the experts are trained once."""
    folder = tmp_path_factory.mktemp("sweep")
    for ratio in (0.0, 0.25, 0.5):
        out = folder / f"mask-{ratio}"
        if ratio:
            shutil.copytree(folder / "mask-0.0" / "cache", out / "cache")
        pad_fast.distill("digits", out=out, progress=QUIET, **{**SMALL, "mask": "depth", "mask_ratio": ratio})
    return folder


def stored(run: Path) -> dict[str, list[float]]:
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    return {row["name"]: row["accuracies"] for row in rows}


def mean_and_std(values: list[float]) -> tuple[float, float]:
    values = torch.tensor(values, dtype=torch.float64)
    return float(values.mean()), float(values.std())


def test_the_terminal_table(sweep, capsys):
    runs = sorted(sweep.iterdir())
    assert main(["compare", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].split()
        == "run distilled random real easiest real k-means centres full data loss iterations skipped time".split()
    )
    for line, run, ratio in zip(lines[1:4], runs, ("0", "0.25", "0.5"), strict=True):
        assert line.startswith(f"mask_ratio {ratio} ")
        mean, std = mean_and_std(stored(run)["PAD"])
        assert f" {mean:.1f} +- {std:.1f} " in line
        losses = [json.loads(row)["loss"] for row in (run / "metrics.jsonl").read_text().splitlines()]
        assert f" {median(losses[-1:]):.4g} " in line
    settings = lines.index("setting     mask-0.0  mask-0.25  mask-0.5")
    assert lines[settings + 1].split() == ["mask_ratio", "0", "0.25", "0.5"]
    assert len(lines) == settings + 2, "nothing else differs"


def test_the_page_has_the_same_numbers(sweep, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["compare", str(sweep), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    source = out.read_text()
    page = Page(source)
    assert "3 runs that differ in mask_ratio" in page.text
    for name in ("Test accuracy", "Accuracy against mask_ratio", "Matching loss", "Images side by side",
                 "Settings that differ", "Time and memory"):  # fmt: skip
        assert f"<h2>{name}</h2>" in source
    for run, ratio in zip(sorted(sweep.iterdir()), ("0", "0.25", "0.5"), strict=True):
        mean, std = mean_and_std(stored(run)["PAD"])
        row = next(cells for cells in page.rows if cells[0] == f"mask_ratio {ratio}" and len(cells) == 5)
        assert row[2] == f"{mean:.1f} ± {std:.1f}"
    against = source[source.index('id="against"') :]
    points = re.search(r'class="main" d="M([^"]*)"', against)[1].split("L")
    assert [float(point.split()[0]) for point in points] == [0, 500, 1000], "the ratios are equally far apart"
    assert not re.search(r"https?:|<script", re.sub(r'"data:image[^"]*"', "", source))


def test_images_stand_side_by_side(sweep):
    """Rows are classes, columns runs; each image is that run's first of the class."""
    source = compare([sweep]).page()
    table = Page(
        source[source.index('<table class="side"') : source.index("</table>", source.index('class="side"')) + 8]
    )
    assert table.rows[0][1:] == ["mask_ratio 0", "mask_ratio 0.25", "mask_ratio 0.5"]
    assert [row[0] for row in table.rows[1:]] == [str(digit) for digit in range(10)]
    assert len(table.all("img")) == 30
    assert table.all("img")[4]["alt"] == "1, mask_ratio 0.25"
    assert len({image["src"] for image in table.all("img")}) > 20


def test_report_of_a_folder_of_runs(sweep, capsys):
    assert main(["report", str(sweep)]) == 0
    assert capsys.readouterr().out.strip() == str(sweep / "report.html")
    assert "Images side by side" in (sweep / "report.html").read_text()
    (sweep / "report.html").unlink()


def test_runs_that_differ_in_much_are_called_by_their_folder(sweep, tmp_path):
    shutil.copytree(sweep / "mask-0.0", tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "run.json").read_text())
    settings |= {"lr_img": 3.0, "seed": 8, "lr_y": 0.1, "mask": "none", "dataset": HOSTILE, "new_setting": HOSTILE}
    (tmp_path / "other" / "run.json").write_text(json.dumps(settings))
    comparison = compare([sweep / "mask-0.0", tmp_path / "other"])
    assert comparison.labels == ("mask-0.0", "other")
    assert {"lr_img", "seed", "lr_y", "mask", "dataset", "new_setting"} == set(comparison.different)
    assert not Page(comparison.page()).all("script")


def test_a_run_that_is_older_than_a_setting_does_not_differ_in_its_default(sweep, tmp_path):
    for name, changes in (("older", {}), ("other", {"back_off": True})):
        shutil.copytree(sweep / "mask-0.0", tmp_path / name)
        settings = json.loads((tmp_path / name / "run.json").read_text())
        del settings["back_off"]
        (tmp_path / name / "run.json").write_text(json.dumps({**settings, **changes}))
    assert compare([sweep / "mask-0.0", tmp_path / "older"]).different == ()
    different = compare([tmp_path / "older", tmp_path / "other"])
    assert different.different == ("back_off",) and different.labels == ("back_off no", "back_off yes")


def test_runs_may_be_the_same_or_unfinished(sweep, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(sweep / "mask-0.0", tmp_path / name / "run")
    (tmp_path / "two" / "run" / "evaluation.json").unlink()
    (tmp_path / "two" / "run" / "distilled.safetensors").unlink()
    (tmp_path / "two" / "run" / "metrics.jsonl").write_text("")
    comparison = compare([tmp_path / "one" / "run", tmp_path / "two" / "run"])
    assert comparison.different == () and len(set(comparison.labels)) == 2
    assert "The settings are the same." in comparison.text()
    assert re.search(r"two/run( +-){6} +0 +0 ", comparison.text())
    assert "1 runs are not shown" in comparison.page()


def test_one_of_several_processes_speaks_and_writes(sweep, tmp_path, monkeypatch, capsys):
    """As the others do that read a folder alone: the ranks would otherwise write the same page at the same time."""
    for rank in (1, 0):
        for ask in ("join", "group"):
            monkeypatch.setattr(distributed, ask, lambda rank=rank: Group(rank, 2))
        page = tmp_path / "page.html"
        assert main(["compare", str(sweep), "--out", str(page)]) == 0
        assert bool(capsys.readouterr().out) == page.exists() == (rank == 0)


def changed(source: Path, target: Path, **settings: object) -> Path:
    """A copy of a run that says it has other settings."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("cache"))
    described = json.loads((target / "run.json").read_text())
    (target / "run.json").write_text(json.dumps({**described, **settings}))
    return target


def charts(source: str) -> dict[str, str]:
    """Sections that have a chart, by heading."""
    parts = source.split("<section")[1:]
    return {re.search("<h2>([^<]*)</h2>", part)[1]: part for part in parts if 'class="chart"' in part}


def test_losses_stand_together_only_where_they_measure_the_same(sweep, tmp_path):
    runs = [changed(sweep / "mask-0.0", tmp_path / "a"), changed(sweep / "mask-0.25", tmp_path / "b")]
    runs += [
        changed(sweep / "mask-0.0", tmp_path / "c", method="dm"),
        changed(sweep / "mask-0.5", tmp_path / "d", model="MLP"),
    ]
    comparison = compare(runs)
    found = charts(comparison.page())
    losses = {heading: part for heading, part in found.items() if "loss" in heading}
    assert list(losses) == [
        "Matching loss: PAD, ConvNetD2W8, digits",
        "Matching loss: DM, ConvNetD2W8, digits",
        "Matching loss: PAD, MLP, digits",
    ]
    pad, dm, mlp = losses.values()
    assert [part.count('class="series c') for part in (pad, dm, mlp)] == [2, 1, 1]
    assert "distance to the expert" in pad and "distance to the expert" not in dm and "mean features" in dm
    assert "They differ in mask_ratio, and so in what the loss is of." in pad and "They differ" not in mlp
    assert "Losses are not comparable between PAD, ConvNetD2W8, digits; DM" in comparison.text()
    assert "Losses are not comparable" not in compare([sweep]).text()


def test_accuracies_are_grouped_by_network(sweep, tmp_path):
    rows = [
        {"name": "PAD", "model": "MLP", "accuracies": [31.25, 33.25]},
        {"name": "random real", "model": "MLP", "accuracies": [20.0]},
    ]
    for name in ("mask-0.0", "mask-0.25"):
        folder = changed(sweep / name, tmp_path / name)
        (folder / "evaluation-mlp.json").write_text(json.dumps({"rows": rows}))
        rows[0]["accuracies"] = [41.25, 43.25]
    comparison = compare([tmp_path])
    source = comparison.page()
    sections = {re.search("<h2>([^<]*)</h2>", part)[1]: part for part in source.split("<section")[1:]}
    table = [row[:3] for row in Page("<section" + sections["Test accuracy, MLP"]).rows[1:]]
    assert table == [
        ["mask_ratio 0.25", "MLP", "42.2 ± 1.4"], ["mask_ratio 0", "MLP", "32.2 ± 1.4"], ["random real", "MLP", "20.0"],
    ]  # fmt: skip
    assert "MLP" not in sections["Test accuracy, ConvNetD2W8"]
    against = charts(source)["Accuracy against mask_ratio"]
    assert re.findall(r'class="key series c\d">([^<]*)<', against) == ["ConvNetD2W8", "MLP"]
    text = comparison.text()
    assert re.search(r"ConvNetD2W8 above; MLP:\nrun +distilled +random real\nmask_ratio 0 +32.2 \+- 1.4 +20.0\n", text)


def test_runs_are_called_by_what_tells_their_folders_apart(sweep, tmp_path):
    for name in ("one", "two"):
        changed(sweep / "mask-0.0", tmp_path / name / "run")
        (tmp_path / name / "run" / "timing.json").write_text("damaged")
    comparison = compare([tmp_path / "one" / "run", tmp_path / "two" / "run"])
    assert comparison.labels == ("one/run", "two/run")
    assert str(tmp_path) not in comparison.page() and "two/run: stage costs timing.json" in Page(comparison.page()).text


@pytest.mark.parametrize(("names", "kind", "message"), [
    (["mask-0.0"], ConfigError, "there is 1 run to compare"),
    (["mask-0.0", "mask-0.0"], ConfigError, "there is 1 run"),
    (["mask-0.0", "nothing"], StoreError, "there is no folder"),
])  # fmt: skip
def test_bad_input(sweep, names, kind, message):
    with pytest.raises(kind, match=message):
        compare([sweep / name for name in names])


def test_columns_are_aligned():
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"
