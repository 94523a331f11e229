"""The page of a real run: its numbers are those of the run's files, at any moment of the run and after any accident."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from html import unescape
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from PIL import Image

import pad_fast
from pad_fast.cli.main import main
from pad_fast.errors import DistillationStopped, StoreError
from pad_fast.reporting.numbers import duration
from pad_fast.reporting.present import present, report_data, watch
from pad_fast.runs.folder import LOCK, read_run
from pad_fast.runs.preview import read_preview
from pad_fast.runtime import locks, tensor_files

from ..support.html import HOSTILE, Page
from ..support.settings import SMALL, flags
from ..support.small import QUIET

SECTIONS = [
    "Synthetic images", "From start to end", "Test accuracy", "Use this set", "Matching loss",
    "Student's learning rate", "Matching loss by layer", "Difficulty and curriculum", "Time and memory",
    "Settings", "Versions and machine", "Not on this page",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presentation") / "run"
    pad_fast.distill("digits", out=folder, progress=QUIET, **{**SMALL, "iterations": 30, "layer_loss_every": 5})
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def page_of(folder: Path) -> Page:
    return Page(present(folder).read_text(encoding="utf-8"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def headings(folder: Path) -> list[str]:
    return re.findall(r"<h2>([^<]*)</h2>", unescape((folder / "report.html").read_text()))


def test_every_section_is_there(finished):
    assert headings(finished) == SECTIONS


def test_the_numbers_are_those_of_the_files(finished):
    page, rows = Page((finished / "report.html").read_text()), metrics(finished)
    assert len(rows) == 30
    skipped = sum(row["skipped"] for row in rows)
    last = median([row["loss"] for row in rows][-3:])
    assert f"30 iterations, {skipped} skipped. Median of the last tenth: {last:.4g}." in page.text
    assert f"From {rows[0]['lr']:.4g} to {rows[-1]['lr']:.4g}." in page.text
    for row in json.loads((finished / "evaluation.json").read_text())["rows"]:
        values = row["accuracies"]
        mean = sum(values) / len(values)
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        shown = next(cells for cells in page.rows if cells[:2] == [row["name"], row["model"]])
        assert shown[2] == f"{mean:.1f} ± {std:.1f}" and shown[4] == str(len(values))
    stages = json.loads((finished / "timing.json").read_text())["stages"]
    assert list(stages) == ["data", "scores", "experts", "distill", "evaluate"]
    first = page.rows.index(["Stage", "Time", "Peak memory, MiB", ""]) + 1
    for cost, cells in zip(stages.values(), page.rows[first:], strict=False):
        assert cells[1:3] == [duration(cost["seconds"]), f"{cost['peak_mib']:,.0f}"]
        assert cost["peak_mib"] > 50
    assert page.rows[first + 5][1] == duration(sum(cost["seconds"] for cost in stages.values()))


def test_the_curve_is_that_of_metrics(finished):
    """The thin curve, taken back from its pixels with the ticks beside it, is the recorded loss."""
    source = (finished / "report.html").read_text()
    chart = source[source.index('id="loss"') : source.index('id="learning-rate"')]
    ticks = [(float(a), float(b)) for a, b in re.findall(r'class="y" style="bottom:([\d.]+)%">([\d.]+)<', chart)]
    (low, low_value), (high, high_value) = ticks[0], ticks[-1]
    points = [tuple(map(float, p.split())) for p in re.search(r'class="raw" d="M([^"]*)"', chart)[1].split("L")]
    losses = [row["loss"] for row in metrics(finished)]
    assert len(points) == len(losses) == 30
    for (x, y), (iteration, loss) in zip(points, enumerate(losses), strict=True):
        assert x == pytest.approx(1000 * iteration / 29, abs=0.1)
        value = low_value + ((300 - y) / 3 - low) / (high - low) * (high_value - low_value)
        assert value == pytest.approx(loss, abs=0.004 * (high_value - low_value))


def test_layers_are_recorded_at_their_interval_and_shown(finished):
    rows = metrics(finished)
    recorded = [row["iteration"] for row in rows if any(key.startswith("layer_loss.") for key in row)]
    assert recorded == [0, 5, 10, 15, 20, 25]
    names = [key.removeprefix("layer_loss.") for key in rows[0] if key.startswith("layer_loss.")]
    assert names == ["features.0", "features.4", "classifier"]
    text = Page((finished / "report.html").read_text()).text
    assert all(f" {name} " in text for name in ("conv 1", "conv 2", "classifier")) and "features." not in text
    # No mask is set in these settings, so the loss lies between the nearest and the farthest layer.
    for row in rows[::5]:
        values = [row[f"layer_loss.{name}"] for name in names]
        assert min(values) <= row["loss"] <= max(values)


def test_recording_layers_does_not_change_the_run(tmp_path, finished):
    pad_fast.distill(
        "digits", out=tmp_path / "off", progress=QUIET, **{**SMALL, "iterations": 30, "layer_loss_every": 0}
    )
    assert torch.equal(pad_fast.load(tmp_path / "off").images, pad_fast.load(finished).images)
    assert "Matching loss by layer: switched off" in Page((tmp_path / "off" / "report.html").read_text()).text


def test_cards_show_the_soft_labels(finished):
    distilled = pad_fast.load(finished)
    page = Page((finished / "report.html").read_text())
    cells = [e["aria-label"] or "" for e in page.all("span") if e.get("class") == "cell"][:10]
    for index, spoken in enumerate(cells):
        probabilities = distilled.label_logits[index].softmax(-1)
        best = int(probabilities.argmax())
        name = distilled.class_names[best]
        assert spoken.startswith(f"{distilled.class_names[index]}, {name} {100 * float(probabilities[best]):.0f}%")
        assert spoken.count("%") == 5


def test_the_preview_holds_the_ends_of_the_order(finished):
    preview = read_preview(finished)
    (path,) = (finished / "cache").glob("scores-*.safetensors")
    difficulty = pad_fast.Difficulty.load(path)
    data = pad_fast.load_dataset("digits")
    for label, indices in enumerate(difficulty.order):
        assert torch.equal(preview.scores[label], difficulty.scores[indices])
        shown = data.train_images[torch.cat([indices[:5], indices[-5:]])]
        assert torch.equal(preview.images[label], (shown * 255).round().to(torch.uint8))


def test_a_run_in_progress(run):
    """A run that has some iterations and no result yet is shown as far as it goes."""
    for name in ("distilled.safetensors", "evaluation.json", "images.png", "report.html", "checkpoint"):
        (run / name).unlink()
    timing = json.loads((run / "timing.json").read_text())
    timing |= {"finished": False}
    timing["stages"] = {k: v for k, v in timing["stages"].items() if k in ("data", "scores", "experts")}
    timing["stages"]["distill"] = {**timing["stages"]["data"], "seconds": None, "peak_mib": None}
    (run / "timing.json").write_text(json.dumps(timing))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    assert "Stopped before its end: distillation, iteration 7 of 30" in page_of(run).text
    with locks.locked(run / LOCK):
        page = page_of(run)
    assert "Not finished: distillation, iteration 7 of 30" in page.text
    assert "7 iterations," in page.text and "Test accuracy: not evaluated yet." in page.text
    assert "the first checkpoint brings them" in page.text and not (run / "images.png").exists()
    assert "damaged" not in page.text, "a row being written is no damage"
    done = {"Synthetic images", "From start to end", "Test accuracy", "Use this set"}
    assert headings(run) == [name for name in SECTIONS if name not in done]


def test_the_checkpoint_shows_the_images_so_far(run):
    """Before the result is there; the images are drawn as pixels, because the preview knows the normalisation."""
    expected = [image.png for row in report_data(read_run(run)).images for image in row.pictures]
    (run / "distilled.safetensors").unlink()
    timing = json.loads((run / "timing.json").read_text())
    timing["finished"] = False
    timing["stages"]["distill"]["seconds"] = None
    (run / "timing.json").write_text(json.dumps(timing))
    shown = report_data(read_run(run))
    assert [image.png for row in shown.images for image in row.pictures] == expected
    # A checkpoint that is ahead of the log belongs to the run that this one replaces.
    (run / "metrics.jsonl").write_text("")
    assert report_data(read_run(run)).images == ()
    # So do an evaluation and a result, once a run that replaces them is under way.
    del timing["stages"]["evaluate"]
    (run / "timing.json").write_text(json.dumps(timing))
    assert read_run(run).accuracy == ()


def test_a_run_without_scores(tmp_path):
    folder = tmp_path / "run"
    pad_fast.distill("digits", out=folder, method="mtt", progress=QUIET, **{**SMALL, "eval_baselines": False})
    page = Page((folder / "report.html").read_text())
    assert "Difficulty" not in page.text and "hard label" in page.text and "MTT on digits" in page.text


def test_more_networks_beside_the_run(run):
    rows = [{"name": "PAD", "model": "MLP", "accuracies": [30.0, 31.0]}]
    scores = [{"name": "LRS", "trained_on": "PAD", "model": "MLP", "values": [0.25, 0.75]}]
    (run / "evaluation-mlp.json").write_text(json.dumps({"rows": rows, "scores": scores}))
    page = page_of(run)
    assert not [cells for cells in page.rows if cells[:2] == ["PAD", "MLP"]], "the first table is of the run's network"
    (crossed,) = [cells for cells in page.rows if cells[0] == "MLP"]
    header = next(cells for cells in page.rows if cells[0] == "Network")
    assert dict(zip(header, crossed, strict=True))["PAD"] == "30.5 ± 0.7"
    assert ["LRS", "PAD", "MLP", "0.500 ± 0.354"] in page.rows
    assert {"Across networks", "Robust scores"} <= set(headings(run))


def test_validation_is_accuracy_over_the_iterations(run):
    tried = {"best": 20, "accuracies": {"30": [60.0, 62.0], "10": [40.0, 44.0], "20": [70.0, 71.0]}}
    (run / "validation.json").write_text(json.dumps(tried))
    source = present(run).read_text()
    chart = source[source.index('id="accuracy-over-time"') :]
    points = re.search(r'class="main" d="M([^"]*)"', chart)[1].split("L")
    heights = [300 - float(point.split()[1]) for point in points]
    assert (heights[2] - heights[0]) / (heights[1] - heights[0]) == pytest.approx((61 - 42) / (70.5 - 42), abs=0.01)
    assert "The result is the images after iteration 20." in Page(source).text
    (run / "validation.json").write_text('{"best": 3}')
    assert "validation.json is damaged or no validation of pad_fast" in page_of(run).text


def test_a_torn_metrics_file_is_shown_up_to_the_damage(run):
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines[:9], b"\xff\x00 garbage", *lines[10:]]))
    page = page_of(run)
    assert "metrics.jsonl: line 10 is damaged; it and what follows are not shown" in page.text
    assert "9 iterations," in page.text
    (run / "metrics.jsonl").write_bytes(b'{"iteration": 0, "loss": {"a": 1}}\n[1, 2]\n')
    assert "line 1 is damaged" in page_of(run).text


@pytest.mark.parametrize(
    "name", ["timing.json", "evaluation.json", "preview.safetensors", "distilled.safetensors", "checkpoint"]
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(run, name):
    if name == "checkpoint":
        (run / "distilled.safetensors").unlink()
    for content in (b"", b"[1]", b"something else " * 9):
        (run / name).write_bytes(content)
        page = page_of(run)
        top = page.text[: page.text.index("Matching loss")]
        assert name in top and str(run) not in top, content
        assert "30 iterations" in page.text
    (run / name).unlink()
    page = page_of(run)
    assert name not in page.text[: page.text.index("Matching loss")], "a missing file is no damage"


@pytest.mark.parametrize("make", ["nothing", "file", "empty", "foreign"])
def test_what_is_no_run_is_refused(tmp_path, make, capsys):
    folder = tmp_path / "folder"
    if make == "file":
        folder.write_text("x")
    elif make != "nothing":
        folder.mkdir()
    if make == "foreign":
        (folder / "run.json").write_text('["not", "a", "run"]')
    for command in (["report"], ["report", "--watch"]):
        if "--watch" in command and make in ("nothing", "empty"):
            continue  # a run may begin there
        assert main([*command, str(folder)]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and str(folder) in errors
    assert not (tmp_path / "folder" / "report.html").exists()


def test_hostile_class_names_and_settings_stay_text(run):
    """Class names come from folder names, settings from files."""
    tensors, described = tensor_files.unpack_tensors((run / "distilled.safetensors").read_bytes())
    described["class_names"] = [HOSTILE] * 10
    (run / "distilled.safetensors").write_bytes(tensor_files.pack_tensors(tensors, described))
    tensors, described = tensor_files.unpack_tensors((run / "preview.safetensors").read_bytes())
    described["class_names"] = [f"{HOSTILE}{number}" for number in range(10)]
    (run / "preview.safetensors").write_bytes(tensor_files.pack_tensors(tensors, described))
    settings = {**json.loads((run / "run.json").read_text()), "dataset": HOSTILE, HOSTILE: HOSTILE}
    (run / "run.json").write_text(json.dumps(settings))
    page = page_of(run)
    assert not page.all("script") and page.text.count('alert("x")') > 20
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))


def test_watching_follows_a_run_to_its_end(run):
    """The page is written when something has changed, loads itself again meanwhile, and no more in the end."""
    timing = json.loads((run / "timing.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "timing.json").write_text(json.dumps({**timing, "finished": False}))
    (run / "metrics.jsonl").write_text("".join(lines[:4]))
    seen: list[tuple[str, bool, int]] = []

    def wait(seconds: float) -> None:
        assert seconds == 0.25
        state = (run / "report.html").stat()
        text = Page((run / "report.html").read_text())
        again = [meta for meta in text.all("meta") if meta.get("http-equiv") == "refresh"]
        seen.append((re.search(r"(\d+) iterations, ", text.text)[1], bool(again), state.st_mtime_ns))
        if len(seen) == 2:
            (run / "metrics.jsonl").write_text("".join(lines[:20]))
        if len(seen) == 3:
            (run / "metrics.jsonl").write_text("".join(lines))
            (run / "timing.json").write_text(json.dumps(timing))
        if len(seen) == 4:
            held.close()

    held = ExitStack()
    held.enter_context(locks.locked(run / LOCK))
    said: list[str] = []
    with held:
        assert watch(run, every=0.25, wait=wait, say=said.append) == run / "report.html"
    assert [(count, again) for count, again, _ in seen] == [("4", True), ("4", True), ("20", True), ("30", True)]
    assert seen[0][2] == seen[1][2], "nothing had changed"
    last = Page((run / "report.html").read_text())
    assert "30 iterations" in last.text
    assert not [meta for meta in last.all("meta") if meta.get("http-equiv")]
    assert "watching" in said[0] and "finished" in said[-1]


@pytest.mark.parametrize("ending", ["finished", "killed"])
def test_a_run_is_watched_from_before_it_begins(tmp_path, monkeypatch, capsys, ending):
    """A process of its own, and the command line beside it, which ends by itself however the run does."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pad_fast.cli", "distill", "--out", str(out), "--quiet"]
    running: list[subprocess.Popen[bytes]] = []
    seen: set[tuple[int, bool]] = set()
    sleep = time.sleep

    def look(_: float) -> None:
        if not running:
            running.append(
                subprocess.Popen([*command, *flags({**SMALL, "iterations": 150})], stdout=subprocess.DEVNULL)
            )
        if (out / "report.html").exists():
            page = Page((out / "report.html").read_text())
            rows = re.search(r"(\d+) iterations, ", page.text)
            seen.add((int(rows[1]) if rows else 0, "http-equiv" in str(page.all("meta"))))
        if ending == "killed" and len(seen) > 3:
            running[0].kill()
            running[0].wait()
        sleep(0.02)

    monkeypatch.setattr("time.sleep", look)
    status = main(["report", str(out), "--watch"])
    monkeypatch.undo()
    assert running[0].wait(timeout=60) == (0 if ending == "finished" else -signal.SIGKILL)
    assert len({rows for rows, _ in seen}) > 2 and (True in {again for _, again in seen}), "rewritten while it ran"
    page = Page((out / "report.html").read_text())
    said = capsys.readouterr()
    assert said.err.startswith(f"no run in {out} yet; waiting for one to begin\nwatching {out}")
    assert not [meta for meta in page.all("meta") if meta.get("http-equiv")]
    if ending == "finished":
        assert status == 0 and said.out == f"{out / 'report.html'}\n" and "150 iterations" in page.text
        return
    assert status == 1 and f"the run in {out} was killed or has failed" in said.err
    assert f"`pad-fast resume {out}` continues it" in said.err
    assert "Stopped before its end: distillation, iteration" in page.text


def test_watching_a_run_that_has_failed(tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(DistillationStopped):
        pad_fast.distill("digits", out=out, progress=QUIET, **{**SMALL, "lr_img": 1e30})
    assert main(["report", str(out), "--watch"]) == 1
    assert "was killed or has failed" in capsys.readouterr().err
    assert "Stopped before its end" in (out / "report.html").read_text()


def test_interrupting_a_watch(run, monkeypatch, capsys):
    timing = json.loads((run / "timing.json").read_text())
    (run / "timing.json").write_text(json.dumps({**timing, "finished": False}))

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", stop)
    with locks.locked(run / LOCK):
        assert main(["report", str(run), "--watch"]) == 0
    assert "stopped watching" in capsys.readouterr().err
    page = Page((run / "report.html").read_text())
    assert not [meta for meta in page.all("meta") if meta.get("http-equiv")], "nobody writes the page any more"


def test_a_page_that_cannot_be_written(run):
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        present(run)


def test_a_label_that_has_moved_is_told_by_picture_and_page(run):
    """Of the digits' images, that of the 3 and that of the 8 are made to favour other classes."""
    distilled = pad_fast.load(run)
    assert distilled.label_logits is not None
    logits = torch.eye(10)[[0, 1, 2, 5, 4, 5, 6, 7, 3, 9]] * 5
    dataclasses.replace(distilled, label_logits=torch.eye(10) * 5).save(run)
    page_of(run)
    plain = Image.open(run / "images.png").size
    dataclasses.replace(distilled, label_logits=logits).save(run)
    page = page_of(run)
    cells = [e["aria-label"] or "" for e in page.all("span") if e.get("class") == "cell"][:10]
    moved = [index for index, spoken in enumerate(cells) if "its label now says" in spoken]
    assert moved == [3, 8] and cells[3].endswith("its label now says 5")
    assert "The label of 2 of 10 images says another class most, which stands under them." in page.text
    assert Image.open(run / "images.png").size[1] > plain[1], "a line says what the frames mean"


def test_the_page_may_go_elsewhere(run, tmp_path, capsys):
    for name in ("report.html", "images.png"):
        (run / name).unlink()
    before = sorted(path.name for path in run.iterdir())
    for out, page in (("there", "there/report.html"), ("there/own.html", "there/own.html")):
        assert main(["report", str(run), "--out", str(tmp_path / out)]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / page) and (tmp_path / page).is_file()
        assert (tmp_path / "there" / "images.png").is_file()
    assert sorted(path.name for path in run.iterdir()) == before
    assert main(["report", str(run), "--watch", "--out", str(tmp_path / "watched")]) == 0
    assert (tmp_path / "watched" / "report.html").is_file() and not (run / "report.html").exists()
