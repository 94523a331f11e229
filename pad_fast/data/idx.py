"""The files of MNIST and FashionMNIST as they are distributed: arrays in the IDX format, compressed or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DatasetError

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def find_idx(folder: Path, name: str) -> list[Path] | None:
    """The four files, each as `.gz` or unpacked, in one of the places they are put; None where they are not.

    Args:
        folder: the data folder.
        name: "MNIST" or "FashionMNIST".
    """
    for place in (folder / name / "raw", folder / name, folder / name.lower(), folder):
        found = [next((p for p in (place / file, place / f"{file}.gz") if p.is_file()), None) for file in _FILES]
        present = [path for path in found if path is not None]
        if len(present) == len(_FILES):
            return present
    return None


def read_idx(path: Path) -> Tensor:
    """One array of bytes, uint8 of the shape that the file states.

    Raises:
        DatasetError: it is no IDX file of bytes, or is truncated.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"cannot read {path}: {error}. Fetch the file again.") from error
    # Two zero bytes, 8 for uint8, the number of axes; then each axis' length as a big-endian 32-bit number.
    axes = data[3] if len(data) > 4 and data[:3] == b"\x00\x00\x08" else 0
    shape = [int(length) for length in np.frombuffer(data[4 : 4 + 4 * axes], ">u4")]
    if not shape or len(shape) != axes or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise DatasetError(f"{path} is no IDX file of bytes, or is truncated. Fetch the file again.")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
