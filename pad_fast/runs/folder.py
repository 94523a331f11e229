"""A run's folder as it is at this moment: finished, in progress, killed, or copied without some of its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.distilled import FILE, DistilledDataset, load
from ..distillation.metrics import read_metrics
from ..distillation.state import read_checkpoint
from ..errors import StoreError
from ..evaluation import AccuracyRow, EvaluationReport, RobustScore
from ..evaluation.table import numbers
from ..runtime import files, locks
from .preview import Preview, read_preview
from .timing import FILE as TIMING
from .timing import StageCost, read_timing

DESCRIPTION = "run.json"
METRICS = "metrics.jsonl"
LOCK = "run.lock"


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What a run has written so far.

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
    return (folder / DESCRIPTION).is_file() or (folder / FILE).is_file()


def is_running(folder: Path) -> bool | None:
    """Whether a process works on the run in `folder`; None where that cannot be told."""
    return locks.is_locked(folder / LOCK)


def runs_in(folder: Path) -> list[Path]:
    """The folders of runs right below `folder`, or below its `runs` (a sweep's), by name."""
    for place in (folder, folder / "runs"):
        try:
            found = sorted(path for path in place.iterdir() if path.is_dir() and is_run(path))
        except OSError:
            continue
        if found:
            return found
    return []


def read_run(folder: Path) -> RunFolder:
    """Read everything that is there; only what makes the folder a run has to be.

    Raises:
        StoreError: the folder holds no run of pad_fast, or its description is damaged.
    """
    if not is_run(folder):
        found = "no run of pad_fast" if folder.is_dir() else "no folder"
        raise StoreError(
            f"{folder}: there is {found} ({DESCRIPTION} is missing); name the folder that `pad-fast distill` wrote"
        )
    # Asked first: a run that ends meanwhile has then finished, not stopped.
    running = is_running(folder)
    notes: list[str] = []
    stages: Mapping[str, StageCost] = {}
    environment: Mapping[str, Any] = {}
    finished = (folder / FILE).is_file() and (folder / "evaluation.json").is_file()
    if (folder / TIMING).is_file():
        try:
            timing = read_timing(folder)
            stages, environment, finished = timing.stages, timing.environment, timing.finished
        except StoreError as error:
            notes.append(str(error).replace(f"{folder}{os.sep}", ""))
    preview = _optional(folder / "preview.safetensors", lambda: read_preview(folder), notes)
    history = read_metrics(folder / METRICS, notes)
    # A run that replaces another finds its results in the folder; until its own stages are over they are not its.
    distilled = None
    if _over("distill", stages, finished):
        distilled = _optional(folder / FILE, lambda: load(folder), notes)
        if distilled is not None and not history:
            history = tuple(distilled.history)
    described = _settings(folder, distilled)
    if distilled is None:
        path = folder / "checkpoint"
        distilled = _optional(path, lambda: _so_far(path, described, preview, len(history)), notes)
    accuracy: tuple[AccuracyRow, ...] = ()
    robust: tuple[RobustScore, ...] = ()
    tried: Mapping[int, tuple[float, ...]] = {}
    chosen = None
    if _over("distill", stages, finished):
        path = folder / "validation.json"
        tried, chosen = _optional(path, partial(_validation, path), notes) or ({}, None)
    if _over("evaluate", stages, finished):
        for path in [folder / "evaluation.json", *sorted(folder.glob("evaluation-*.json"))]:
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
    )


def _over(stage: str, stages: Mapping[str, StageCost], finished: bool) -> bool:
    """Whether the results of a stage in the folder are this run's."""
    if finished or not stages:
        return True
    cost = stages.get(stage)
    return cost is not None and cost.seconds is not None


def _settings(folder: Path, distilled: DistilledDataset | None) -> Mapping[str, Any]:
    if (folder / DESCRIPTION).is_file():
        described = files.read_json(folder / DESCRIPTION, "run description")
        if not isinstance(described, dict):
            raise StoreError(f"{folder / DESCRIPTION} does not describe a run; it is truncated or not ours")
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
    """What `read` returns; None where the file is missing, and a note where it is damaged."""
    if not path.is_file():
        return None
    try:
        return read()
    except StoreError as error:
        # Where the folder lies is nobody's business whom the page is sent to.
        notes.append(str(error).replace(f"{path.parent}{os.sep}", ""))
        return None
