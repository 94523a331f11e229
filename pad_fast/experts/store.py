"""Expert trajectories on disk: one folder, one file per expert, metadata as JSON.

    experts/
      store.json                  what the experts are (network, data, curriculum, seed, versions), which snapshots
                                  are kept, and how they are stored
      expert_00000.safetensors    the kept snapshots of one expert, checksums, what is known about it

An expert is claimed by a lock and appears under its name only when it is complete, so a killed run loses at most the
expert in flight and several processes can fill one store. Opening checks structure and sizes, which costs one small
read per expert; the weights' checksums are checked whenever they are read, and all at once by
:func:`pad_fast.experts.examine`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, StoreError
from ..runtime import files, tensor_files
from ..settings.choices import STORAGES
from ..settings.snapshot_ranges import format_snapshots, parse_snapshots
from .claim import Claim
from .expert_file import ExpertFile, bytes_per_expert, expert_pieces
from .replay import ReplayBuffers, replay_files, replay_folders, write_replay

_EXPERT = re.compile(r"expert_(\d{5})\.safetensors")
STORE = "store.json"
FORMAT = "pad_fast experts 2"
_RECORDED_ONLY = ("pad_fast",)  # the version that wrote a store; another one may continue it


class ExpertStore:
    """Random access to expert snapshots.

    Open one with :meth:`open` (ours), :meth:`create`, or :meth:`from_replay_buffers` (files that MTT, FTD and DATM
    scripts write).

    Attributes:
        folder: where it is; for replay buffers, where they are.
        metadata: what `store.json` says; empty for replay buffers.
        parameter_count: P.
        epochs: how long every expert was trained; snapshot k is its weights after k epochs.
        kept: the snapshots there are, ascending.
        storage: "float32", "float16" or "bfloat16-delta"; snapshots are float32 when they are read.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, Any],
        *,
        parameter_count: int,
        epochs: int,
        kept: Sequence[int],
        storage: str = "float32",
        experts: Mapping[int, ExpertFile] | None = None,
        replay: ReplayBuffers | None = None,
        limit: int | None = None,
    ) -> None:
        self.folder = folder
        self.metadata = dict(metadata)
        self.parameter_count = parameter_count
        self.epochs = epochs
        self.kept = tuple(kept)
        self.storage = storage
        self._rows = {epoch: row for row, epoch in enumerate(self.kept)}
        self._experts = dict(experts or {})
        self._replay = replay
        self._limit = limit
        # Row 0 of the expert read last, which the next read of changes is likely to need again.
        self._first: tuple[int, Tensor] | None = None

    def __repr__(self) -> str:
        stored = "" if self.storage == "float32" else f" in {self.storage}"
        return (
            f"ExpertStore({str(self.folder)!r}: {len(self)} experts x {len(self.kept)} snapshots "
            f"x {self.parameter_count:,} parameters{stored})"
        )

    def __len__(self) -> int:
        count = len(self._experts) if self._replay is None else len(self._replay)
        return count if self._limit is None else min(self._limit, count)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        parameter_count: int,
        epochs: int,
        metadata: Mapping[str, Any],
        kept: Sequence[int] | None = None,
        storage: str = "float32",
    ) -> ExpertStore:
        """Start a store, or continue the one that is there when it was made with the same metadata.

        A store that is continued may lack experts between others, which :meth:`claim` then gives out.

        Args:
            kept: snapshots to keep, all `epochs + 1` by default.
            storage: "float32" (exact), "float16" or "bfloat16-delta"; docs/experts.md states their errors.

        Raises:
            StoreError: the folder holds experts made with other settings, damaged ones, or cannot be written.
            ConfigError: unknown storage, or snapshots that such experts do not have.
        """
        folder = Path(folder)
        kept = range(epochs + 1) if kept is None else sorted(set(kept))
        if storage not in STORAGES:
            raise ConfigError(f"expert storage is {storage!r}; use one of {', '.join(STORAGES)}")
        if not kept or kept[0] < 0 or kept[-1] > epochs:
            raise ConfigError(f"snapshots to keep are {list(kept)}; experts of {epochs} epochs have 0..{epochs}")
        sizes = {
            "parameter_count": parameter_count,
            "epochs": epochs,
            "kept": format_snapshots(kept),
            "storage": storage,
        }
        described = tensor_files.unseal(tensor_files.seal({"format": FORMAT, **sizes, **metadata}))
        if not (folder / STORE).exists():
            files.require_writable(folder)
            files.write_json(folder / STORE, tensor_files.seal(described))
        store, problems = scan(folder)
        store.require(described)
        damaged = {number: problem for number, problem in problems.items() if not isinstance(problem, Missing)}
        if damaged:
            raise next(iter(damaged.values()))
        return store

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, enough: int | None = None, sound_only: bool = False
    ) -> ExpertStore:
        """Open a store of ours, or a folder of `replay_buffer_*.pt` files.

        Args:
            enough: this many experts will do: where later ones are missing between others, because somebody trains
                them now or was killed, the store ends before the first of them and can only be read.
            sound_only: leave out damaged experts instead of refusing the store; the others move up to their numbers.

        Raises:
            StoreError: nothing usable there, or damaged or missing experts, which are named.
        """
        folder = Path(folder)
        if not (folder / STORE).exists():
            if replay_files(folder):
                return cls.from_replay_buffers(folder)
            raise StoreError(
                f"no expert store at {folder}: neither {STORE} nor replay_buffer_*.pt is there{further_down(folder)}"
            )
        store, problems = scan(folder)
        if sound_only:
            store._experts = dict(enumerate(store._experts.values()))
            store._limit = len(store._experts)  # a view: what is appended now would get a taken number
        elif enough is not None and _only_missing(problems) and enough <= min(problems):
            return store.first(min(problems))
        elif problems:
            first, *others = problems.values()
            more = f" (and {len(others)} more experts: `pad-fast experts verify {folder}`)" if others else ""
            raise StoreError(f"{first}{more}")
        return store

    @classmethod
    def from_replay_buffers(cls, folder: str | os.PathLike[str]) -> ExpertStore:
        """Read the reference's `replay_buffer_*.pt` files (lists of trajectories, snapshots, parameters) in place.

        Raises:
            StoreError: no such files, or one with another layout.
        """
        replay = ReplayBuffers(Path(folder))
        return cls(
            Path(folder),
            {},
            parameter_count=replay.parameter_count,
            epochs=replay.snapshots - 1,
            kept=range(replay.snapshots),
            replay=replay,
        )

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

    def require_snapshots(self, epochs: Sequence[int]) -> None:
        """Check that these snapshots were kept.

        Raises:
            StoreError: the first that was not, and what was kept.
        """
        for epoch in epochs:
            self._row(epoch)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the network's parameters, in `parameters()` order.

        Raises:
            StoreError: nobody said when the store was made.
        """
        if self._replay is not None:
            return self._replay.shapes
        if "shapes" not in self.metadata:
            raise StoreError(f"{self.folder / STORE} does not say which shapes the parameters have")
        return read_shapes(self.metadata["shapes"])

    @property
    def bytes_per_expert(self) -> int:
        """Bytes of weights of one expert on disk."""
        return bytes_per_expert(self.storage, len(self.kept), self.parameter_count)

    @staticmethod
    def complete(folder: Path, experts: int) -> bool:
        """Whether the first `experts` experts are in a folder; there may be no store at all."""
        return all(_path(folder, number).exists() for number in range(experts))

    def holds(self, expert: int) -> bool:
        """Whether this expert is there by now, whoever wrote it."""
        return _path(self.folder, expert).exists()

    def missing(self, experts: int) -> list[int]:
        """The numbers below `experts` that are not there yet."""
        return [number for number in range(experts) if not self.holds(number)]

    def claim(self, expert: int, *, wait: bool = False) -> Claim | None:
        """The right to write expert `expert`; None when it is there, or another process is about to write it.

        Args:
            wait: until the other process has written it, or has given up.

        Raises:
            StoreError: read only, or the folder cannot be written to.
        """
        self._require_writable()
        return Claim.take(_path(self.folder, expert), wait=wait)

    def finish(self, claim: Claim, snapshots: Tensor, facts: Mapping[str, Any] | None = None) -> None:
        """Write a claimed expert.

        Args:
            snapshots: the kept ones, `[len(kept), P]`.
            facts: what to remember about this expert, as JSON.

        Raises:
            StoreError: wrong shape, not finite, or the disk refuses; nothing is left behind.
        """
        if list(snapshots.shape) != [len(self.kept), self.parameter_count]:
            raise StoreError(
                f"expert has shape {list(snapshots.shape)}; this store takes [{len(self.kept)}, {self.parameter_count}]"
            )
        snapshots = snapshots.detach().to("cpu", torch.float32).contiguous()
        if not bool(snapshots.isfinite().all()):
            raise StoreError(
                "expert contains NaN or infinite weights: training diverged, lower the expert learning rate"
            )
        claim.finish(expert_pieces(snapshots, self.storage, facts or {}))
        self._experts[_number(claim.path)] = self._open_expert(claim.path)

    def append(self, snapshots: Tensor, facts: Mapping[str, Any] | None = None) -> int:
        """Add one complete expert `[len(kept), P]` under the lowest free number, which is returned.

        Raises:
            StoreError: see :meth:`finish`.
        """
        self._require_writable()
        number = 0
        while number in self._experts or (claim := self.claim(number)) is None:
            number += 1
        with claim:
            self.finish(claim, snapshots, facts)
        return number

    def first(self, count: int) -> ExpertStore:
        """The first `count` experts, to read from."""
        return ExpertStore(
            self.folder,
            self.metadata,
            parameter_count=self.parameter_count,
            epochs=self.epochs,
            kept=self.kept,
            storage=self.storage,
            experts=self._experts,
            replay=self._replay,
            limit=count if self._limit is None else min(count, self._limit),
        )

    def snapshot(self, expert: int, epoch: int, *, out: Tensor | None = None) -> Tensor:
        """Weights `[P]` float32 of `expert` after `epoch` epochs; negative epochs count from the end.

        Args:
            out: float32 `[P]` on the CPU, to read into.

        Raises:
            StoreError: no such expert, a snapshot that was not kept, or damaged weights; the message names it.
        """
        self._require_expert(expert)
        row = self._row(epoch)
        out = torch.empty(self.parameter_count) if out is None else out
        if self._replay is not None:
            return self._replay.read(expert, row, out)
        file = self._experts[expert]
        if not file.has_changes:
            return file.read(row, out)
        base = self._first
        if base is None or base[0] != expert:
            self._first = base = expert, file.read(0, torch.empty(self.parameter_count))
        return out.copy_(base[1]) if row == 0 else file.read(row, out, base[1])

    def require_moved(self, expert: int, start: int, target: int) -> None:
        """Check that an expert's weights are not the same after `start` and `target` epochs.

        Raises:
            StoreError: they are, so that nothing can be matched between them.
        """
        if torch.equal(self.snapshot(expert, start), self.snapshot(expert, target)):
            path = self.expert_file(expert).path if self._replay is None else self._replay.path(expert)
            raise StoreError(
                f"{path} holds the same weights after {start} and {target} epochs of expert {expert}: it was not "
                "trained in between, or its snapshots were kept without a copy (`.clone()`); train the experts again"
            )

    def facts(self, expert: int) -> dict[str, Any]:
        """Facts remembered about an expert, e.g. its test accuracy; none for replay buffers."""
        self._require_expert(expert)
        return {} if self._replay is not None else self._experts[expert].described

    def expert_file(self, expert: int) -> ExpertFile:
        """The file of an expert."""
        self._require_expert(expert)
        return self._experts[expert]

    def stored_facts(self, expert: int) -> dict[str, Any]:
        """:meth:`facts` of an expert that another process may have written."""
        return self._open_expert(_path(self.folder, expert)).described

    def write_replay_buffer(
        self,
        path: str | os.PathLike[str],
        shapes: Sequence[torch.Size] | None = None,
        *,
        experts: Sequence[int] | None = None,
    ) -> Path:
        """Write experts in the reference's format, which holds all of them in memory at once.

        Args:
            shapes: of the parameters, in `parameters()` order; what the store says when None.

        Raises:
            StoreError: the shapes are of another network, or snapshots are missing, which that format cannot say.
        """
        shapes = self.shapes if shapes is None else shapes
        size = sum(shape.numel() for shape in shapes)
        if size != self.parameter_count:
            raise StoreError(f"shapes hold {size:,} parameters, the experts {self.parameter_count:,}")
        self.require_snapshots(range(self.epochs + 1))
        return write_replay(path, self.snapshot, range(len(self)) if experts is None else experts, self.kept, shapes)

    def _require_expert(self, expert: int) -> None:
        held = self._experts if self._replay is None else range(len(self._replay))
        if expert not in held or (self._limit is not None and expert >= self._limit):
            raise StoreError(f"expert {expert} does not exist; {self.folder} holds {len(self)}")

    def _row(self, epoch: int) -> int:
        number = epoch + self.epochs + 1 if epoch < 0 else epoch
        if not 0 <= number <= self.epochs:
            raise StoreError(f"epoch {epoch} does not exist; the experts in {self.folder} have epochs 0..{self.epochs}")
        if number not in self._rows:
            raise StoreError(
                f"snapshot {number} was not kept: {self.folder} keeps {format_snapshots(self.kept)} of "
                f"0..{self.epochs}; train experts that keep it (--keep), in another folder"
            )
        return self._rows[number]

    def _open_expert(self, path: Path) -> ExpertFile:
        return ExpertFile.open(path, storage=self.storage, kept=len(self.kept), parameter_count=self.parameter_count)

    def _require_writable(self) -> None:
        if self._replay is not None:
            raise StoreError(f"{self.folder} holds replay buffers, which are read only; create a store elsewhere")
        if self._limit is not None:
            raise StoreError(
                f"this is a part of the experts in {self.folder}, to read from; open the folder to add any"
            )


class Missing(StoreError):
    """An expert that is not there while others with higher numbers are."""


def _only_missing(problems: Mapping[int, StoreError]) -> bool:
    return bool(problems) and all(isinstance(problem, Missing) for problem in problems.values())


def scan(folder: Path) -> tuple[ExpertStore, dict[int, StoreError]]:
    """The sound experts in a folder, and what is wrong with the others by their number.

    Raises:
        StoreError: `store.json` cannot be used.
    """
    path = folder / STORE
    sealed = files.read_json(path, "expert store")
    with files.reading(path, "expert store", way_out="bring it back from a copy, the experts need not be"):
        files.require_format(sealed, FORMAT, path, "expert store", way_out="use another folder for new experts")
        metadata = tensor_files.unseal(sealed)
        store = ExpertStore(
            folder,
            metadata,
            parameter_count=int(metadata["parameter_count"]),
            epochs=int(metadata["epochs"]),
            kept=parse_snapshots(metadata["kept"], int(metadata["epochs"])),
            storage=str(metadata["storage"]),
        )
    problems: dict[int, StoreError] = {}
    found = {_number(each): each for each in folder.iterdir() if _EXPERT.fullmatch(each.name)}
    for number in range(max(found, default=-1) + 1):
        if number not in found:
            problems[number] = Missing(
                f"{_path(folder, number)} is missing while {_path(folder, max(found)).name} exists; repeat the "
                "training command, which adds it, or give another expert its name"
            )
            continue
        try:
            store._experts[number] = store._open_expert(found[number])
        except StoreError as error:
            problems[number] = error
    return store, problems


def shapes_text(shapes: Iterable[Sequence[int]]) -> str:
    """Shapes on one line of `store.json`.

    Example:
        >>> shapes_text([(8, 3, 3, 3), (8,)])
        '8x3x3x3 8'
    """
    return " ".join("x".join(map(str, shape)) for shape in shapes)


def read_shapes(text: str) -> tuple[torch.Size, ...]:
    """Shapes from a line of :func:`shapes_text`."""
    return tuple(torch.Size(int(side) for side in shape.split("x")) for shape in text.split())


def _number(path: Path) -> int:
    return int(path.name[len("expert_") : -len(".safetensors")])


def further_down(folder: Path) -> str:
    """A hint at replay buffers below a folder."""
    below = [str(path) for path in replay_folders(folder)]
    return f". Replay buffers lie further down; name one of {', '.join(below)}" if below else ""


def _path(folder: Path, expert: int) -> Path:
    return folder / f"expert_{expert:05d}.safetensors"
