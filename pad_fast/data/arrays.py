"""Images in the forms people have them (tensors, arrays, lists, either layout, any range) as `[N, C, H, W]`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DatasetError
from .pictures import DEEP, Oddities, picture_to_tensor, settle_depth

logger = logging.getLogger("pad_fast")

_CHUNK = 4096  # images converted at a time: bounds temporaries


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
                f"{_size(item.shape[-2:])}. Pass resolution= to resize them all, to load_dataset or distill "
                "(--resolution)."
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


def images_from(value: object, what: str, resolution: int | None) -> Tensor:
    """Tensor, array or list of images as uint8 or floating point `[N, C, H, W]`."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not len(value):
            raise DatasetError(f"{what} is empty: no images.")
        oddities = Oddities()
        items = [image_from(item, f"{what}[{index}]", resolution, oddities) for index, item in enumerate(value)]
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


def _from_numpy(value: np.ndarray, what: str) -> Tensor:
    value = np.ascontiguousarray(value)
    try:
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    except TypeError as error:
        raise DatasetError(f"{what} has dtype {value.dtype}, which is not a number type torch knows.") from error


def _check_pixel_dtype(dtype: torch.dtype, what: str) -> None:
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise DatasetError(f"{what} has dtype {dtype}; give uint8 (0 to 255) or floating point pixels.")


def image_from(value: Any, what: str, resolution: int | None, oddities: Oddities) -> Tensor:
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
