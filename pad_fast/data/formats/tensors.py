"""Tensors and arrays: one `.pt` with all parts, or `.pt` and `.npy` files with a part each, side by side."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import StoreError
from ...runtime import files
from .contents import Contents, contents_of

logger = logging.getLogger("pad_fast")

_PARTS = ("images", "labels", "lr")
_WHAT = "distilled set"


def read(path: Path) -> Contents:
    """A set from a `.pt` that holds a dict or a tuple, or from an images file with the labels' file beside it.

    A dict is one of images, labels and lr, or what DC's, DSA's and DM's programs save, `{"data": [[images, labels],
    ...]}`, of which the last experiment is read. The labels' file is called as the images', with "labels" in place of
    "images", or labels.pt, labels.npy; a learning rate is looked for in the same way.

    Raises:
        StoreError: something else, or no labels.
    """
    value = _value(path)
    if isinstance(value, Mapping):
        if isinstance(sets := value.get("data"), list) and sets and isinstance(sets[-1], list | tuple):
            if len(sets) > 1:
                logger.info(f"{path} holds {len(sets)} distilled sets, of one experiment each; the last is read")
            value = dict(zip(_PARTS, sets[-1], strict=False))
        return contents_of(path, value)
    if isinstance(value, list | tuple):
        if len(value) not in (2, 3):
            raise StoreError(f"{path} holds a {type(value).__name__} of {len(value)}; expected (images, labels[, lr])")
        return contents_of(path, dict(zip(_PARTS, value, strict=False)))
    if not isinstance(value, Tensor | np.ndarray):
        raise StoreError(f"{path} holds a {type(value).__name__}; expected images, or a dict or tuple with labels")
    labels, rate = (_beside(path, part) for part in _PARTS[1:])
    if "images" not in path.name and (labels == path or not labels.exists()):
        raise StoreError(
            f"{path} is not called as the images of a set are; name the images' file, images_X.pt, with labels_X.pt "
            f"(and lr_X.pt) beside it, or put {labels.name} beside this one"
        )
    if not labels.exists():
        raise StoreError(
            f"{path} holds images, and there is no {labels.name} beside it, which has the label of each; put it there"
        )
    parts = {"images": value, "labels": _value(labels)}
    return contents_of(path, {**parts, "lr": _value(rate)} if rate.exists() else parts)


def write(folder: Path, parts: Mapping[str, Tensor]) -> None:
    """`NAME.pt` for every part, each atomically."""
    for name, tensor in parts.items():
        files.write_torch(folder / f"{name}.pt", tensor)


def _value(path: Path) -> Any:
    if path.suffix == ".pt":
        return files.read_torch(path, _WHAT)
    with files.reading(path, _WHAT):
        return torch.from_numpy(np.load(path, allow_pickle=False))


def _beside(path: Path, part: str) -> Path:
    return path.with_name(path.name.replace("images", part, 1) if "images" in path.name else part + path.suffix)
