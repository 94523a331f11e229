"""A run's folder: the names of its files, and reading it as it is at this moment.

A run may be finished, in progress, killed, or copied without some of its files. Whoever writes or reads a file of a run
takes its name from here; those that a lower layer writes are named there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.distilled import DISTILLED, DistilledDataset, load
from ..data.trio import BEST_FILES
from ..distillation.metrics import METRICS, read_metrics
from ..distillation.state import CHECKPOINT, read_checkpoint
from ..errors import StoreError
from ..evaluation import AccuracyRow, EvaluationReport, RobustScore
from ..evaluation.table import numbers
from ..runtime import files, locks
from .film import FILM, Film, read_film
from .preview import PREVIEW, Preview, read_preview
from .timing import TIMING, StageCost, read_timing

__all__ = [
    "CACHE",
    "CHECKPOINT",
    "CONFIG",
    "CONVOLUTIONS",
    "DESCRIPTION",
    "DISTILLED",
    "EVALUATION",
    "EVALUATION_CACHE",
    "FILM",
    "LAST",
    "LOCK",
    "METRICS",
    "PAGE",
    "PICTURE",
    "PLACE",
    "PREVIEW",
    "RUNS",
    "TIMING",
    "VALIDATION",
    "RunFolder",
    "evaluation_of",
    "is_run",
    "is_running",
    "read_description",
    "read_run",
    "require_run",
    "runs_in",
    "write_validation",
]

CONFIG = "config.yaml"
DESCRIPTION = "run.json"
EVALUATION = "evaluation.json"
CONVOLUTIONS = "convolutions.json"
"""The routes of convolutions that were chosen by measurement on the run's card; only where there were any."""
VALIDATION = "validation.json"
PLACE = "place.json"
"""The folder of the named data sets and the device that were given, for :func:`pad_fast.resume`."""
PICTURE = "images.png"
PAGE = "report.html"
LOCK = "run.lock"

LAST = "last"
"""Folder of the last iterate, where validation chose another one."""

CACHE = "cache"
"""Folder of what may be deleted and is computed again: scores, experts, a fitted ZCA, iterates, evaluation results."""

EVALUATION_CACHE = "evaluation"
"""Folder in the cache, with a file per evaluated network."""

RUNS = "runs"
"""Folder of a sweep's runs."""


WRITTEN = (
    CONFIG,
    DISTILLED,
    *BEST_FILES,
    CHECKPOINT,
    METRICS,
    EVALUATION,
    VALIDATION,
    PICTURE,
    PAGE,
    PREVIEW,
    FILM,
    TIMING,
    CONVOLUTIONS,
    PLACE,
    LAST,
)
"""What a run writes beside its description, and may write over."""

_OTHER_EVALUATIONS = "evaluation-*.json"


@dataclass(frozen=True, eq=False)
class RunFolder:
    """Everything a run has written so far.

    Attributes:
        path: the folder.
        settings: the run's configuration.
        environment: versions and machine it ran with; empty where it did not say.
        history: rows of metrics.jsonl.
        accuracy, robust: rows and scores of evaluation.json, and of files named evaluation-*.json beside it.
        validation: iteration and accuracies of the iterates that were tried, from validation.json; `chosen` is the one
            that became the result.
        distilled: the result, or what the last checkpoint holds; None before the first one.
        stages: what each stage cost.
        finished: the run got to its end.
        running: a process is working on it; None where that cannot be told, as of runs of older versions.
        preview: what is shown of the real data.
        notes: what could not be read, and what is therefore missing.
        film: how the images came to be; None for runs of older versions.
    """

    path: Path
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    history: tuple[Mapping[str, float], ...]
    accuracy: tuple[AccuracyRow, ...]
    robust: tuple[RobustScore, ...]
    validation: tuple[tuple[int, tuple[float, ...]], ...]
    chosen: int | None
    distilled: DistilledDataset | None
    stages: Mapping[str, StageCost]
    finished: bool
    running: bool | None
    preview: Preview | None
    notes: tuple[str, ...]
    film: Film | None = None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def ended(self) -> bool:
        """Whether nothing more will come: the run has finished, was killed or has failed."""
        return self.finished if self.running is None else not self.running


def is_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return (folder / DESCRIPTION).is_file() or (folder / DISTILLED).is_file()


def require_run(folder: Path) -> None:
    """Refuse a folder in which no run has begun.

    Raises:
        StoreError: it is none, or there is no folder.
    """
    if not is_run(folder):
        found = "no run of pad_fast" if folder.is_dir() else "no folder"
        raise StoreError(
            f"{folder}: there is {found} ({DESCRIPTION} is missing); name the folder that `pad-fast distill` wrote"
        )


def is_running(folder: Path) -> bool | None:
    """Whether a process works on the run in `folder`; None where that cannot be told."""
    return locks.is_locked(folder / LOCK)


def runs_in(folder: Path) -> list[Path]:
    """The folders of runs right below `folder`, or below its :data:`RUNS` (a sweep's), by name."""
    for place in (folder, folder / RUNS):
        try:
            found = sorted(path for path in place.iterdir() if path.is_dir() and is_run(path))
        except OSError:
            continue
        if found:
            return found
    return []


def read_description(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder, and the fingerprint of its data set.

    Raises:
        StoreError: missing, or damaged.
    """
    described = files.read_json(folder / DESCRIPTION, "run description")
    if not isinstance(described, dict):
        raise StoreError(f"{folder / DESCRIPTION} does not describe a run; it is truncated or not ours")
    return described


def write_validation(folder: Path, accuracies: Mapping[int, tuple[float, ...]], best: int) -> None:
    """Write the accuracies of the iterates that were tried, by iteration, and which of them was chosen."""
    named = {str(iteration): values for iteration, values in accuracies.items()}
    files.write_json(folder / VALIDATION, {"best": best, "accuracies": named})


def read_run(folder: Path) -> RunFolder:
    """Read everything that is there; only what makes the folder a run has to be.

    Raises:
        StoreError: the folder holds no run of pad_fast, or its description is damaged.
    """
    require_run(folder)
    # Asked first: a run that ends meanwhile has then finished, not stopped.
    running = is_running(folder)
    notes: list[str] = []
    stages: Mapping[str, StageCost] = {}
    environment: Mapping[str, Any] = {}
    finished = (folder / DISTILLED).is_file() and (folder / EVALUATION).is_file()
    if (folder / TIMING).is_file():
        try:
            timing = read_timing(folder)
            stages, environment, finished = timing.stages, timing.environment, timing.finished
        except StoreError as error:
            notes.append(str(error).replace(f"{folder}{os.sep}", ""))
    preview = _optional(folder / PREVIEW, lambda: read_preview(folder), notes)
    history = read_metrics(folder / METRICS, notes)
    # A run that replaces another finds its results in the folder; until its own stages are over they are not its.
    distilled = None
    if _over("distill", stages, finished):
        distilled = _optional(folder / DISTILLED, lambda: load(folder), notes)
        if distilled is not None and not history:
            history = tuple(distilled.history)
    described = _settings(folder, distilled)
    if distilled is None:
        path = folder / CHECKPOINT
        distilled = _optional(path, lambda: _so_far(path, described, preview, len(history)), notes)
    film = None if distilled is None else _optional(folder / FILM, lambda: read_film(folder), notes)
    if film is not None and int(film.indices.max()) >= len(distilled.labels):
        film = None  # of a run that this one replaces
    accuracy: tuple[AccuracyRow, ...] = ()
    robust: tuple[RobustScore, ...] = ()
    tried: Mapping[int, tuple[float, ...]] = {}
    chosen = None
    if _over("distill", stages, finished):
        path = folder / VALIDATION
        tried, chosen = _optional(path, partial(_validation, path), notes) or ({}, None)
    if _over("evaluate", stages, finished):
        for path in [folder / EVALUATION, *sorted(folder.glob(_OTHER_EVALUATIONS))]:
            report = _optional(path, partial(EvaluationReport.read, path), notes) or EvaluationReport(())
            accuracy, robust = accuracy + report.rows, robust + report.scores
    return RunFolder(
        path=folder,
        settings=described,
        environment=environment,
        history=history,
        accuracy=accuracy,
        robust=robust,
        validation=tuple(sorted(tried.items())),
        chosen=chosen,
        distilled=distilled,
        stages=stages,
        finished=finished,
        running=running,
        preview=preview,
        notes=tuple(notes),
        film=film,
    )


def evaluation_of(folder: Path) -> tuple[AccuracyRow, ...]:
    """The rows of the table that a run ended in; none where it has not, or its files cannot be read."""
    stages: Mapping[str, StageCost] = {}
    finished = True
    try:
        if (folder / TIMING).is_file():
            timing = read_timing(folder)
            stages, finished = timing.stages, timing.finished
        return EvaluationReport.read(folder / EVALUATION).rows if _over("evaluate", stages, finished) else ()
    except StoreError:
        return ()


def _over(stage: str, stages: Mapping[str, StageCost], finished: bool) -> bool:
    """Whether the results of a stage in the folder are this run's."""
    if finished or not stages:
        return True
    cost = stages.get(stage)
    return cost is not None and cost.seconds is not None


def _settings(folder: Path, distilled: DistilledDataset | None) -> Mapping[str, Any]:
    if (folder / DESCRIPTION).is_file():
        described = read_description(folder)
        described.pop("dataset_fingerprint", None)
        return described
    return {} if distilled is None else distilled.config


def _so_far(path: Path, settings: Mapping[str, Any], preview: Preview | None, rows: int) -> DistilledDataset | None:
    """The images of a checkpoint, unless it is that of a run which this one replaces."""
    with read_checkpoint(path) as (tensors, described):
        if int(described["iteration"]) > rows:
            return None
        soft = settings.get("soft_labels", True) and "label_logits" in tensors
        return DistilledDataset(
            images=tensors.get("average", tensors["images"]),
            label_logits=tensors["label_logits"] if soft else None,
            labels=tensors["labels"],
            lr=float(tensors["lr"]) if "lr" in tensors else 1.0,
            whitening=None if preview is None else preview.normalization,
            config=settings,
            class_names=() if preview is None else preview.class_names,
        )


def _validation(path: Path) -> tuple[dict[int, tuple[float, ...]], int]:
    stored = files.read_json(path, "validation")
    with files.reading(path, "validation"):
        tried = {int(iteration): numbers(values) for iteration, values in stored["accuracies"].items()}
        return tried, int(stored["best"])


def _optional(path: Path, read: Any, notes: list[str]) -> Any:
    """The value of `read`; None where the file is missing, and a note where it is damaged."""
    if not path.is_file():
        return None
    try:
        return read()
    except StoreError as error:
        # Where the folder lies is nobody's business whom the page is sent to.
        notes.append(str(error).replace(f"{path.parent}{os.sep}", ""))
        return None
