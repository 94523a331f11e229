"""Contents of a store, and checks that they are still what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError
from ..settings.snapshot_ranges import format_snapshots
from .store import STORE, ExpertStore, scan

_SHOWN_FIRST = ("model", "dataset", "normalization", "optimizer", "augmentation", "curriculum", "prune", "seed")


@dataclass(frozen=True)
class Finding:
    """Result of :func:`examine` for one expert, which is sound when `problem` is None."""

    expert: int
    problem: str | None


def examine(folder: str | os.PathLike[str]) -> Iterator[Finding]:
    """Read every byte of every expert of a store and compare it with its checksums.

    Raises:
        StoreError: `store.json` cannot be used.
    """
    store, problems = scan(Path(folder))
    for number in range(len(store) + len(problems)):
        if number in problems:
            yield Finding(number, str(problems[number]))
            continue
        file = store.expert_file(number)
        rows = file.damaged_rows()
        if not rows:
            yield Finding(number, None)
            continue
        snapshots = format_snapshots(store.kept[row] for row in rows)
        yield Finding(
            number,
            f"{file.path} is damaged: the bytes of snapshot {snapshots} have changed; delete it to train this expert "
            "again, the others stay usable",
        )


def describe_store(folder: str | os.PathLike[str]) -> str:
    """Describe a store in a few lines of text.

    Raises:
        StoreError: nothing usable there.
    """
    folder = Path(folder)
    problems: dict[int, StoreError] = {}
    if (folder / STORE).exists():
        store, problems = scan(folder)
    else:
        store = ExpertStore.open(folder)
    size = len(store) * store.bytes_per_expert
    kind = f"{store.storage}, checksums" if store.metadata else "replay buffers of the reference"
    lines = [
        f"{folder}: {kind}",
        f"experts      {len(store)}, {size / 1e9:.3g} GB",
        f"snapshots    {format_snapshots(store.kept)} of {store.epochs} epochs",
        f"parameters   {store.parameter_count:,}",
    ]
    known = [name for name in _SHOWN_FIRST if name in store.metadata]
    for name in [*known, *(name for name in store.metadata if name not in known and name not in _SAID)]:
        value = store.metadata[name]
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name:<12} {text}")
    numbers = [number for number in range(len(store) + len(problems)) if number not in problems]
    facts = [store.facts(number) for number in numbers]
    losses = [fact["loss"] for fact in facts if "loss" in fact]
    if losses:
        lines.append(f"loss         {min(losses):.4f} to {max(losses):.4f} in the last epoch")
    last = [list(fact["accuracy"].values())[-1] for fact in facts if "accuracy" in fact]
    if last:
        mean = sum(last) / len(last)
        lines.append(f"test         {mean:.2f}% on average, {min(last):.2f} to {max(last):.2f}, of {len(last)} experts")
    lines += [f"problem      {problem}" for problem in problems.values()]
    return "\n".join(lines)


_SAID = ("format", "parameter_count", "epochs", "kept", "storage", "shapes")
