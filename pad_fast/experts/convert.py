"""Experts from one form into another, one at a time."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import ConfigError
from ..runtime import files
from ..runtime.progress import Progress
from ..settings.snapshot_ranges import parse_snapshots
from .store import ExpertStore, shapes_text

REPLAY_EXPERTS = 10
"""Experts in one `replay_buffer_*.pt`, as the reference writes them."""


def convert_experts(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    replay: bool = False,
    keep: str = "all",
    storage: str = "float32",
    progress: Progress | bool | None = None,
) -> ExpertStore:
    """Write the experts of a store, or of a folder of `replay_buffer_*.pt`, in another form.

    A conversion that was interrupted is continued by repeating it. A store written from one in float32 is what
    training with these `keep` and `storage` would have written, and can be continued.

    Args:
        replay: write the reference's `replay_buffer_*.pt`; else a store.
        keep, storage: of the store, see :func:`pad_fast.train_experts`.

    Returns:
        The written experts, opened.

    Raises:
        ConfigError: snapshots that the source does not have, or storage that has lost something before.
        StoreError: the source is damaged, or the destination cannot be written.
    """
    opened = ExpertStore.open(source)
    target, progress = Path(destination), Progress.of(progress)
    if replay:
        files.require_writable(target)
        opened.require_snapshots(range(opened.epochs + 1))
        parts = [range(len(opened))[first : first + REPLAY_EXPERTS] for first in range(0, len(opened), REPLAY_EXPERTS)]
        for number, part in enumerate(progress.track(parts, "convert", total=len(parts), unit="file")):
            path = target / f"replay_buffer_{number}.pt"
            if not path.exists():
                opened.write_replay_buffer(path, experts=part)
        return ExpertStore.from_replay_buffers(target)
    if opened.storage != "float32":
        raise ConfigError(
            f"{opened.folder} is stored in {opened.storage}, and what that has rounded is lost: convert the float32 "
            "experts it was made from, or write replay buffers"
        )
    kept = [epoch for epoch in parse_snapshots(keep, opened.epochs) if keep != "all" or epoch in opened.kept]
    opened.require_snapshots(kept)
    metadata = {key: value for key, value in opened.metadata.items() if key not in _SIZES}
    store = ExpertStore.create(
        target,
        parameter_count=opened.parameter_count,
        epochs=opened.epochs,
        kept=kept,
        storage=storage,
        metadata=metadata or {"shapes": shapes_text(opened.shapes), "origin": "replay buffers"},
    )
    missing = store.missing(len(opened))
    done = len(opened) - len(missing)
    for expert in progress.track(missing, "convert", total=len(opened), done=done, unit="expert"):
        claim = store.claim(expert, wait=True)
        if claim is not None:
            with claim:
                store.finish(claim, torch.stack([opened.snapshot(expert, e) for e in kept]), opened.facts(expert))
    return ExpertStore.open(target)


_SIZES = ("format", "parameter_count", "epochs", "kept", "storage")
