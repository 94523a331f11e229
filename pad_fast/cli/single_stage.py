"""Commands that run a single stage as a run would, and write to `--out`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings.config import Config
from .options import given, place, progress
from .published import settings_of

if TYPE_CHECKING:
    import torch

    from ..data import ImageDataset, Normalization
    from ..runtime.progress import Progress


UNUSED_ALONE = (
    "precision",
    "split",
    "cache",
    "checkpoint_every",
    "layer_loss_every",
    "validation_every",
    "validation_networks",
)
"""Settings of how a whole run runs that score networks and experts do not use."""


@dataclass(frozen=True)
class StageInputs:
    """Settings and data that every stage begins with."""

    config: Config
    data: ImageDataset
    normalization: Normalization
    device: torch.device
    progress: Progress


def stage_inputs(options: argparse.Namespace) -> StageInputs:
    """Resolve the settings, load the data and fit its normalisation."""
    from ..data import fit_normalization
    from ..pipeline.configured import configured_data, normalization_caches
    from ..runtime.device import resolve_device
    from ..settings.resolve import make_settings

    settings = make_settings(
        preset_name=options.preset,
        config=settings_of(options),
        overrides=given(options),
        # Files are those of the programs that distil, whatever stage reads them; a typed line is the stage's own.
        program="experts" if options.published else "distill",
        **place(options),
    )
    for note in settings.notes:
        progress(options).say(note)
    config, device = settings.config, resolve_device(settings.device)
    data, _ = configured_data(
        config, config.dataset, settings.data_dir, download=options.download, progress=progress(options)
    )
    out = Path(options.out)
    caches = normalization_caches(out.parent if out.suffix else out)
    normalization = fit_normalization(
        data, "zca" if config.zca else "mean-std", caches=caches, progress=progress(options)
    )
    return StageInputs(config, data, normalization, device, progress(options))
