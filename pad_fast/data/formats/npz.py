"""numpy's `.npz`: a set of ours as arrays, nothing lost, or what others put into one."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...runtime import files
from .contents import Contents, contents_of

NAME = "distilled.npz"
"""Of the file in a folder."""

_OURS = "pad_fast"  # the array with our description, as JSON


def write(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Path:
    """Tensors as arrays by name, and our description; equal values give equal bytes."""
    arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    arrays[_OURS] = np.array(json.dumps(described))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return files.write_bytes(path, buffer.getvalue())


def read_ours(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What :func:`write` wrote; None where others wrote the file.

    Raises:
        StoreError: damaged, or no archive of arrays.
    """
    arrays = _arrays(path)
    if _OURS not in arrays:
        return None
    with files.reading(path, "distilled set"):
        described = json.loads(str(arrays.pop(_OURS)))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, described


def read(path: Path) -> Contents:
    """Arrays images, labels and, where it is there, lr.

    Raises:
        StoreError: damaged, or without them.
    """
    return contents_of(path, _arrays(path))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with files.reading(path, "distilled set"):
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(error) from error
