"""The reference's expert files: `replay_buffer_{n}.pt`, lists of trajectories of snapshots of parameter tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import StoreError
from ..runtime import files

_NAME = re.compile(r"replay_buffer_(\d+)\.pt")
# A file's list of tensors takes about a thousandth of the weights it points to; those stay on the disk.
_FILES_OPEN = 16


def replay_files(folder: Path) -> list[Path]:
    """The replay buffers in a folder, in the order of their numbers."""
    found = [(match, path) for path in _listing(folder) if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda entry: int(entry[0][1]))]


def replay_folders(root: Path) -> list[Path]:
    """Every folder with replay buffers at `root` or below it, where published programs put them by data and network."""
    return sorted({file.parent for file in root.rglob("replay_buffer_*.pt")})


def _listing(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


class ReplayBuffers:
    """Experts in a folder of `replay_buffer_*.pt`, read through a memory map: what is not asked for stays on the disk.

    Raises:
        StoreError: no such files, or one with another layout, or whose snapshots are one and the same.
    """

    def __init__(self, folder: Path) -> None:
        paths = replay_files(folder)
        if not paths:
            raise StoreError(f"no replay_buffer_*.pt files in {folder}")
        self._load = lru_cache(maxsize=_FILES_OPEN)(_load)
        self._places: list[tuple[Path, int]] = []
        shapes: set[tuple[int, int]] = set()
        for path in paths:
            content = self._load(path)
            try:
                shapes |= {(len(snapshots), sum(p.numel() for p in one)) for snapshots in content for one in snapshots}
                if not all(len(snapshots) and all(len(one) for one in snapshots) for snapshots in content):
                    raise ValueError("an empty list")
            except (TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise StoreError(
                    f"{path} is not a replay buffer: expected a list of trajectories, each a list of snapshots, "
                    f"each a list of parameter tensors ({error})"
                ) from error
            for index, snapshots in enumerate(content):
                if any(map(_is_same_memory, snapshots, snapshots[1:])):
                    raise StoreError(
                        f"trajectory {index} of {path} holds the same weights in every snapshot: all of them are one "
                        "piece of memory, as where a program on a CPU keeps `p.detach().cpu()`, which copies nothing "
                        "there; write the file again with `.clone()` behind it"
                    )
            self._places += [(path, index) for index in range(len(content))]
        if not shapes:
            raise StoreError(f"the replay buffers in {folder} hold no trajectory")
        if len(shapes) > 1:
            raise StoreError(
                f"trajectories in {folder} have different [snapshots, parameters]: {sorted(shapes)}; "
                "keep one kind per folder"
            )
        self.snapshots, self.parameter_count = shapes.pop()
        self.shapes = tuple(p.shape for p in self._load(paths[0])[0][0])

    def __len__(self) -> int:
        return len(self._places)

    def path(self, expert: int) -> Path:
        """The file that holds an expert."""
        return self._places[expert][0]

    def read(self, expert: int, row: int, out: Tensor) -> Tensor:
        """Weights of snapshot `row` into `out` `[P]`.

        Raises:
            StoreError: they are not finite.
        """
        path, index = self._places[expert]
        torch.cat([p.detach().reshape(-1).float() for p in self._load(path)[index][row]], out=out)
        if not bool(out.isfinite().all()):
            raise StoreError(f"{path} contains NaN or infinite weights; leave that file out")
        return out


def _is_same_memory(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether every tensor of two snapshots is the same piece of memory; what lies in it is not read."""
    return all(p.data_ptr() == q.data_ptr() for p, q in zip(one, other, strict=True))


def _load(path: Path) -> Any:
    return files.read_torch(path, "replay buffer", mapped=True)


def write_replay(
    path: str | os.PathLike[str],
    read: Callable[[int, int], Tensor],
    experts: Sequence[int],
    epochs: Sequence[int],
    shapes: Sequence[torch.Size],
) -> Path:
    """Write experts as one replay buffer.

    Args:
        read: weights `[P]` of (expert, epoch).
        shapes: of the parameters, in `parameters()` order.
    """
    sizes = [shape.numel() for shape in shapes]

    def parameters(expert: int, epoch: int) -> list[Tensor]:
        # Cloned, because a tensor is saved with all the memory it is a part of.
        pieces = read(expert, epoch).split(sizes)
        return [piece.view(shape).clone() for piece, shape in zip(pieces, shapes, strict=True)]

    return files.write_torch(path, [[parameters(expert, epoch) for epoch in epochs] for expert in experts])
