"""Pictures that PIL has opened, as tensors of what a viewer shows; what was not plain about them is said once.

Upright as the EXIF tag says, on white where they are transparent, gray or RGB. Gray values of more than 8 bits keep
their precision until the whole set is known: files of 12-bit values in 16-bit or 32-bit containers say nowhere that
they end at 4095, only the set's largest value does.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("pad_fast")

DEEP = torch.int32
"""Dtype of gray values of more than 8 bits whose scale is not known yet; see :func:`settle_depth`."""

# Depths that cameras, scanners and microscopes have; the smallest one that holds a set's largest value is taken.
_DEPTHS = (8, 10, 12, 14, 16, 20, 24, 31)


class Oddities:
    """Counts what was not plain about the pictures of one set, from several threads, and says it once."""

    turned = "turned upright as their EXIF tag says"
    transparent = "transparent: put on white, as a browser shows them"
    inks = "in inks (CMYK): their colours are taken without a profile"

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, what: str) -> None:
        """One more picture."""
        with self._lock:
            self._counts[what] += 1

    def say(self, total: int, what: str) -> None:
        """Log every kind with its count; `what` are the pictures of."""
        for kind, count in sorted(self._counts.items()):
            logger.warning(f"{count} of the {total} images of {what} are {kind}")


def picture_to_tensor(image: Any, resolution: int | None = None, oddities: Oddities | None = None) -> Tensor:
    """A PIL image as a viewer shows it: uint8 `[1, H, W]` (gray modes) or `[3, H, W]`, or :data:`DEEP` `[1, H, W]`.

    Args:
        image: of any mode but floating point.
        resolution: shorter side to this many pixels (bilinear, antialiased), then the centre square.
        oddities: counts pictures that were turned or transparent.

    Raises:
        ValueError: floating point pixels, which have no fixed range, or negative ones.
    """
    from PIL import Image, ImageOps

    turned = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    if turned is not image and oddities is not None:
        oddities.note(Oddities.turned)
    image = turned
    if image.mode == "F":
        raise ValueError("32-bit floating point images have no fixed range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0:
            raise ValueError(f"negative gray values (down to {values.min()}) have no fixed range")
        scaled = _resized(Image.fromarray(values.astype(np.float32)), resolution) if resolution is not None else None
        values = values if scaled is None else np.asarray(scaled).round().astype(np.int64)
        return torch.from_numpy(values.clip(0, 2**31 - 1).astype(np.int32))[None]
    if image.mode == "CMYK" and oddities is not None:
        oddities.note(Oddities.inks)
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema()[0] < 255:
            if oddities is not None:
                oddities.note(Oddities.transparent)
            layered = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
        image = layered
    image = image.convert("L" if gray else "RGB")
    if resolution is not None:
        image = _resized(image, resolution)
    pixels = torch.from_numpy(np.array(image))  # np.array copies: PIL's own buffer is read-only
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


_ORIENTATION = 0x0112  # EXIF


def _resized(image: Any, resolution: int) -> Any:
    """Shorter side to `resolution`, then the centre square; an image that has that size already as it is."""
    from PIL import Image

    if image.size == (resolution, resolution):
        return image
    width, height = image.size
    short = min(width, height)
    image = image.resize((resolution * width // short, resolution * height // short), Image.Resampling.BILINEAR)
    left, top = (round((side - resolution) / 2) for side in image.size)
    return image.crop((left, top, left + resolution, top + resolution))


def settle_depth(items: Sequence[Tensor], what: str) -> list[Tensor]:
    """Gray values of more than 8 bits as float32 in [0, 1], by the depth that the largest of all of them needs.

    Args:
        items: pictures or whole splits of one set; those that are not :data:`DEEP` stay as they are, unless there are
            both: then the deep ones are rounded to 8 bits like the others.
        what: they are the pictures of.
    """
    deep = [item for item in items if item.dtype == DEEP]
    if not deep:
        return list(items)
    largest = max(int(item.max()) for item in deep if item.numel()) if any(item.numel() for item in deep) else 0
    bits = next(depth for depth in _DEPTHS if largest < 2**depth)
    logger.warning(
        f"gray images of {what} hold values up to {largest} and are read as {bits}-bit: {2**bits - 1} is white"
    )
    mixed = len(deep) < len(items)

    def settled(item: Tensor) -> Tensor:
        if item.dtype != DEEP:
            return item
        values = item.double() / (2**bits - 1)
        return (values * 255).round().to(torch.uint8) if mixed else values.float()

    return [settled(item) for item in items]
