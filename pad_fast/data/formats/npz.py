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

OURS = "pad_fast"
"""The array with our description, as JSON."""

_WHAT = "distilled set"


def write(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Path:
    """Tensors as arrays by name, and our description; equal values give equal bytes."""
    stored: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    stored[OURS] = np.array(json.dumps(described))
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    return files.write_bytes(path, buffer.getvalue())


def read_ours(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What :func:`write` wrote; None where others wrote the file.

    Raises:
        StoreError: damaged, or no archive of arrays.
    """
    found = arrays(path, _WHAT)
    if OURS not in found:
        return None
    with files.reading(path, _WHAT):
        described = json.loads(str(found.pop(OURS)))
        return {name: torch.from_numpy(array) for name, array in found.items()}, described


def read(path: Path) -> Contents:
    """Arrays images, labels and, where it is there, lr.

    Raises:
        StoreError: damaged, or without them.
    """
    return contents_of(path, arrays(path, _WHAT))


def arrays(path: Path, what: str) -> dict[str, np.ndarray]:
    """Every array of an archive by name; `what` names the file's role in the error.

    Raises:
        StoreError: damaged, or no archive of arrays.
    """
    with files.reading(path, what):
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(error) from error
