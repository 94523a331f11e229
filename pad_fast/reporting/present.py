"""From a run's folder to `images.png` and `report.html`: once, or again and again while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..distillation.skipping import hardly_updated
from ..errors import DistillationStopped, PadFastError
from ..experts import Curriculum, curriculum_of
from ..runs.folder import (
    CHECKPOINT,
    DESCRIPTION,
    DISTILLED,
    EVALUATION,
    METRICS,
    PAGE,
    PICTURE,
    TIMING,
    VALIDATION,
    RunFolder,
    is_run,
    is_running,
    read_run,
    runs_in,
)
from ..runs.preview import Preview, ends
from ..runtime import files
from ..runtime.environment import flat
from ..settings.config import Config
from .contact_sheet import image_grid, png_bytes, single_png
from .difficulty_section import DifficultyView
from .html.gallery import Picture, PictureRow
from .names import data_name
from .numbers import images_per_class
from .pictures import class_names, film_strip, picture_rows
from .report import ReportData, Status, render_report
from .use_section import SetShape

REFRESH = 5
"""Seconds after which a page that is being watched loads itself again."""

_FILES = (DESCRIPTION, METRICS, CHECKPOINT, DISTILLED, VALIDATION, EVALUATION, TIMING)


def present(folder: Path, out: Path | None = None) -> Path:
    """Write `images.png` (where there are images) and `report.html` of a run; returns the page's path.

    The run need not have finished.

    Args:
        out: another folder to write to, or the page's file (.html), which the picture is put beside.

    Raises:
        StoreError: the folder holds no run, or cannot be written to.
    """
    return _present(read_run(folder), page_of(folder, out), refresh=None)


def watch(
    folder: Path,
    *,
    out: Path | None = None,
    every: float = 2.0,
    wait: Callable[[float], None] | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Path:
    """Write the page whenever the run has written something, until the run has ended.

    Meanwhile the page loads itself again every few seconds; the last one, which Ctrl-C brings as well, does not.

    Args:
        folder: of the run, which may be about to begin.
        out: as for :func:`present`.
        every: seconds between looks.
        wait: waits that long; `time.sleep` when None.
        say: is told what happens.

    Raises:
        StoreError: the folder is none, or holds something else.
        DistillationStopped: the run was killed or has failed; the page shows how far it got.
    """
    seen: tuple[Any, ...] | None = None
    pause = wait or time.sleep
    try:
        if _may_begin(folder):
            say(f"no run in {folder} yet; waiting for one to begin")
        while _may_begin(folder):
            pause(every)
        while True:
            now = _signature(folder)
            if now != seen:
                run = read_run(folder)
                path = _present(run, page_of(folder, out), refresh=None if run.ended else REFRESH)
                if seen is None:
                    say(f"watching {folder}: {path}")
                seen = now
                if run.ended and not run.finished:
                    raise DistillationStopped(
                        f"the run in {folder} was killed or has failed; {path} shows how far it got, and "
                        f"`pad-fast resume {folder}` continues it"
                    )
                if run.ended:
                    say("the run has finished")
                    return path
            pause(every)
    except KeyboardInterrupt:
        say("stopped watching")
        return present(folder, out)


def report_data(run: RunFolder) -> ReportData:
    """Contents of the report of a run."""
    settings, distilled, preview = run.settings, run.distilled, run.preview
    status = None
    if not run.finished:
        total = settings.get("iterations")
        stage = next(reversed([*run.stages]), "data")
        status = Status(stage, len(run.history), total if isinstance(total, int) else None, run.ended)
    note = ""
    images: tuple[PictureRow, ...] = ()
    strip, shape = None, None
    if distilled is not None:
        images, note = picture_rows(distilled, run.film)
        last = len(run.history) if run.chosen is None else run.chosen
        strip = film_strip(distilled, run.film, last, finished=run.finished)
        if run.finished:
            shape = SetShape(tuple(distilled.images.shape), distilled.label_logits is not None)
    return ReportData(
        title=title_of(settings),
        settings=settings,
        environment=flat(run.environment),
        accuracy=run.accuracy,
        robust=run.robust,
        accuracy_history=run.validation,
        chosen=run.chosen,
        history=run.history,
        images=images,
        image_note=note,
        film=strip,
        shape=shape,
        difficulty=_difficulty(settings, preview),
        stages=run.stages,
        training_images=sum(map(len, preview.scores)) if preview is not None and preview.scores else None,
        status=status,
        notes=(*run.notes, *filter(None, [hardly_updated(run.history) if run.finished else None])),
    )


def title_of(settings: Mapping[str, Any]) -> str:
    """Headline of a run's report."""
    number = images_per_class(settings)
    images = "1 image" if number == "1" else f"{number} images"
    method = str(settings.get("method", "distilled")).upper()
    return f"{method} on {data_name(settings.get('dataset', 'unknown data'))}, {images} per class"


def page_of(folder: Path, out: Path | None) -> Path:
    """The file of the page; arguments as for :func:`present`."""
    if out is None:
        return folder / PAGE
    return out if out.suffix.lower() in (".html", ".htm") else out / PAGE


def _present(run: RunFolder, page: Path, *, refresh: int | None) -> Path:
    distilled = run.distilled
    if distilled is not None:
        pixels = distilled.images if distilled.whitening is None else distilled.pixels()
        drawn = image_grid(
            pixels,
            distilled.labels,
            class_names(distilled),
            stretch=distilled.whitening is None,
            moved=distilled.moved,
        )
        files.write_bytes(page.parent / PICTURE, png_bytes(drawn))
    return files.write_text(page, render_report(report_data(run), refresh=refresh))


def _difficulty(settings: Mapping[str, Any], preview: Preview | None) -> DifficultyView | None:
    if preview is None or not preview.scores:
        return None
    known = {item.name for item in fields(Config)}
    try:
        config = Config(**{key: value for key, value in settings.items() if key in known})
        curriculum, epochs, rule = curriculum_of(config), config.train_epochs, config.prune
    except (PadFastError, TypeError):
        # Settings of another version: the scores can still be shown.
        curriculum, epochs, rule = Curriculum.none(), 1, "none"
    pictures = []
    for name, scores, images in zip(preview.class_names, preview.scores, preview.images, strict=False):
        ranks = ends(scores.new_tensor(range(len(scores)))).long().tolist()
        row = []
        for position, (rank, image) in enumerate(zip(ranks, images, strict=True)):
            title = f"{name}, number {rank + 1:,} of {len(scores):,} from the easiest"
            note = f"{preview.method} {float(scores[rank]):.4g}"
            gap = position > 0 and rank != ranks[position - 1] + 1
            row.append(Picture(single_png(image), title, note=note, gap=gap))
        pictures.append(PictureRow(name, row))
    return DifficultyView(
        method=preview.method or "score",
        scores={name: scores.tolist() for name, scores in zip(preview.class_names, preview.scores, strict=True)},
        curriculum=curriculum,
        epochs=epochs,
        prune=rule,
        pictures=pictures,
    )


def _may_begin(folder: Path) -> bool:
    """Whether there is nothing yet but room for a run."""
    return not is_run(folder) and not runs_in(folder) and (folder.is_dir() or not folder.exists())


def _signature(folder: Path) -> tuple[Any, ...]:
    """Changes when a run writes something, and when it ends."""
    seen: list[tuple[str, int, int]] = []
    for name in _FILES:
        try:
            state = (folder / name).stat()
        except OSError:
            continue
        seen.append((name, state.st_mtime_ns, state.st_size))
    return (is_running(folder), *seen)
