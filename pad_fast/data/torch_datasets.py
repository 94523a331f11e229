"""Map-style torch data sets of (image, label), torchvision's among them, with the transforms that they have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..errors import DatasetError
from .arrays import image_from, stack_images
from .pictures import Oddities
from .splits import Reading, Splits

_READ_TWICE = 16  # items; a flip of every other one stays unseen in 1 of 65,536 data sets


def from_torch(source: Any, reading: Reading, names: tuple[str, ...] | None = None) -> Splits:
    """A data set, or a pair of them (train, test).

    Args:
        names: the class names, where something else than the data sets' `classes` says them.

    Raises:
        DatasetError: items that are not pairs of an image and a label, that change from one reading to the next, or
            classes that differ between the two.
    """
    if not isinstance(source, tuple | list):
        images, labels = _items(source, "the data set", reading)
        return Splits("torch-dataset", images, labels, class_names=names or _class_names(source))
    said = [_class_names(part) for part in source]
    if said[0] and said[1] and said[0] != said[1]:
        raise DatasetError(
            f"training and test set have different classes: only in training {_only(said[0], said[1])}, only in test "
            f"{_only(said[1], said[0])}; one label would mean two of them. Both need the same ones in the same order."
        )
    train, test = (
        _items(part, what, reading) for part, what in zip(source, ("the training set", "the test set"), strict=True)
    )
    return Splits("torch-dataset", *train, *test, names or said[0] or said[1])


def is_torch(source: object) -> bool:
    """Whether it is a torch data set, or a pair of them."""
    parts = source if isinstance(source, tuple | list) and len(source) == 2 else [source]
    return all(isinstance(part, Dataset) for part in parts)


def _items(dataset: Any, what: str, reading: Reading) -> tuple[Tensor, list[Any]]:
    """Images `[N, C, H, W]` and the labels as they come."""
    try:
        count = len(dataset)
    except TypeError as error:
        raise DatasetError(
            f"{what} is a {type(dataset).__name__} without a length; give a map-style torch Dataset."
        ) from error
    if count == 0:
        raise DatasetError(f"{what} is empty: no images.")
    images: list[Tensor] = []
    labels, oddities = [], Oddities()
    for index in reading.progress.track(range(count), f"data: {what}", total=count, unit="image"):
        image, label = _item(dataset, index, what, reading, oddities)
        if index < _READ_TWICE and not torch.equal(
            image.nan_to_num(), _item(dataset, index, what, reading, Oddities())[0].nan_to_num()
        ):
            raise DatasetError(
                f"image {index} of {what} differs from one reading to the next: its transform draws at random. Leave "
                "random transforms out: batches are augmented here (dsa), and the data have to stay the same."
            )
        images.append(image)
        labels.append(label)
    oddities.say(count, what)
    return stack_images(images, lambda index: f"image {index} of {what}"), labels


def _item(dataset: Any, index: int, what: str, reading: Reading, oddities: Oddities) -> tuple[Tensor, Any]:
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DatasetError(f"item {index} of {what} is not a pair (image, label).")
    return image_from(item[0], f"image {index} of {what}", reading.resolution, oddities), item[1]


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    while isinstance(dataset, Subset) and not hasattr(dataset, "classes"):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    usable = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if usable and names else None


def _only(one: tuple[str, ...], other: tuple[str, ...]) -> list[str]:
    return [name for name in one if name not in other][:5]
