"""Tensors and arrays in tuples, dicts and `.npz` files, under the keys that people use."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, nearest
from .arrays import images_from
from .splits import Reading, Splits

logger = logging.getLogger("pad_fast")

_FOUR = ("train_images", "train_labels", "test_images", "test_labels")
_TWO = ("images", "labels")
_VALIDATION = ("val_images", "val_labels")
_PAIRS = (_TWO, _FOUR[:2], _FOUR[2:], _VALIDATION)
_EXTRA = ("name", "class_names", "mean", "std")
_KNOWN = (*_FOUR, *_VALIDATION, *_TWO, *_EXTRA)
# How Keras and its files name them.
_OTHER_WORDS = {
    **{f"x_{split}": f"{split}_images" for split in ("train", "val", "test")},
    **{f"y_{split}": f"{split}_labels" for split in ("train", "val", "test")},
}

NPZ = ".npz"


def from_npz(path: Path, reading: Reading) -> Splits:
    """A NumPy archive with the keys of :func:`from_mapping`; MedMNIST's and Keras' files are such.

    Raises:
        DatasetError: no such archive, other keys, or arrays of Python objects, which are never loaded.
    """
    if not path.is_file():
        raise DatasetError(f"{path.absolute()} does not exist.")
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no zip archive")
        with np.load(path, allow_pickle=False) as file:
            content = {key: file[key] for key in file.files}
    except ValueError as error:
        raise DatasetError(
            f"{path} holds Python objects, which are not loaded because they may run programs; save numbers, and names "
            "as np.array(names, dtype=str)."
        ) from error
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DatasetError(f"cannot read {path} as a NumPy archive (truncated?): {error}") from error
    content = {key: value.item() if value.ndim == 0 else value for key, value in content.items()}
    return from_mapping({"name": path.stem, **content}, reading)


def from_tuple(parts: tuple[Any, ...] | list[Any], reading: Reading) -> Splits:
    """`(images, labels)` or `(train_images, train_labels, test_images, test_labels)`."""
    if len(parts) == 2:
        return from_mapping(dict(zip(_TWO, parts, strict=True)), reading)
    if len(parts) == 4:
        return from_mapping(dict(zip(_FOUR, parts, strict=True)), reading)
    raise DatasetError(
        f"a data set given as a tuple has 2 parts (images, labels) or 4 (train_images, train_labels, test_images, "
        f"test_labels), or is a pair of data sets (train, test); got {len(parts)}."
    )


def from_mapping(source: Mapping[Any, Any], reading: Reading) -> Splits:
    """A dict of images and labels, with or without a test set; validation images serve where there are no test images.

    Raises:
        DatasetError: unknown or missing keys, or values that are no images.
    """
    values = {_OTHER_WORDS.get(str(key).lower(), key): value for key, value in source.items()}
    if len(values) < len(source):
        raise DatasetError(
            f"the data set gives the same twice, under two names: {', '.join(source)}. Keep one of them."
        )
    for key in values:
        if key not in _KNOWN:
            raise DatasetError(
                f"data set key {key!r} is unknown; known are {', '.join(_KNOWN)}.{nearest(str(key), _KNOWN)}"
            )
    if ("mean" in values) != ("std" in values):
        raise DatasetError("give both mean and std, or neither (they are then computed from the training images).")
    names, name = values.get("class_names"), str(values.get("name", "tensors"))
    given = [pair for pair in _PAIRS if set(pair) & set(values)]
    tested = next((pair for pair in (_FOUR[2:], _VALIDATION) if pair in given), None)
    images, labels = _FOUR[:2] if tested or _TWO not in given else _TWO
    needed = {images, labels, *(key for pair in given for key in pair)}
    if not needed <= set(values) or len({_TWO, _FOUR[:2]} & set(given)) != 1:
        raise DatasetError(
            f"a data set given as a dict needs {', '.join(_FOUR)} (or x_train, y_train, x_test, y_test), or images and "
            f"labels; got {list(source)}."
        )
    if tested == _FOUR[2:] and _VALIDATION[0] in values:  # as in the files of MedMNIST
        logger.warning(f"the {len(values[_VALIDATION[0]])} validation images of the data set are not used")
    elif tested == _VALIDATION:
        logger.warning(f"{name} has no test images: its {len(values[_VALIDATION[0]])} validation images are tested on")
    return Splits(
        name,
        images_from(values[images], images, reading.resolution),
        values[labels],
        images_from(values[tested[0]], tested[0], reading.resolution) if tested else None,
        values[tested[1]] if tested else None,
        tuple(str(each) for each in names) if names is not None else None,
        (_floats(values["mean"], "mean"), _floats(values["std"], "std")) if "mean" in values else None,
    )


def _floats(values: Any, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{what} must be one number per channel; got {values!r}.") from error
