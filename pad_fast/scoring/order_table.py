"""Order tables of other programs: the indices of training images, easy to hard, in the shapes they are saved in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import ImageDataset
from ..errors import StoreError
from ..runtime import files

SUFFIXES = (".pt", ".npy")
EXPECTED = (
    "expected integers, the dataset indices easy to hard: [classes, images per class], a list with one row for each "
    "class, or one row of all images [N]"
)


def read_order_table(path: Path, data: ImageDataset | None) -> list[Tensor]:
    """Dataset indices of every class, easy to hard, int64 `[n_c]` each.

    Args:
        path: a `.pt` file with a tensor, a list or an array, or a `.npy` file with an array.
        data: tells the classes of a table with one row of all images.

    Raises:
        StoreError: the file holds something else, or one row of all images and the data are not known.
    """
    table = _contents(path)
    try:
        rows = _rows(table)
        if rows is None:
            return _by_class(_integers(table), path, data)
        return [_integers(row) for row in rows]
    except StoreError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise StoreError(f"{path} is not an index table: it holds {_described(table)} ({error}); {EXPECTED}") from error


def require_permutation(order: list[Tensor], path: Path) -> int:
    """The number of images in an order.

    Raises:
        StoreError: it does not hold each of them once.
    """
    everything = torch.cat(order)
    count = len(everything)
    if not torch.equal(everything.sort().values, torch.arange(count)):
        raise StoreError(
            f"{path}: the {count} indices are not a permutation of 0..{count - 1}; each image must occur once"
        )
    return count


def _contents(path: Path) -> Any:
    if path.suffix == ".pt":
        return files.read_torch(path, "order table")
    with files.reading(path, "order table"):
        return np.load(path, allow_pickle=False)


def _rows(table: Any) -> list[Any] | None:
    """The rows of the classes; None of a table that is one row itself."""
    if isinstance(table, Tensor | np.ndarray):
        if table.ndim not in (1, 2):
            raise ValueError(f"{table.ndim} axes")
        return list(table) if table.ndim == 2 else None
    if not isinstance(table, list | tuple):
        raise TypeError("no table")
    if not table:
        raise ValueError("no rows")
    # Of a list of numbers, or of tensors and arrays of one number.
    return None if all(np.ndim(row) == 0 for row in table) else list(table)


def _integers(row: Any) -> Tensor:
    values = torch.as_tensor(row)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{str(values.dtype).removeprefix('torch.')} where integers are expected")
    if values.dim() != 1:
        raise ValueError(f"a row of shape {list(values.shape)}")
    return values.detach().to("cpu", torch.int64)


def _by_class(everything: Tensor, path: Path, data: ImageDataset | None) -> list[Tensor]:
    """One order of all images as one of each class."""
    count = require_permutation([everything], path)
    if data is None:
        raise StoreError(
            f"{path} holds one order of {count} images, and only the data say their classes; pass them with it: "
            "Difficulty.load(path, data)"
        )
    if count != len(data.train_labels):
        raise StoreError(
            f"{path} holds one order of {count} images, but {data.name} has {len(data.train_labels)} training images"
        )
    labels = data.train_labels[everything]
    return [everything[labels == label] for label in range(data.classes)]


def _described(table: Any) -> str:
    if isinstance(table, Tensor | np.ndarray):
        return f"{str(table.dtype).removeprefix('torch.')} values of shape {list(table.shape)}"
    if isinstance(table, list | tuple):
        first = f", the first a {type(table[0]).__name__}" if table else ""
        return f"a {type(table).__name__} of {len(table)}{first}"
    return f"a {type(table).__name__}"
