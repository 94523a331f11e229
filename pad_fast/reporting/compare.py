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
from .names import data_name
from .numbers import column, duration, late_median, loss_label, own_rows
from .pictures import class_names, drawable
from .present import page_of
from .report import STAGES

_SERIES = 8  # as many colours as can be told apart
_COLUMNS = 12  # runs whose images are shown
_CLASSES = 20
_MEASURE = (
    "mask",
    "mask_ratio",
    "syn_steps",
    "expert_epochs",
    "min_start_epoch",
    "max_start_epoch",
    "resolution",
    "zca",
)
"""Settings that change what a matching loss is of."""
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
        first, *others = self._models() or [""]
        sets = self._sets(first)
        header = ["run", *sets, "loss", "iterations", "skipped", "time"]
        rows = [
            [
                label,
                *(_plain(self._row(run, name, first)) for name in sets),
                _late_loss(run),
                f"{len(run.history):,}" + ("" if run.finished else " so far"),
                f"{sum(bool(row.get('skipped')) for row in run.history):,}",
                _time(run),
            ]
            for label, run in zip(self.labels, self.runs, strict=True)
        ]
        said = aligned([header, *rows])
        for model in others:
            sets = self._sets(model)
            pairs = zip(self.labels, self.runs, strict=True)
            rows = [[label, *(_plain(self._row(run, name, model)) for name in sets)] for label, run in pairs]
            said += f"\n\n{first} above; {model}:\n" + aligned([["run", *sets], *rows])
        said += "\n\nAccuracy in %, mean +- standard deviation over networks; loss: median of the last tenth."
        if len(self._groups()) > 1:
            said += f" Losses are not comparable between {'; '.join(self._groups())}."
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
        notes = [f"{label}: {note}" for label, run in zip(self.labels, self.runs, strict=True) for note in run.notes]
        summary = part("paragraph", words) + (part("notes", notes) if notes else "")
        sections = [
            *map(self._accuracies, self._models()),
            self._against_setting(),
            self._images(),
            *self._losses(),
            self._curves(
                "lr", "Student's learning rate", "α: step size of the student's SGD", "learning-rate", self.pairs
            ),
            self._settings(),
            self._times(),
        ]
        return page("Comparison of runs", summary, sections)

    @property
    def pairs(self) -> list[tuple[str, RunFolder]]:
        """Labels and runs."""
        return list(zip(self.labels, self.runs, strict=True))

    def _accuracies(self, model: str) -> Markup:
        """What every run reached on one network, beside baselines; of which they have different ones are a table."""
        own = [
            replace(row, name=label + row.name[len(str(run.settings["method"])) :])
            for label, run in self.pairs
            for row in _own_rows(run)
            if row.model == model
        ]
        known = {name: self._baseline(name, model) for name in self._sets(model)[1:]}
        several = len(self._models()) > 1
        place = self._models().index(model)
        found = accuracy_section(
            [*own, *(row for row in known.values() if row is not None)],
            own,
            heading=f"Test accuracy, {model}" if several else "Test accuracy",
            what="Run or set",
            name=f"accuracy-{place}" if place else "accuracy",
        )
        different = [name for name, row in known.items() if row is None]
        if different:
            rows = [
                [label, *(accuracy_cell(self._row(run, name, model)) or "–" for name in different)]
                for label, run in self.pairs
            ]
            body = table(["Run", *different], rows, numbers=range(1, len(different) + 1))
            heading = f"{model} trained on other sets" if several else "The same networks trained on other sets"
            found += section(heading, body, name=f"baselines-{place}" if place else "baselines")
        return found

    def _baseline(self, name: str, model: str) -> AccuracyRow | None:
        """The row of a set that is the same in all runs that have it; else None."""
        rows = [row for row in (self._row(run, name, model) for run in self.runs) if row is not None]
        return rows[0] if len({row.accuracies for row in rows}) == 1 else None

    def _against_setting(self) -> Markup:
        """Accuracy against the one setting that differs, where that is a number; a curve for each network."""
        if len(self.different) != 1:
            return Markup()
        (key,) = self.different
        lines: list[Line] = []
        for model in self._models():
            points = [
                (float(run.settings[key]), row)
                for run in self.runs
                for row in [self._row(run, "distilled", model)]
                if isinstance(run.settings.get(key), int | float) and row is not None and math.isfinite(row.mean)
            ]
            points.sort(key=lambda point: point[0])
            style = f"series c{len(lines) % _SERIES}" if len(self._models()) > 1 else "main"
            means, spreads = [row.mean for _, row in points], [row.std for _, row in points]
            if len(points) > 1:
                lines.append(Line([x for x, _ in points], means, model if style != "main" else "mean", style, spreads))
        if not lines:
            return Markup()
        chart = line_chart(
            lines,
            x_label=key,
            y_label="test accuracy, %",
            description=f"Test accuracy against {key}",
            whole=all(x == int(x) for line in lines for x in line.x),
        )
        return section(f"Accuracy against {key}", chart, name="against")

    def _groups(self) -> dict[str, list[tuple[str, RunFolder]]]:
        """Runs whose losses measure the same: of one method, on one network and data set."""
        found: dict[str, list[tuple[str, RunFolder]]] = {}
        for label, run in self.pairs:
            method, model = str(run.settings.get("method", "")).upper(), run.settings.get("model")
            data = data_name(run.settings.get("dataset", ""))
            found.setdefault(", ".join(str(word) for word in (method, model, data) if word), []).append((label, run))
        return found

    def _losses(self) -> list[Markup]:
        """A chart for each group of runs whose losses are of the same kind."""
        groups = self._groups()
        found = []
        for number, (group, pairs) in enumerate(groups.items()):
            heading = f"Matching loss: {group}" if len(groups) > 1 else "Matching loss"
            measure = loss_label(pairs[0][1].settings)
            changed = [key for key in _MEASURE if len({repr(run.settings.get(key)) for _, run in pairs}) > 1]
            words = f"They differ in {', '.join(changed)}, and so in what the loss is of." if changed else ""
            name = f"loss-{number}" if number else "loss"
            found.append(self._curves("loss", heading, measure, name, pairs, words))
        return found

    def _curves(
        self, key: str, heading: str, label: str, name: str, pairs: Sequence[tuple[str, RunFolder]], words: str = ""
    ) -> Markup:
        lines = []
        colours = {id(run): number % _SERIES for number, run in enumerate(self.runs)}  # the same in every chart
        for run_label, run in pairs[:_SERIES]:
            xs, ys = column(run.history, key)
            if key == "loss":
                ys = moving_median(ys, smoothing_window(len(ys)))
            lines.append(Line(xs, ys, run_label, f"series c{colours[id(run)]}"))
        if not any(line.x for line in lines):
            return Markup()
        chart = line_chart(lines, x_label="iteration", y_label=label, description=f"{heading} of each run")
        said = ["Moving medians."] if key == "loss" else []
        if len(pairs) > _SERIES:
            said.append(f"The first {_SERIES} of {len(pairs)} runs.")
        return section(heading, chart + hint(" ".join([*said, *filter(None, [words])])), name=name)

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

    def _models(self) -> list[str]:
        """Networks that were evaluated, in the order of the runs."""
        return list(dict.fromkeys(row.model for run in self.runs for row in run.accuracy))

    def _sets(self, model: str) -> list[str]:
        """Sets that a network was trained on: the distilled images first, then the baselines of any run."""
        others = [
            row.name for run in self.runs for row in run.accuracy if row.model == model and row not in _own_rows(run)
        ]
        return ["distilled", *dict.fromkeys(others)]

    @staticmethod
    def _row(run: RunFolder, name: str, model: str) -> AccuracyRow | None:
        own = _own_rows(run)
        rows = own if name == "distilled" else [row for row in run.accuracy if row.name == name and row not in own]
        return next((row for row in rows if row.model == model), None)


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
        paths = [os.path.abspath(run.path) for run in runs]
        labels = [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]
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
