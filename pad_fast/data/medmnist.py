"""MedMNIST's objects: torch data sets that say themselves what their labels are. Its `.npz` files are plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DatasetError
from .splits import Reading, Splits
from .torch_datasets import from_torch


def is_medmnist(source: object) -> bool:
    """Whether it is an object of MedMNIST's classes, or a pair of them (train, test), by what it has."""
    parts = source if isinstance(source, tuple | list) and len(source) == 2 else [source]
    return all(
        hasattr(part, "imgs") and hasattr(part, "labels") and isinstance(getattr(part, "info", None), Mapping)
        for part in parts
    )


def from_medmnist(source: Any, reading: Reading) -> Splits:
    """One split, or the training and the test split; read as torch data sets, so that transforms and `as_rgb` count.

    Raises:
        DatasetError: volumes, or several findings an image.
    """
    first = source[0] if isinstance(source, tuple | list) else source
    if first.imgs.ndim > 3 and first.imgs.shape[-1] not in (1, 3):
        raise DatasetError(
            f"{type(first).__name__} holds volumes {list(first.imgs.shape[1:])}; networks here take images. Use a "
            "two-dimensional set of MedMNIST, or pass slices of the volumes as arrays."
        )
    if "multi-label" in str(first.info.get("task", "")):
        raise DatasetError(
            f"{type(first).__name__} has several findings for an image (multi-label), and no class to distil images "
            "of. Use a set with one class an image, or pass as arrays the images of one finding each, those of "
            "labels.sum(1) == 1."
        )
    names = first.info.get("label")
    ordered = tuple(str(names[key]) for key in sorted(names, key=int)) if isinstance(names, Mapping) else None
    return from_torch(source, reading, ordered)
