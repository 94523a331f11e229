"""`pad_fast.resume`: a run goes on with what its folder says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..data import load_dataset
from ..data.distilled import DistilledDataset
from ..errors import ConfigError, DatasetError
from ..runs.folder import PLACE, is_run, read_description, require_run, runs_in
from ..runs.trackers import require_trackers
from ..runtime import files
from ..runtime.device import resolve_device
from ..runtime.progress import Progress
from ..settings.config import Config, completed
from ..settings.resolve import Settings
from .checks import place_of
from .configured import configured_data
from .pipeline import Pipeline
from .sweep import shared_cache


def resume(
    folder: str | os.PathLike[str],
    *,
    iterations: int | None = None,
    dataset: Any = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    device: str | None = None,
    log: str | Sequence[str] = (),
    progress: Progress | bool | None = None,
) -> DistilledDataset:
    """Continue a run where it stopped, with the settings in its folder; a finished one is read, or goes on for longer.

    Args:
        folder: of the run, as :func:`pad_fast.distill` wrote it.
        iterations: how many there shall be in all; those it was begun with when None.
        dataset: the data, where they were given as tensors or objects, or are elsewhere now.
        data_dir, device: those it was begun with when None.
        download, log, progress: see :func:`pad_fast.distill`.

    Returns:
        The distilled set, as an undisturbed run returns it.

    Raises:
        InputError: no run there, data that are not those it began with, or iterations it is beyond already; before any
            work. DistillationStopped: see :func:`pad_fast.distill`.
    """
    folder, progress, trackers = Path(folder), Progress.of(progress), (log,) if isinstance(log, str) else tuple(log)
    require_trackers(trackers)
    config, fingerprint = _begun(folder)
    if iterations is not None:
        config = replace(config, iterations=iterations)
    written: dict[str, Any] = {}
    if (folder / PLACE).exists():
        with files.reading(folder / PLACE, "place"):
            written = dict(files.read_json(folder / PLACE, "place"))
    settings = Settings(
        config,
        written.get("data_dir") if data_dir is None else data_dir,
        str(written.get("device", "auto")) if device is None else device,
        {},
    )
    given = config.dataset if dataset is None else dataset
    which = (
        f"Name the data that the run began with: pad_fast.resume({str(folder)!r}, dataset=...), or, of files, "
        "pad-fast resume --dataset"
    )
    try:
        data = load_dataset(
            given, data_dir=settings.data_dir, resolution=config.resolution, download=download, progress=progress
        )
    except DatasetError as error:
        raise error if dataset is not None else DatasetError(f"{error} {which}") from error
    if configured_data(config, data, None)[0].fingerprint != fingerprint:
        raise DatasetError(f"{data!r} is not what {folder} began with. {which}")
    pipeline = Pipeline(
        config,
        folder,
        resolve_device(settings.device),
        progress,
        resume=True,
        overwrite=False,
        log=trackers,
        cache=shared_cache(folder),
        place=place_of(settings, named=isinstance(given, str)),
    )
    return pipeline.run(data, None)


def _begun(folder: Path) -> tuple[Config, str]:
    """Settings and data of the run in a folder.

    Raises:
        InputError: none is there, or it has settings that this version has not.
    """
    if not is_run(folder) and runs_in(folder):
        raise ConfigError(f"{folder} holds several runs; name one of them, or repeat the sweep, which continues all")
    require_run(folder)
    described = completed(read_description(folder))
    fingerprint = str(described.pop("dataset_fingerprint", ""))
    unknown = [name for name in described if name not in {item.name for item in fields(Config)}]
    if unknown:
        raise ConfigError(f"{folder} is of another version of pad_fast: this one has no setting {unknown[0]!r}")
    return Config(**described), fingerprint
