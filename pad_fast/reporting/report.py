"""The report of a run: one HTML page with everything there is to see, finished or not.

But for the measured times and memory, the page holds nothing that depends on when or where it was made: two runs that
computed the same numbers write the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from markupsafe import Markup

from ..distillation.metrics import LAYER_LOSS
from ..evaluation import AccuracyRow, RobustScore
from ..evaluation.sets import FULL, RANDOM
from ..runs.timing import StageCost
from .accuracy_section import accuracy_section, cross_architecture, robust_section
from .difficulty_section import DifficultyView, difficulty_section
from .film_section import FilmStrip, film_section
from .html.charts import Line, line_chart, moving_median, smoothing_window
from .html.gallery import PictureRow, gallery
from .html.page import absent, details, hint, page, section, shown, table
from .html.render import part
from .names import data_name, layer_names
from .numbers import (
    LOSSES,
    History,
    column,
    duration,
    images_per_class,
    iteration_of,
    late_median,
    loss_label,
    of_another,
    own_rows,
    points_above,
)
from .use_section import SetShape, use_section

STAGES = {
    "data": "data and normalisation",
    "scores": "difficulty scores",
    "experts": "experts",
    "distill": "distillation",
    "evaluate": "evaluation",
}
"""Names of a run's stages on a page."""


@dataclass(frozen=True)
class Status:
    """Progress of a run that has not finished.

    Attributes:
        stage: the one under way, or the last one it got to.
        done, total: iterations.
        stopped: nobody is working on it.
    """

    stage: str
    done: int
    total: int | None
    stopped: bool = False


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; what is left empty is left out or said to be missing.

    Attributes:
        title: the headline.
        settings: the run's configuration, flat. Leave out what differs between equal runs (paths).
        environment: versions and machine of what computed it.
        accuracy: one row per training set and network: the distilled images beside random real images and
            the full data.
        history: one mapping per iteration with `iteration`, `loss`, `lr` (the student's learned rate) and
            `skipped` (0 or 1), and now and then `layer_loss.<layer>`; other keys are ignored, and a method without `lr`
            or `skipped` leaves them out.
        robust: label- and augmentation-robust scores.
        accuracy_history: iteration, and accuracies in percent that networks trained on the images of then reached on
            validation images; `chosen` is the iteration whose images are the result.
        images: the synthetic images, one row per class; `image_note` goes above them.
        film: how the first of each class came to be.
        shape: of the set, when there is one to be used.
        difficulty: scores and curriculum.
        stages: what each stage cost.
        training_images: how many the data set has, when that is known.
        status: None for a finished run.
        notes: sentences shown at the top.
    """

    title: str
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    accuracy: Sequence[AccuracyRow] = ()
    history: History = ()
    robust: Sequence[RobustScore] = ()
    accuracy_history: Sequence[tuple[int, tuple[float, ...]]] = ()
    chosen: int | None = None
    images: Sequence[PictureRow] = ()
    image_note: str = ""
    film: FilmStrip | None = None
    shape: SetShape | None = None
    difficulty: DifficultyView | None = None
    stages: Mapping[str, StageCost] = field(default_factory=dict)
    training_images: int | None = None
    status: Status | None = None
    notes: Sequence[str] = ()


def render_report(data: ReportData, *, refresh: int | None = None) -> str:
    """The report as one HTML page (UTF-8) for light and dark screens, phones and paper.

    Args:
        data: what it shows.
        refresh: seconds after which a browser is to load the page again; None: never.

    Example:
        >>> row = AccuracyRow("distilled", "ConvNet", (93.1, 94.1))
        >>> page = render_report(ReportData("digits", {"ipc": 1}, accuracy=[row]))
        >>> "93.6" in page and "script" not in page
        True
    """
    return page(data.title, _summary(data), _sections(data), refresh=refresh)


def _sections(data: ReportData) -> list[Markup]:
    missing: list[str] = []
    own = own_rows(data.accuracy, data.settings)
    rows = [row for row in data.accuracy if row.model == data.accuracy[0].model]
    if not rows:
        missing.append("Test accuracy: not evaluated yet.")
    return [
        _images(data, missing),
        film_section(data.film),
        accuracy_section(rows, own),
        use_section(data.shape, data.settings),
        _networks(data, missing),
        robust_section(data.robust),
        _loss(data.history, data.settings, missing),
        _accuracy_over_time(data, missing),
        _learning_rate(data.history, missing),
        _layers(data.history, data.settings, missing),
        difficulty_section(data.difficulty),
        _cost(data.stages, data.environment, missing),
        details("Settings", data.settings),
        details("Versions and machine", data.environment),
        absent(missing),
    ]


def _summary(data: ReportData) -> Markup:
    """Under the title: the few settings that say what was run, how far it is, and the numbers that matter."""
    known = {**data.settings, "dataset": data_name(data.settings["dataset"])} if "dataset" in data.settings else {}
    parts = [f"{key} {shown(known[key])}" for key in _SUMMARY if known.get(key) is not None]
    found = part("paragraph", " · ".join(parts)) if parts else Markup()
    if data.status is not None:
        found += _status(data.status)
    if data.notes:
        found += part("notes", data.notes)
    return found + _tiles(data)


def _status(status: Status) -> Markup:
    words = "Stopped before its end" if status.stopped else "Not finished"
    words += f": {STAGES.get(status.stage, status.stage)}"
    if not status.done or status.total is None:
        return part("state", words, 0, 0)
    return part("state", f"{words}, iteration {status.done:,} of {status.total:,}", status.done, status.total)


def _tiles(data: ReportData) -> Markup:
    tiles: list[tuple[str, str, str]] = []
    rows = {(row.name, row.model): row for row in reversed(data.accuracy) if math.isfinite(row.mean)}
    own = next((row for row in own_rows(data.accuracy, data.settings) if math.isfinite(row.mean)), None)
    if own is not None:
        spread = f" ± {own.std:.1f}" if own.networks > 1 else ""
        tiles.append((f"test accuracy, {own.model}", f"{own.mean:.1f}{spread}", "%"))
        full, drawn = rows.get((FULL, own.model)), rows.get((RANDOM, own.model))
        if full is not None and full.mean > 0:
            tiles.append(("of the full data's accuracy", of_another(own, full), "%"))
        if drawn is not None:
            tiles.append(("points above random real images", points_above(own, drawn), ""))
    ipc = data.settings.get("ipc")
    if isinstance(ipc, int):
        share = ""
        classes = len(data.images) or (len(data.difficulty.scores) if data.difficulty else 0)
        if data.training_images and classes:
            share = f"{100 * ipc * classes / data.training_images:.2g} % of {data.training_images:,}"
        several = data.settings.get("ipc_per_class") is not None
        tiles.append(("images per class", images_per_class(data.settings), "" if several else share))
    times = [cost.seconds for cost in data.stages.values() if cost.seconds is not None]
    if times:
        tiles.append(("time, all stages", duration(sum(times)), ""))
    return part("tiles", tiles) if tiles else Markup()


def _images(data: ReportData, missing: list[str]) -> Markup:
    body = gallery(data.images)
    if not body:
        missing.append("Synthetic images: none yet, the first checkpoint brings them.")
        return Markup()
    says = "Each class: what it began with, then the result. " if any(row.starts for row in data.images) else ""
    moved = sum(bool(picture.moved) for row in data.images for picture in row.pictures)
    if moved:
        count = sum(len(row.pictures) for row in data.images)
        says += f"The label of {moved} of {count} images says another class most, which stands under them. "
    says += f"Point at an image, or tap it: class and label. {data.image_note}"
    return section("Synthetic images", hint(says.strip()) + body, name="images")


def _networks(data: ReportData, missing: list[str]) -> Markup:
    found = cross_architecture(data.accuracy)
    if data.accuracy and not found:
        missing.append(
            f"Other networks: evaluated on {data.accuracy[0].model} only. To add another to the next report: "
            "pad-fast evaluate RUN --model MLP --out RUN/evaluation-mlp.json"
        )
    return found


def _loss(history: History, settings: Mapping[str, object], missing: list[str]) -> Markup:
    xs, ys = column(history, "loss")
    if not ys:
        missing.append("Matching loss: nothing recorded.")
        return Markup()
    lines = [Line(xs, ys, "each iteration", "raw" if len(ys) > 4 else "main")]
    if len(ys) > 4:
        window = smoothing_window(len(ys))
        lines.append(Line(xs, moving_median(ys, window), f"median of {window} iterations"))
    skipped = [iteration_of(row, number) for number, row in enumerate(history) if row.get("skipped", 0)]
    threshold = settings.get("threshold")
    chart = line_chart(
        lines,
        x_label="iteration",
        y_label=loss_label(settings),
        description="Matching loss over iterations",
        marks=skipped,
        marks_label="skipped",
        limit=float(threshold) if isinstance(threshold, int | float) else None,
        limit_label="threshold",
    )
    words = f"{len(history):,} iteration{'s' if len(history) > 1 else ''}"
    words += f", {len(skipped):,} skipped." if any("skipped" in row for row in history) else "."
    words += f" Median of the last tenth: {late_median(ys):.4g}."
    back_offs = int(history[-1].get("back_offs", 0))
    if back_offs:
        words += f" Back-offs, each with smaller steps: {back_offs:,}."
    return section("Matching loss", chart + hint(words), name="loss")


def _accuracy_over_time(data: ReportData, missing: list[str]) -> Markup:
    points = [(i, [a for a in accuracies if math.isfinite(a)]) for i, accuracies in data.accuracy_history]
    rows = [AccuracyRow("validation", "", tuple(accuracies)) for _, accuracies in points if accuracies]
    if not rows:
        missing.append(
            "Accuracy over the iterations: networks are tested once, on the result. With validation_fraction above 0, "
            "images held out of the training set tell how good the iterates are."
        )
        return Markup()
    chart = line_chart(
        [
            Line(
                [float(i) for i, accuracies in points if accuracies],
                [row.mean for row in rows],
                "mean over networks",
                "main",
                [row.std for row in rows],
            )
        ],
        x_label="iteration",
        y_label="validation accuracy, %",
        description="Validation accuracy of networks trained on the images, over iterations",
    )
    words = "On images that were held out of the training set and seen by nothing else."
    if data.chosen is not None:
        words += f" The result is the images after iteration {data.chosen:,}."
    return section("Accuracy over the iterations", chart + hint(words), name="accuracy-over-time")


def _learning_rate(history: History, missing: list[str]) -> Markup:
    xs, ys = column(history, "lr")
    if not ys:
        if not history:
            missing.append("Student's learning rate: nothing recorded.")
        return Markup()
    chart = line_chart(
        [Line(xs, ys, "learning rate")],
        x_label="iteration",
        y_label="α: step size of the student's SGD, learned with the images",
        description="The student's learning rate over iterations",
    )
    return section("Student's learning rate", chart + hint(f"From {ys[0]:.4g} to {ys[-1]:.4g}."), name="learning-rate")


def _layers(history: History, settings: Mapping[str, object], missing: list[str]) -> Markup:
    heading, name = "Matching loss by layer", "layers"
    names = list(dict.fromkeys(key for row in history for key in row if key.startswith(LAYER_LOSS)))
    if not names:
        if settings.get("method") not in LOSSES:
            unknown = settings.get("layer_loss_every") or not history
            missing.append(f"{heading}: {'nothing recorded' if unknown else 'switched off (layer_loss_every 0)'}.")
        return Markup()
    columns = {key: column(history, key) for key in names}
    window = smoothing_window(max(len(ys) for _, ys in columns.values()))
    lines = []
    layers = layer_names([key.removeprefix(LAYER_LOSS) for key in names], settings.get("model"))
    called = dict(zip(names, layers, strict=True))
    for number, (key, (xs, ys)) in enumerate(columns.items()):
        # Every record is of another start epoch, which decides more than the layer does.
        smooth = moving_median(ys, window) if len(ys) > 2 * window else ys
        colour = f"series r{round(7 * number / max(1, len(names) - 1))}"
        lines.append(Line(xs, smooth, called[key], colour))
    chart = line_chart(
        lines,
        x_label="iteration",
        y_label="distance to the expert, relative to the start, layer by layer",
        description="Matching loss of every layer over iterations",
        limit=1.0,
        limit_label="no nearer than at the start",
    )
    late = {key: median(ys[-max(1, len(ys) // 4) :]) for key, (_, ys) in columns.items() if ys}
    near, far = min(late, key=lambda key: late[key]), max(late, key=lambda key: late[key])
    words = (
        f"Medians of the last quarter: lowest {late[near]:.3g} in {called[near]}, "
        f"highest {late[far]:.3g} in {called[far]}. Shallow to deep; layers that a mask leaves out of "
        "the loss are measured as well."
    )
    return section(heading, chart + hint(words), name=name)


def _cost(stages: Mapping[str, StageCost], environment: Mapping[str, str], missing: list[str]) -> Markup:
    if not stages:
        missing.append("Time and memory: not recorded.")
        return Markup()
    gpu = any(cost.peak_gpu_mib is not None for cost in stages.values())
    rows = []
    for stage, cost in stages.items():
        remark = "from the cache" if cost.reused else "continued; of the last part" if cost.resumed else ""
        row = [STAGES.get(stage, stage), "running" if cost.seconds is None else duration(cost.seconds)]
        row.append("" if cost.peak_mib is None else f"{cost.peak_mib:,.0f}")
        if gpu:
            row.append("" if cost.peak_gpu_mib is None else f"{cost.peak_gpu_mib:,.0f}")
        rows.append([*row, remark])
    times = [cost.seconds for cost in stages.values() if cost.seconds is not None]
    if times:
        rows.append(["all", duration(sum(times)), *[""] * (2 + gpu)])
    header = ["Stage", "Time", "Peak memory, MiB", *(["Peak GPU memory, MiB"] if gpu else []), ""]
    where = [environment.get("cpu", ""), environment.get("cuda", "").partition("yes: ")[2]]
    words = "Memory is the process's, Python and torch included"
    words += "." if all(cost.per_stage for cost in stages.values()) else ", the most up to the end of the stage."
    if any(where):
        words += f" On {', '.join(filter(None, where))}; threads: {environment.get('threads', 'unknown')}."
    return section(
        "Time and memory", table(header, rows, numbers=(1, 2, 3) if gpu else (1, 2)) + hint(words), name="cost"
    )


_SUMMARY = ("dataset", "method", "ipc", "model", "iterations", "seed")
