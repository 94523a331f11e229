"""Expert trajectories on disk: one folder, one memory-mapped file per expert, metadata as JSON.

    experts/
      store.json                  what the experts are (network, data, curriculum, seed, versions)
      expert_00000.safetensors    "snapshots" [epochs + 1, P] float32; row k = weights after k epochs

An expert appears under its name only when it is complete (temporary file, fsync, rename), so a killed run loses at
most the expert in flight. Reading a snapshot touches the bytes of that snapshot only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import files
from ..errors import StoreError

_EXPERT = re.compile(r"expert_(\d{5})\.safetensors")
_REPLAY = re.compile(r"replay_buffer_(\d+)\.pt")
FORMAT = "pad_fast experts 1"
_RECORDED_ONLY = ("pad_fast",)  # the version that wrote a store; another one may continue it


class ExpertStore:
    """Random access to expert snapshots.

    Open one with :meth:`open` (ours), :meth:`create`, or :meth:`from_replay_buffers` (files that MTT, FTD and DATM
    scripts write).

    Attributes:
        folder: where it is; for replay buffers, where they were.
        metadata: what `store.json` says; empty for replay buffers.
        parameter_count: P.
        epochs: every expert has `epochs + 1` snapshots, 0 = initial.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, Any],
        parameter_count: int,
        epochs: int,
        resident: Sequence[Tensor] | None = None,
    ) -> None:
        self.folder = folder
        self.metadata = dict(metadata)
        self.parameter_count = parameter_count
        self.epochs = epochs
        self._resident = resident
        self._count = len(resident) if resident is not None else len(_expert_files(folder))
        self._open_file = lru_cache(maxsize=64)(self._map)

    def __repr__(self) -> str:
        return (
            f"ExpertStore({str(self.folder)!r}: {len(self)} experts x {self.epochs + 1} snapshots "
            f"x {self.parameter_count:,} parameters)"
        )

    def __len__(self) -> int:
        return self._count

    @classmethod
    def create(
        cls, folder: str | os.PathLike[str], *, parameter_count: int, epochs: int, metadata: Mapping[str, Any]
    ) -> ExpertStore:
        """Start a store, or open the one that is there when it was made with the same metadata.

        Raises:
            StoreError: the folder holds experts made with other settings, or cannot be written.
        """
        folder = Path(folder)
        described = {"format": FORMAT, "parameter_count": parameter_count, "epochs": epochs, **metadata}
        if (folder / "store.json").exists():
            store = cls.open(folder)
            store.require(described)
            return store
        files.require_writable(folder)
        files.write_json(folder / "store.json", described)
        return cls(folder, described, parameter_count, epochs)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> ExpertStore:
        """Open a store of ours, or a folder of `replay_buffer_*.pt` files.

        Raises:
            StoreError: nothing usable there, or a damaged file, which is named.
        """
        folder = Path(folder)
        if not (folder / "store.json").exists():
            if folder.is_dir() and any(_REPLAY.fullmatch(path.name) for path in folder.iterdir()):
                return cls.from_replay_buffers(folder)
            raise StoreError(
                f"no expert store at {folder}: neither store.json nor replay_buffer_*.pt is there{_hint(folder)}"
            )
        metadata = files.read_json(folder / "store.json", "expert store")
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise StoreError(f"{folder / 'store.json'} is not a pad_fast expert store ({FORMAT!r} expected)")
        try:
            parameter_count, epochs = int(metadata["parameter_count"]), int(metadata["epochs"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{folder / 'store.json'} does not say how large its experts are ({error})") from error
        store = cls(folder, metadata, parameter_count, epochs)
        for expert in range(len(store)):
            shape = store._open_file(expert).get_slice("snapshots").get_shape()
            if shape != [store.epochs + 1, store.parameter_count]:
                raise StoreError(
                    f"{_expert_path(folder, expert)} holds snapshots of shape {shape}; store.json says "
                    f"[{store.epochs + 1}, {store.parameter_count}]. Delete the file to train this expert again"
                )
        return store

    @classmethod
    def from_replay_buffers(cls, folder: str | os.PathLike[str]) -> ExpertStore:
        """Read the reference's `replay_buffer_*.pt` files (lists of trajectories, snapshots, parameters) into memory.

        Raises:
            StoreError: no such files, or one with another layout.
        """
        folder = Path(folder)
        paths = [path for path in folder.iterdir() if _REPLAY.fullmatch(path.name)] if folder.is_dir() else []
        if not paths:
            raise StoreError(f"no replay_buffer_*.pt files in {folder}")
        trajectories: list[Tensor] = []
        for path in sorted(paths, key=lambda path: int(_REPLAY.fullmatch(path.name)[1])):  # type: ignore[index]
            content = files.read_torch(path, "replay buffer")
            first = len(trajectories)
            try:
                for trajectory in content:
                    rows = [torch.cat([p.detach().reshape(-1).float() for p in snapshot]) for snapshot in trajectory]
                    trajectories.append(torch.stack(rows))
            except (TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise StoreError(
                    f"{path} is not a replay buffer: expected a list of trajectories, each a list of snapshots, "
                    f"each a list of parameter tensors ({error})"
                ) from error
            if not all(bool(trajectory.isfinite().all()) for trajectory in trajectories[first:]):
                raise StoreError(f"{path} contains NaN or infinite weights; leave that file out")
        shapes = {tuple(trajectory.shape) for trajectory in trajectories}
        if not shapes:
            raise StoreError(f"the replay buffers in {folder} hold no trajectory")
        if len(shapes) > 1:
            raise StoreError(
                f"trajectories in {folder} have different [snapshots, parameters]: {sorted(shapes)}; "
                "keep one kind per folder"
            )
        snapshots, parameter_count = shapes.pop()
        return cls(folder, {}, parameter_count, snapshots - 1, resident=trajectories)

    def require(self, described: Mapping[str, Any]) -> None:
        """Check that this store was made as `described`; what a replay buffer does not record is not checked.

        Raises:
            StoreError: the first setting that differs, with both values.
        """
        for key, value in described.items():
            if key not in _RECORDED_ONLY and key in self.metadata and self.metadata[key] != value:
                raise StoreError(
                    f"experts in {self.folder} were made with {key} = {self.metadata[key]!r}, but {value!r} is asked "
                    "for; use another folder, or delete this one"
                )
        if self.parameter_count != described.get("parameter_count", self.parameter_count):
            raise StoreError(
                f"experts in {self.folder} have {self.parameter_count:,} parameters, but the network has "
                f"{described['parameter_count']:,}: they belong to another network"
            )

    def append(self, snapshots: Tensor) -> int:
        """Add one complete expert `[epochs + 1, P]`; returns its number.

        Raises:
            StoreError: wrong shape, not finite, or the disk refuses; nothing is left behind.
        """
        if self._resident is not None:
            raise StoreError(f"{self.folder} holds replay buffers, which are read only; create a store elsewhere")
        if list(snapshots.shape) != [self.epochs + 1, self.parameter_count]:
            raise StoreError(
                f"expert has shape {list(snapshots.shape)}; this store takes "
                f"[{self.epochs + 1}, {self.parameter_count}]"
            )
        if not bool(snapshots.isfinite().all()):
            raise StoreError(
                "expert contains NaN or infinite weights: training diverged, lower the expert learning rate"
            )
        data = save({"snapshots": snapshots.detach().to("cpu", torch.float32).contiguous()})
        files.write_bytes(_expert_path(self.folder, self._count), data)
        self._count += 1
        return self._count - 1

    def first(self, count: int) -> ExpertStore:
        """A view of the first `count` experts."""
        view = ExpertStore(self.folder, self.metadata, self.parameter_count, self.epochs, self._resident)
        view._count = min(count, len(self))
        return view

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Weights `[P]` float32 of `expert` after `epoch` epochs; negative epochs count from the end.

        Raises:
            StoreError: no such expert or epoch.
        """
        if not 0 <= expert < len(self):
            raise StoreError(f"expert {expert} does not exist; {self.folder} holds {len(self)}")
        row = epoch + self.epochs + 1 if epoch < 0 else epoch
        if not 0 <= row <= self.epochs:
            raise StoreError(f"epoch {epoch} does not exist; the experts in {self.folder} have epochs 0..{self.epochs}")
        if self._resident is not None:
            return self._resident[expert][row].clone()
        return self._open_file(expert).get_slice("snapshots")[row : row + 1][0].clone()

    def write_replay_buffer(
        self,
        path: str | os.PathLike[str],
        shapes: Sequence[torch.Size],
        *,
        experts: Sequence[int] | None = None,
    ) -> Path:
        """Write experts in the reference's format, parameters in `parameters()` order with these `shapes`."""
        sizes = [shape.numel() for shape in shapes]
        if sum(sizes) != self.parameter_count:
            raise StoreError(f"shapes hold {sum(sizes):,} parameters, the experts {self.parameter_count:,}")
        content = []
        for expert in range(len(self)) if experts is None else experts:
            content.append(
                [
                    [
                        piece.view(shape).clone()
                        for piece, shape in zip(self.snapshot(expert, epoch).split(sizes), shapes, strict=True)
                    ]
                    for epoch in range(self.epochs + 1)
                ]
            )
        return files.write_torch(path, content)

    def _map(self, expert: int) -> Any:
        path = _expert_path(self.folder, expert)
        try:
            file = safe_open(path, framework="pt")
            file.get_slice("snapshots")
            return file
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise StoreError(
                f"{path} is damaged ({error}); delete it to train this expert again, the others stay usable"
            ) from error


def _hint(folder: Path) -> str:
    """Published scripts keep replay buffers in <dataset>/<model> below the folder their settings name."""
    below = sorted({str(path.parent) for path in folder.glob("*/*/replay_buffer_*.pt")})
    return f". Replay buffers lie further down; name one of {', '.join(below)}" if below else ""


def _expert_path(folder: Path, expert: int) -> Path:
    return folder / f"expert_{expert:05d}.safetensors"


def _expert_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if _EXPERT.fullmatch(path.name)) if folder.is_dir() else []
    for expert, path in enumerate(found):
        if path != _expert_path(folder, expert):
            raise StoreError(
                f"{_expert_path(folder, expert)} is missing while {path.name} exists; restore or rename it"
            )
    return found
