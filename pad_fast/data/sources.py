"""Everything that a data set can be read from, in the order in which a source is recognised."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from . import hugging_face, mappings, medmnist, named, torch_datasets
from .folders import load_image_folder
from .splits import Reading, Splits

IMAGE_FOLDER = "imagefolder:"


@dataclass(frozen=True)
class Source:
    """A kind of source: whether something is one, and how it is read."""

    kind: str
    takes: Callable[[Any], bool]
    read: Callable[[Any, Reading], Splits]


def spelled(path: os.PathLike[str]) -> str:
    """A file or folder in words that :func:`read` understands, by what lies there."""
    text = os.fspath(path)
    if text.lower().endswith(mappings.NPZ):
        return text
    theirs = text.lower().endswith(hugging_face.PARQUET) or hugging_face.is_saved(Path(text).expanduser())
    return f"{hugging_face.PREFIX if theirs else IMAGE_FOLDER}{text}"


def absolute(dataset: str) -> str:
    """The words for a data set with the path in them absolute, where there is one."""
    if _is_path(dataset):
        dataset = spelled(Path(dataset))
    if dataset.lower().startswith(IMAGE_FOLDER):
        return IMAGE_FOLDER + _absolute(dataset[len(IMAGE_FOLDER) :])
    if dataset.lower().startswith(hugging_face.PREFIX):
        place = dataset[len(hugging_face.PREFIX) :]
        path, comma, options = (place, "", "") if Path(place).expanduser().exists() else place.partition(",")
        there = bool(path) and Path(path).expanduser().exists()
        return f"{hugging_face.PREFIX}{_absolute(path)}{comma}{options}" if there else dataset
    return _absolute(dataset) if _is_npz(dataset) else dataset


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def needs_folder(dataset: str) -> bool:
    """Whether the files of a data set are looked for in the folder of the named sets."""
    return named.is_name(dataset) and named.canonical_name(dataset) != "digits"


def _is_named_for(prefix: str) -> Callable[[Any], bool]:
    return lambda source: isinstance(source, str) and source.lower().startswith(prefix)


def _is_npz(source: Any) -> bool:
    return isinstance(source, str) and source.lower().endswith(mappings.NPZ)


def _is_path(source: Any) -> bool:
    return isinstance(source, os.PathLike) or (
        isinstance(source, str)
        and (
            source.lower().endswith(hugging_face.PARQUET)
            or ((os.sep in source or not named.is_name(source)) and os.path.isdir(os.path.expanduser(source)))
        )
    )


def _image_folder(source: str, reading: Reading) -> Splits:
    return load_image_folder(Path(source[len(IMAGE_FOLDER) :]).expanduser(), reading)


SOURCES = (
    Source(hugging_face.PREFIX, _is_named_for(hugging_face.PREFIX), hugging_face.from_name),
    Source(IMAGE_FOLDER, _is_named_for(IMAGE_FOLDER), _image_folder),
    Source(mappings.NPZ, _is_npz, lambda at, reading: mappings.from_npz(Path(at).expanduser(), reading)),
    Source("path", _is_path, lambda at, reading: read(spelled(Path(at)), reading)),
    Source("name", lambda source: isinstance(source, str), named.load_named),
    Source("DatasetDict", hugging_face.is_object, hugging_face.from_object),
    Source("MedMNIST", medmnist.is_medmnist, medmnist.from_medmnist),
    Source("torch", torch_datasets.is_torch, torch_datasets.from_torch),
    Source("dict", lambda source: isinstance(source, Mapping), mappings.from_mapping),
    Source("tuple", lambda source: isinstance(source, tuple | list), mappings.from_tuple),
)


def read(source: object, reading: Reading) -> Splits:
    """Images and labels of whatever `source` is.

    Raises:
        DatasetError: it is nothing that is known here, or cannot be read.
    """
    for each in SOURCES:
        if each.takes(source):
            return each.read(source, reading)
    loader = " Of a DataLoader give its .dataset." if hasattr(source, "dataset") else ""
    raise DatasetError(
        f"cannot read a data set from a {type(source).__name__}; give a name, imagefolder:PATH, hf:NAME, a .npz file, "
        f"tensors (images, labels), a dict, a torch or Hugging Face Dataset, or an ImageDataset.{loader}"
    )
