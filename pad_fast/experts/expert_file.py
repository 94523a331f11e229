"""One expert in one safetensors file: how snapshots are stored, found and checked.

`float32` and `float16` keep a tensor `snapshots` `[kept, P]` of that type. `bfloat16-delta` keeps the first kept
snapshot as it is (`first` `[1, P]` float32) and every other one as its change since then (`changes` `[kept - 1, P]`
bfloat16), so that any of them is two reads away and errors do not add up. Bounds of the error of a weight w (w0 the one
in the first snapshot):

    float16          2^-11 |w|, and at least 2^-25; weights beyond 65,504 are refused
    bfloat16-delta   2^-8 |w - w0|, next to the rounding of float32

The header carries a CRC-32 of every row as it lies in the file, and one of the description itself. It says no format:
that of a store, in `store.json`, is that of its experts.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import StoreError
from ..runtime import tensor_files

_BYTES = {"F32": (torch.float32, 4), "F16": (torch.float16, 2), "BF16": (torch.bfloat16, 2)}
_WAY_OUT = "delete it to train this expert again, the others stay usable"


def bytes_per_expert(storage: str, kept: int, parameter_count: int) -> int:
    """Size of an expert's weights on disk."""
    if storage == "float32":
        return 4 * kept * parameter_count
    return (2 * kept + (2 if storage == "bfloat16-delta" else 0)) * parameter_count


def expert_pieces(snapshots: Tensor, storage: str, described: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """The file of an expert, in pieces.

    Args:
        snapshots: `[kept, P]` float32.
        described: what to say about this expert.

    Raises:
        StoreError: weights that float16 cannot hold.
    """
    tensors = _encode(snapshots, storage)
    checksums = [zlib.crc32(tensor_files.tensor_bytes(row)) for tensor in tensors.values() for row in tensor]
    return tensor_files.tensor_pieces(tensors, tensor_files.seal({**described, "rows": checksums}))


def _encode(snapshots: Tensor, storage: str) -> dict[str, Tensor]:
    """By name, in the order of the rows."""
    if storage == "float32":
        return {"snapshots": snapshots}
    if storage == "float16":
        half = snapshots.half()
        if not bool(half.isfinite().all()):
            raise StoreError(
                f"expert has weights up to {float(snapshots.abs().max()):.3g}, more than float16 holds; use storage "
                "float32 or bfloat16-delta"
            )
        return {"snapshots": half}
    return {"first": snapshots[:1], "changes": (snapshots[1:] - snapshots[:1]).bfloat16()}


@dataclass(frozen=True)
class _Row:
    kind: str
    start: int  # byte in the file
    checksum: int


@dataclass(frozen=True)
class ExpertFile:
    """A finished expert; opening one reads its header, reading a snapshot the bytes of that snapshot.

    Plain reads rather than a memory map: a map's pages would count as this process's memory, and a file that shrinks
    under one ends the process instead of raising an error.

    Attributes:
        described: what was said about this expert, e.g. its test accuracy.
        rows: one per kept snapshot.
    """

    path: Path
    parameter_count: int
    described: dict[str, Any]
    rows: tuple[_Row, ...]

    @classmethod
    def open(cls, path: Path, *, storage: str, kept: int, parameter_count: int) -> ExpertFile:
        """Read and check the header of a file that should hold `[kept, P]` weights in `storage`.

        Raises:
            StoreError: missing, or damaged; the message names it.
        """
        with tensor_files.read_tensor_header(path, "expert", way_out=_WAY_OUT) as header:
            described = tensor_files.unseal(header.described)
            rows = _rows(header, described, storage, kept, parameter_count)
        described.pop("rows")
        return cls(path, parameter_count, described, rows)

    def read(self, row: int, out: Tensor, first: Tensor | None = None) -> Tensor:
        """The weights of one kept snapshot.

        Args:
            row: its position among those kept.
            out: float32 `[P]`, where they go.
            first: row 0 as it was read before, to save reading it again for a change.

        Raises:
            StoreError: the bytes are not what was written.
        """
        place = self.rows[row]
        if place.kind == "F32":
            return self._fill(place, out)
        narrow = self._fill(place, torch.empty(len(out), dtype=_BYTES[place.kind][0]))
        if place.kind == "F16":
            return out.copy_(narrow)
        if first is None:
            self.read(0, out)
        else:
            out.copy_(first)
        return out.add_(narrow)

    @property
    def has_changes(self) -> bool:
        """Whether rows but the first are read relative to it."""
        return self.rows[-1].kind == "BF16"

    def damaged_rows(self) -> list[int]:
        """Read everything; the positions of kept snapshots whose bytes are not what was written."""
        wrong = []
        for row, place in enumerate(self.rows):
            try:
                self._fill(place, torch.empty(self.parameter_count, dtype=_BYTES[place.kind][0]))
            except StoreError:
                wrong.append(row)
        return wrong

    def _fill(self, place: _Row, out: Tensor) -> Tensor:
        view = tensor_files.tensor_bytes(out)
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(view):
                    count = os.preadv(handle, [view[done:]], place.start + done)
                    if count == 0:
                        raise _damaged(self.path, "it has become shorter")
                    done += count
            finally:
                os.close(handle)
        except OSError as error:
            raise StoreError(f"cannot read expert {self.path}: {error.strerror or error}") from error
        if zlib.crc32(view) != place.checksum:
            raise _damaged(self.path, f"row {self.rows.index(place)} of {len(self.rows)} has another checksum")
        return out


def _rows(
    header: tensor_files.TensorHeader, described: Mapping[str, Any], storage: str, kept: int, parameter_count: int
) -> tuple[_Row, ...]:
    if storage == "bfloat16-delta":
        expected = [("first", "F32", 1)] + ([("changes", "BF16", kept - 1)])
    else:
        expected = [("snapshots", {"float32": "F32", "float16": "F16"}[storage], kept)]
    places: list[tuple[str, int]] = []
    for name, kind, count in expected:
        found, shape, start, stop = header.tensors[name]
        size = _BYTES[kind][1] * parameter_count
        if (found, shape, stop - start) != (kind, [count, parameter_count], count * size):
            raise ValueError(f"{name} is {found} {shape}; store.json says {kind} [{count}, {parameter_count}]")
        places += [(kind, start + row * size) for row in range(count)]
    checksums: Sequence[int] = described["rows"]
    return tuple(_Row(kind, start, int(sum_)) for (kind, start), sum_ in zip(places, checksums, strict=True))


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path} is damaged ({reason}); {_WAY_OUT}")
