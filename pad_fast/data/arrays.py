"""From what a user has (tensors, arrays, dicts, torch Datasets) to images `[N, C, H, W]` and labels `[N]`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DatasetError, nearest
from ..runtime.rng import generator
from .pictures import DEEP, Oddities, picture_to_tensor, settle_depth

TEST_FRACTION = 0.2

logger = logging.getLogger("pad_fast")

RENUMBER = "Others are renumbered by torch.unique(labels, return_inverse=True)[1], over all splits together."

_CHUNK = 4096  # images converted at a time: bounds temporaries


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set as its source delivers it: images uint8 or floating point, nothing checked across the splits.

    `class_names` and `statistics` (mean, std) are None where the source does not know them.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...] | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def splits_from(source: object, resolution: int | None) -> Splits | None:
    """Read a tuple, dict or torch Dataset; None when `source` is none of these."""
    if isinstance(source, torch.utils.data.Dataset):
        return split_off_test("torch-dataset", *_read_torch_dataset(source, "the data set", resolution))
    if isinstance(source, Mapping):
        return _from_mapping(source, resolution)
    if not isinstance(source, tuple | list):
        return None
    parts = tuple(source)
    if len(parts) == 2 and all(isinstance(part, torch.utils.data.Dataset) for part in parts):
        train_images, train_labels, names = _read_torch_dataset(parts[0], "the training set", resolution)
        test_images, test_labels, _ = _read_torch_dataset(parts[1], "the test set", resolution)
        return Splits("torch-dataset", train_images, train_labels, test_images, test_labels, names)
    if len(parts) == 2:
        return _from_mapping(dict(zip(("images", "labels"), parts, strict=True)), resolution)
    if len(parts) == 4:
        return _from_mapping(dict(zip(_FOUR, parts, strict=True)), resolution)
    raise DatasetError(
        f"a data set given as a tuple has 2 parts (images, labels) or 4 (train_images, train_labels, test_images, "
        f"test_labels); got {len(parts)}."
    )


def stratified_split(labels: Tensor, *, fraction: float = TEST_FRACTION, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ascending train and test indices with `fraction` of every class, rounded so that the total is right.

    The total is `ceil(fraction * N)`: classes get the floor of their share, at least one image, and the largest
    remainders one more. Every class keeps at least one image on each side, which can shift the total when classes
    are very small.

    Args:
        labels: int64 `[N]`, non-negative.
        fraction: part that goes to the test set.
        seed: of the permutation within each class.

    Raises:
        DatasetError: a class has a single image.

    Example:
        >>> train, test = stratified_split(torch.arange(10) % 2)
        >>> len(train), len(test)
        (8, 2)
    """
    counts = torch.bincount(labels)
    lonely = (counts == 1).nonzero().flatten().tolist()
    if lonely:
        raise DatasetError(
            f"class {lonely[0]} has one image, which cannot be in the training and the test set; add images, or "
            "pass (train_images, train_labels, test_images, test_labels)."
        )
    exact = counts.double() * fraction
    share = torch.where(counts > 0, exact.floor().long().clamp_min(1), 0)
    missing = math.ceil(fraction * len(labels) - 1e-9) - int(share.sum())
    share[torch.argsort(exact - share, descending=True, stable=True)[: max(missing, 0)]] += 1
    share = torch.minimum(share, (counts - 1).clamp_min(0))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in (counts > 0).nonzero().flatten().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", label))
        is_test[members[order[: int(share[label])]]] = True
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()


def stack_images(items: Sequence[Tensor], describe: Callable[[int], str]) -> Tensor:
    """Stack images `[C, H, W]`; a mixture of single-channel and RGB images becomes RGB.

    Raises:
        DatasetError: the images differ in size, channels or kind; `describe(index)` names the culprits.
    """
    first = items[0].shape[-2:]
    for index, item in enumerate(items):
        if item.shape[-2:] != first:
            raise DatasetError(
                f"images of mixed size: {describe(0)} is {_size(first)}, {describe(index)} is "
                f"{_size(item.shape[-2:])}. Pass resolution= to resize them all."
            )
    channels = max(item.shape[0] for item in items)
    for index, item in enumerate(items):
        # Grey beside RGB is what folders of pictures hold; a band beside several bands is a mistake.
        if item.shape[0] != channels and (item.shape[0], channels) != (1, 3):
            raise DatasetError(
                f"images with different channels: {describe(index)} has {item.shape[0]}, others have {channels}. Give "
                "all of them with the same channels."
            )
    kinds = {item.dtype for item in items}
    if DEEP in kinds and len(kinds) > 1:  # a single kind waits for the other split
        items = settle_depth(items, "one set")
    if len({item.dtype == torch.uint8 for item in items}) > 1:
        raise DatasetError("some images are uint8, others floating point; give all of them in one dtype.")
    return torch.stack([item.expand(channels, -1, -1) for item in items])


def unit_pixels(images: Tensor) -> Tensor:
    """Contiguous float32 on the CPU; uint8 is divided by 255, floating point values are kept."""
    if images.dtype != torch.uint8:
        return images.detach().to("cpu", torch.float32).contiguous()
    return images.to("cpu", torch.float32, memory_format=torch.contiguous_format, copy=True).div_(255)


def resize(images: Tensor, resolution: int) -> Tensor:
    """Shorter side to `resolution` (bilinear, antialiased), then the centre square; uint8 becomes float in [0, 1].

    Images that already have that size are returned as they are.
    """
    height, width = images.shape[-2:]
    if height == width == resolution:
        return images
    short = min(height, width)
    size = (resolution * height // short, resolution * width // short)
    top, left = round((size[0] - resolution) / 2), round((size[1] - resolution) / 2)
    pieces = []
    for chunk in images.split(_CHUNK):
        scaled = F.interpolate(unit_pixels(chunk), size=size, mode="bilinear", antialias=True, align_corners=False)
        pieces.append(scaled[..., top : top + resolution, left : left + resolution].contiguous())
    return torch.cat(pieces)


_FOUR = ("train_images", "train_labels", "test_images", "test_labels")
_VALIDATION = ("val_images", "val_labels")
_EXTRA = ("name", "class_names", "mean", "std")


def _from_mapping(source: Mapping[Any, Any], resolution: int | None) -> Splits:
    known = (*_FOUR, *_VALIDATION, "images", "labels", *_EXTRA)
    for key in source:
        if key not in known:
            raise DatasetError(
                f"data set key {key!r} is unknown; known are {', '.join(known)}.{nearest(str(key), known)}"
            )
    if ("mean" in source) != ("std" in source):
        raise DatasetError("give both mean and std, or neither (they are then computed from the training images).")
    if all(key in source for key in _FOUR):
        if _VALIDATION[0] in source:  # as in the files of MedMNIST
            logger.warning(f"the {len(source[_VALIDATION[0]])} validation images of the data set are not used")
        splits = Splits(
            "tensors",
            _images(source["train_images"], "train_images", resolution),
            _labels(source["train_labels"], "train_labels"),
            _images(source["test_images"], "test_images", resolution),
            _labels(source["test_labels"], "test_labels"),
        )
    elif "images" in source and "labels" in source:
        images, labels = _images(source["images"], "images", resolution), _labels(source["labels"], "labels")
        splits = split_off_test("tensors", images, labels, None)
    else:
        raise DatasetError(
            f"a data set given as a dict needs {', '.join(_FOUR)}, or images and labels; got {list(source)}."
        )
    names = source.get("class_names")
    return Splits(
        str(source.get("name", splits.name)),
        splits.train_images,
        splits.train_labels,
        splits.test_images,
        splits.test_labels,
        tuple(str(name) for name in names) if names is not None else None,
        (_floats(source["mean"], "mean"), _floats(source["std"], "std")) if "mean" in source else None,
    )


def split_off_test(name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...] | None) -> Splits:
    """A set without test images: a fixed fifth of every class becomes them.

    Raises:
        DatasetError: labels do not fit the images, or a class has a single image.
    """
    if len(images) != len(labels):
        raise DatasetError(f"{len(images)} images but {len(labels)} labels; each image needs one label.")
    if len(labels) == 0:
        raise DatasetError("the data set is empty: no images.")
    check_label_range(labels, "labels", len(labels))
    train, test = stratified_split(labels)
    return Splits(name, images[train], labels[train], images[test], labels[test], class_names)


def check_label_range(labels: Tensor, what: str, images: int) -> None:
    """Refuse negative labels and labels so large that classes must be empty, before anything is sized by them.

    Raises:
        DatasetError: a label is outside [0, images).
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= images:
        ignored = " -100 marks labels to be ignored elsewhere: leave those images out." if low == -100 else ""
        raise DatasetError(
            f"{what} run from {low} to {high}; class ids must be 0, 1, 2, ... without gaps ({images} images cannot "
            f"fill more than {images} classes).{ignored} {RENUMBER}"
        )


def _images(value: object, what: str, resolution: int | None) -> Tensor:
    """Tensor, array or list of images as uint8 or floating point `[N, C, H, W]`."""
    if isinstance(value, list | tuple):
        if not value:
            raise DatasetError(f"{what} is empty: no images.")
        oddities = Oddities()
        items = [_item(item, f"{what}[{index}]", resolution, oddities) for index, item in enumerate(value)]
        oddities.say(len(items), what)
        return stack_images(items, lambda index: f"{what}[{index}]")
    if isinstance(value, np.ndarray):
        value = _from_numpy(value, what)
    if not isinstance(value, Tensor):
        raise DatasetError(f"{what} must be a tensor, an array or a list of images; got {type(value).__name__}.")
    _check_pixel_dtype(value.dtype, what)
    if value.dim() == 3:
        value = value[:, None]
    if value.dim() != 4:
        raise DatasetError(f"{what} must be [N, C, H, W] or [N, H, W]; got {list(value.shape)}.")
    return value.permute(0, 3, 1, 2) if channels_last(*value.shape[1:]) else value


def channels_last(first: int, second: int, last: int) -> bool:
    """Whether an image of this shape is `[H, W, C]`, the layout of most arrays, rather than `[C, H, W]`.

    Whatever is square tells by itself, with any number of channels. Of others, the side of 1 or 3 is the channels, or
    else the shorter end.
    """
    if second == last:
        return False
    if first == second:
        return True
    if (first in (1, 3)) != (last in (1, 3)):
        return last in (1, 3)
    return last < first


def _labels(value: object, what: str) -> Tensor:
    """Class ids as int64 `[N]` on the CPU."""
    if isinstance(value, np.ndarray):
        value = _from_numpy(value, what)
    elif not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DatasetError(f"{what} must be integer class ids [N]: {error}") from error
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise DatasetError(
            f"{what} must be integer class ids, got {value.dtype}; convert them, for example labels.long()."
        )
    if value.dim() == 2 and value.shape[1] == 1:  # a column, as MedMNIST has it
        value = value[:, 0]
    if value.dim() != 1:
        hint = " Of one-hot rows take labels.argmax(1)." if value.dim() == 2 else ""
        raise DatasetError(f"{what} must have shape [N] with one class id per image; got {list(value.shape)}.{hint}")
    return value.detach().to("cpu", torch.int64)


def _from_numpy(value: np.ndarray, what: str) -> Tensor:
    value = np.ascontiguousarray(value)
    try:
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    except TypeError as error:
        raise DatasetError(f"{what} has dtype {value.dtype}, which is not a number type torch knows.") from error


def _check_pixel_dtype(dtype: torch.dtype, what: str) -> None:
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise DatasetError(f"{what} has dtype {dtype}; give uint8 (0 to 255) or floating point pixels.")


def _item(value: Any, what: str, resolution: int | None, oddities: Oddities) -> Tensor:
    """One image as `[C, H, W]`, from a tensor, an array or a PIL image; of the first two either layout."""
    if isinstance(value, Tensor):
        image = value.detach().cpu()
    elif isinstance(value, np.ndarray):
        image = _from_numpy(value, what)
    elif hasattr(value, "convert") and hasattr(value, "mode"):
        try:
            return picture_to_tensor(value, resolution, oddities)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{what} cannot be read as pixels: {error}") from error
    else:
        raise DatasetError(f"{what} must be a tensor, an array or a PIL image; got {type(value).__name__}.")
    if image.dim() == 2:
        image = image[None]
    if image.dim() != 3:
        raise DatasetError(f"{what} must be one image [C, H, W] or [H, W]; got {list(image.shape)}.")
    if channels_last(*image.shape):
        image = image.permute(2, 0, 1)
    _check_pixel_dtype(image.dtype, what)
    return unit_pixels(resize(image[None], resolution))[0] if resolution is not None else image


def _read_torch_dataset(
    dataset: Any, what: str, resolution: int | None
) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """All items of a map-style torch Dataset: images, int64 labels and its `classes`, if it has any."""
    try:
        count = len(dataset)
    except TypeError as error:
        raise DatasetError(
            f"{what} is a {type(dataset).__name__} without a length; give a map-style torch Dataset."
        ) from error
    if count == 0:
        raise DatasetError(f"{what} is empty: no images.")
    items, labels, oddities = [], [], Oddities()
    for index in range(count):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DatasetError(f"item {index} of {what} is not a pair (image, label).")
        items.append(_item(item[0], f"image {index} of {what}", resolution, oddities))
        labels.append(_label(item[1], f"label {index} of {what}"))
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = None
    oddities.say(count, what)
    images = stack_images(items, lambda index: f"image {index} of {what}")
    return images, torch.tensor(labels), tuple(names) if names is not None else None


def _label(value: Any, what: str) -> int:
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DatasetError(f"{what} must be an integer class id; got {value!r}.")
    return int(value)


def _floats(values: Any, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{what} must be one number per channel; got {values!r}.") from error


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def to_bytes(pixels: Tensor, *, stretch: bool = False) -> Tensor:
    """Images as uint8 of the same shape `[N, C, H, W]` on the CPU; arguments as in :func:`image_grid`."""
    values = pixels.detach().to("cpu", torch.float32)
    if pixels.dtype == torch.uint8:
        values = values / 255
    if stretch:
        ordered = values.flatten(1).sort(1).values  # torch.quantile refuses large tensors
        rank = round(0.01 * (ordered.shape[1] - 1))
        low, high = (ordered[:, i].view(-1, 1, 1, 1) for i in (rank, -1 - rank))
        # An image of one value has nothing to stretch; it keeps its brightness.
        values = torch.where(high > low, (values - low) / (high - low).clamp_min(1e-12), values)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)
