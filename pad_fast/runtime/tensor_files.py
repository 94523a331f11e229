"""Tensors with a JSON description in one file, in the layout of safetensors, sealed with a checksum where it counts.

The description of every such file says its format, and :func:`read_tensors`, which reads them all, compares it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import files

_TENSOR_TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensor_pieces(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """A safetensors file of `tensors` that says what it is in JSON, in pieces; equal values give equal bytes.

    The pieces share the tensors' memory. The description is one metadata key, whose order nobody else decides.
    """
    # Large elements first, so that everything is aligned.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"pad_fast": json.dumps(described)}}
    start = 0
    for name in ordered:
        tensor = tensors[name]
        stop = start + tensor.numel() * tensor.element_size()
        kind = _TENSOR_TYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in ordered:
        yield tensor_bytes(tensors[name])


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a CPU tensor; of a contiguous one they are its own memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def pack_tensors(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> bytes:
    """:func:`tensor_pieces` in one."""
    return b"".join(tensor_pieces(tensors, described))


@contextmanager
def read_tensors(
    path: str | os.PathLike[str], what: str, format: str, *, way_out: str, unmarked: bool = False
) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Read a file of ours; the code inside takes its tensors and its description apart.

    Args:
        what: the file's role, such as "checkpoint".
        format: the description has to say.
        way_out: of somebody whose file is damaged, or of another format.
        unmarked: take a description without a format as well, where earlier versions wrote none.

    Raises:
        StoreError: missing, damaged, foreign, of another format, or without what the code inside looks for.
    """
    with files.reading(path, what, way_out=way_out):
        tensors, described = unpack_tensors(Path(path).read_bytes())
        if not (unmarked and "format" not in described):
            files.require_format(described, format, path, what, way_out=way_out)
        yield tensors, described


@dataclass(frozen=True)
class TensorHeader:
    """The beginning of a safetensors file.

    Attributes:
        described: its description, see :func:`tensor_pieces`.
        tensors: name -> (dtype as the format spells it, shape, first byte in the file, byte behind the last).
    """

    described: dict[str, Any]
    tensors: dict[str, tuple[str, list[int], int, int]]


@contextmanager
def read_tensor_header(path: str | os.PathLike[str], what: str, *, way_out: str) -> Iterator[TensorHeader]:
    """Read the first bytes of a file of ours and check that the file is as long as they say.

    For files too large to be read at once; their format is for the code inside to compare, if they say one.

    Raises:
        StoreError: see :func:`read_tensors`.
    """
    with files.reading(path, what, way_out=way_out):
        yield _header(path)


def _header(path: str | os.PathLike[str]) -> TensorHeader:
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= length - 8:
            raise ValueError("truncated or foreign")
        header = json.loads(file.read(size))
    described = json.loads(header.pop("__metadata__")["pad_fast"])
    tensors = {}
    end = size + 8
    for name, entry in header.items():
        start, stop = (8 + size + int(offset) for offset in entry["data_offsets"])
        tensors[name] = str(entry["dtype"]), [int(side) for side in entry["shape"]], start, stop
        end = max(end, stop)
    if end != length:
        raise ValueError(f"{length:,} bytes long instead of {end:,}")
    return TensorHeader(described, tensors)


def seal(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description with a checksum of itself (CRC-32 of its JSON), as it comes back from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return {**plain, "checksum": _checksum(plain)}


def unseal(sealed: Any) -> dict[str, Any]:
    """The description in :func:`seal`.

    Raises:
        ValueError: it is not what it was.
    """
    if not isinstance(sealed, dict):
        raise ValueError("no description")
    plain = {key: value for key, value in sealed.items() if key != "checksum"}
    if sealed.get("checksum") != _checksum(plain):
        raise ValueError("the checksum of its description is wrong")
    return plain


def _checksum(plain: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def unpack_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of :func:`pack_tensors`.

    Raises:
        KeyError, TypeError, ValueError: truncated or foreign bytes; the caller knows what they were meant to be.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(error) from error
    size = int.from_bytes(data[:8], "little")
    described = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["pad_fast"])
    if not isinstance(described, dict):
        raise TypeError("no description")
    return tensors, described
