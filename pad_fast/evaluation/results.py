"""Accuracies that are known already: in memory, and in a folder that outlives the process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..runtime import files, tensor_files

_FORMAT = "pad_fast evaluation result 1"


class Results:
    """Results by a key that names everything they depend on, one file each.

    Files are written whole as soon as a network is tested, so a killed evaluation loses the networks under way at most,
    and evaluations that run at the same time, or on several ranks, may share a folder.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else files.require_writable(folder)
        self._known: dict[str, dict[str, Tensor]] = {}

    def get(self, described: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The tensors kept under this description.

        Raises:
            StoreError: its file is damaged, or of another format.
        """
        key = key_of(described)
        if key not in self._known and self.folder is not None:
            path = self.folder / f"{key}.safetensors"
            if not path.exists():
                return None
            way_out = "delete it to evaluate this network again"
            with tensor_files.read_tensors(path, "evaluation result", _FORMAT, way_out=way_out, unmarked=True) as (
                tensors,
                _,
            ):
                self._known[key] = tensors
        return self._known.get(key)

    def put(self, described: Mapping[str, Any], **tensors: Tensor) -> None:
        """Keep tensors."""
        key = key_of(described)
        self._known[key] = tensors
        if self.folder is not None:
            packed = tensor_files.pack_tensors(tensors, {"format": _FORMAT, **described})
            files.write_bytes(self.folder / f"{key}.safetensors", packed)


def key_of(described: Mapping[str, Any]) -> str:
    """A file name for what was computed as described by these versions of pad_fast and torch."""
    everything = [dict(described), __version__, torch.__version__]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:24]


def digest(*tensors: Tensor) -> str:
    """Names tensors by their contents."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().reshape(-1).data)
    return total.hexdigest()[:24]
