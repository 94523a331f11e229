"""Several runs beside each other: accuracy, loss, settings that differ, time and images; as text and as a page."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from ..errors import ConfigError
from ..evaluation import AccuracyRow
from ..runs.folder import RunFolder, is_run, read_run, runs_in
from ..runtime import files
from ..settings.config import completed
from .accuracy_section import accuracy_cell, accuracy_section
from .contact_sheet import single_png
from .html.charts import Line, line_chart, moving_median, smoothing_window
from .html.gallery import Picture, PictureRow, side_by_side
from .html.page import hint, page, section, shown, table
from .html.render import part
from .numbers import column, duration, late_median, loss_label, own_rows
from .present import class_names, drawable, page_of
from .report import STAGES

_SERIES = 8  # as many colours as can be told apart
_COLUMNS = 12  # runs whose images are shown
_CLASSES = 20
_UNIMPORTANT = {"backend", "precision", "cache", "checkpoint_every", "layer_loss_every"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs in the order they are shown.

    Attributes:
        runs: at least one.
        labels: one a run: the settings it differs in where these are few, else its folder's name.
        different: settings that are not the same in all runs.
    """

    runs: tuple[RunFolder, ...]
    labels: tuple[str, ...]
    different: tuple[str, ...]

    def text(self) -> str:
        """Tables for a terminal."""
        sets = self._sets()
        header = ["run", *sets, "loss", "iterations", "skipped", "time"]
        rows = [
            [
                label,
                *(_plain(self._row(run, name)) for name in sets),
                _late_loss(run),
                f"{len(run.history):,}" + ("" if run.finished else " so far"),
                f"{sum(bool(row.get('skipped')) for row in run.history):,}",
                _time(run),
            ]
            for label, run in zip(self.labels, self.runs, strict=True)
        ]
        said = aligned([header, *rows])
        said += "\n\nAccuracy in %, mean +- standard deviation over networks; loss: median of the last tenth."
        if self.different:
            settings = [[key, *(shown(run.settings.get(key)) for run in self.runs)] for key in self.different]
            said += "\n\n" + aligned([["setting", *(run.name for run in self.runs)], *settings])
        else:
            said += "\n\nThe settings are the same."
        notes = [f"{run.path}: {note}" for run in self.runs for note in run.notes]
        return said + "".join(f"\nnote: {note}" for note in notes)

    def page(self) -> str:
        """One HTML page that needs no other file."""
        words = f"{len(self.runs)} runs"
        if self.different:
            listed = ", ".join(self.different[:6])
            words += f" that differ in {listed}" + (" and more" if len(self.different) > 6 else "")
        notes = [f"{run.path}: {note}" for run in self.runs for note in run.notes]
        summary = part("paragraph", words) + (part("notes", notes) if notes else "")
        sections = [
            self._accuracies(),
            self._against_setting(),
            self._curves("loss", "Matching loss", loss_label(self.runs[0].settings), "loss"),
            self._images(),
            self._curves("lr", "Student's learning rate", "α: step size of the student's SGD", "learning-rate"),
            self._settings(),
            self._times(),
        ]
        return page("Comparison of runs", summary, sections)

    def _accuracies(self) -> Markup:
        own = [
            replace(row, name=label + row.name[len(str(run.settings["method"])) :])
            for label, run in zip(self.labels, self.runs, strict=True)
            for row in _own_rows(run)
        ]
        found = accuracy_section(own)
        baselines = self._sets()[1:]
        if baselines and own:
            rows = [
                [label, *(accuracy_cell(self._row(run, name)) or "–" for name in baselines)]
                for label, run in zip(self.labels, self.runs, strict=True)
            ]
            body = table(["Run", *baselines], rows, numbers=range(1, len(baselines) + 1))
            found += section("The same networks trained on other sets", body, name="baselines")
        return found

    def _against_setting(self) -> Markup:
        """Accuracy against the one setting that differs, where that is a number."""
        if len(self.different) != 1:
            return Markup()
        (key,) = self.different
        points = [
            (float(run.settings[key]), row)
            for run in self.runs
            for row in _own_rows(run)[:1]
            if isinstance(run.settings.get(key), int | float) and math.isfinite(row.mean)
        ]
        if len(points) < 2:
            return Markup()
        points.sort(key=lambda point: point[0])
        xs = [x for x, _ in points]
        chart = line_chart(
            [Line(xs, [row.mean for _, row in points], "mean", "main", [row.std for _, row in points])],
            x_label=key,
            y_label="test accuracy, %",
            description=f"Test accuracy against {key}",
            whole=all(x == int(x) for x in xs),
        )
        return section(f"Accuracy against {key}", chart, name="against")

    def _curves(self, key: str, heading: str, label: str, name: str) -> Markup:
        lines = []
        for number, (run_label, run) in enumerate(zip(self.labels[:_SERIES], self.runs, strict=False)):
            xs, ys = column(run.history, key)
            if key == "loss":
                ys = moving_median(ys, smoothing_window(len(ys)))
            lines.append(Line(xs, ys, run_label, f"series c{number}"))
        if not any(line.x for line in lines):
            return Markup()
        chart = line_chart(lines, x_label="iteration", y_label=label, description=f"{heading} of each run")
        words = "Moving medians." if key == "loss" else ""
        if len(self.runs) > _SERIES:
            words += f" The first {_SERIES} of {len(self.runs)} runs."
        return section(heading, chart + hint(words.strip()), name=name)

    def _images(self) -> Markup:
        """The first image of each class of every run, side by side (PAD, figure 4)."""
        pairs = zip(self.labels, self.runs, strict=True)
        have = [(label, run.distilled) for label, run in pairs if run.distilled is not None]
        if not have:
            return Markup()
        names = class_names(have[0][1])
        kept = [(label, distilled) for label, distilled in have if class_names(distilled) == names][:_COLUMNS]
        rows = []
        for number, name in enumerate(names[:_CLASSES]):
            pictures = []
            for label, distilled in kept:
                members = (distilled.labels == number).nonzero().flatten()[:1]
                if len(members):
                    pictures.append(Picture(single_png(drawable(distilled, members)[0]), f"{name}, {label}"))
            if len(pictures) == len(kept):
                rows.append(PictureRow(name, pictures))
        words = "The first image of each class."
        left = len(self.runs) - len(kept)
        if left:
            words += f" {left} runs are not shown: no images yet, other classes, or too many."
        body = side_by_side([label for label, _ in kept], rows)
        return section("Images side by side", body + hint(words), name="images")

    def _settings(self) -> Markup:
        body = hint("None: the settings are the same.")
        if self.different:
            rows = [[key, *(shown(run.settings.get(key)) for run in self.runs)] for key in self.different]
            body = table(["Setting", *(run.name for run in self.runs)], rows)
        return section("Settings that differ", body, name="settings")

    def _times(self) -> Markup:
        stages = [stage for stage in STAGES if any(stage in run.stages for run in self.runs)]
        if not stages:
            return Markup()
        rows = []
        for label, run in zip(self.labels, self.runs, strict=True):
            costs = [run.stages.get(stage) for stage in stages]
            cells = ["–" if cost is None or cost.seconds is None else duration(cost.seconds) for cost in costs]
            peaks = [cost.peak_mib for cost in costs if cost is not None and cost.peak_mib is not None]
            rows.append([label, *cells, _time(run), f"{max(peaks):,.0f}" if peaks else "–"])
        header = ["Run", *(STAGES[stage] for stage in stages), "all", "peak memory, MiB"]
        return section("Time and memory", table(header, rows, numbers=range(1, len(header))), name="cost")

    def _sets(self) -> list[str]:
        """Sets that networks were trained on: the distilled images first, then the baselines of any run."""
        others = [row.name for run in self.runs for row in run.accuracy if row not in _own_rows(run)]
        return ["distilled", *dict.fromkeys(others)]

    @staticmethod
    def _row(run: RunFolder, name: str) -> AccuracyRow | None:
        rows = _own_rows(run) if name == "distilled" else [row for row in run.accuracy if row.name == name]
        return rows[0] if rows else None


def compare(folders: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Read runs to look at together.

    Args:
        folders: of runs; a folder of several runs stands for all of them.

    Raises:
        ConfigError: fewer than two runs.
        StoreError: a folder that holds no run.
    """
    paths: list[Path] = []
    for folder in map(Path, folders):
        inside = [] if is_run(folder) else runs_in(folder)
        paths += inside or [folder]
    runs = tuple(read_run(path) for path in dict.fromkeys(paths))
    if len(runs) < 2:
        raise ConfigError(f"there is {len(runs)} run to compare; name two or more folders of runs")
    return comparison_of(runs)


def comparison_of(runs: Sequence[RunFolder]) -> Comparison:
    """Runs with the labels that tell them apart."""
    # A run that is older than a setting had what is its default now.
    runs = [replace(run, settings=completed(run.settings)) if run.settings else run for run in runs]
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in _UNIMPORTANT)
    different = tuple(key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1)
    if 0 < len(different) <= 3:
        labels = [", ".join(f"{key} {shown(run.settings.get(key))}" for key in different) for run in runs]
    else:
        labels = [run.name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [str(run.path) for run in runs]
    return Comparison(tuple(runs), tuple(labels), different)


def present_runs(folder: Path, out: Path | None = None) -> Path:
    """Write `report.html`, the comparison of the runs in `folder`; `out` as for :func:`.present.present`.

    Raises:
        ConfigError: fewer than two runs.
    """
    return files.write_text(page_of(folder, out), compare([folder]).page())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _own_rows(run: RunFolder) -> list[AccuracyRow]:
    return own_rows(run.accuracy, run.settings)


def _plain(row: AccuracyRow | None) -> str:
    if row is None:
        return "-"
    return f"{row.mean:.1f} +- {row.std:.1f}" if row.networks > 1 else f"{row.mean:.1f}"


def _late_loss(run: RunFolder) -> str:
    _, losses = column(run.history, "loss")
    return f"{late_median(losses):.4g}" if losses else "-"


def _time(run: RunFolder) -> str:
    times = [cost.seconds for cost in run.stages.values() if cost.seconds is not None]
    return duration(sum(times)) if times else "-"
