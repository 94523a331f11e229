"""What a file of another program says about a distilled set, and what its images must mean."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import StoreError, require_one_of
from ..arrays import channels_last, unit_pixels

IMAGES_ARE = ("pixels", "normalized")
"""What images may be."""

# Distilled pixels leave 0..1, but not by this much; pixels in 0..255 that never reach it would show nothing.
_BRIGHT = 16.0

logger = logging.getLogger("pad_fast")


@dataclass(frozen=True, eq=False)
class Contents:
    """Images and labels as a file has them.

    Attributes:
        path: of the file with the images.
        images: `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]`, bytes or floating point.
        labels: as :func:`pad_fast.data.labels.targets_of` takes them.
        lr: learning rate as the file has it; None where it has none.
        classes: class each image was made for, int64 `[N]`, where labels are soft and the file says it.
        class_names: where the file says them.
        labels_are: where the file says itself what soft labels are.
    """

    path: Path
    images: Tensor
    labels: Tensor
    lr: Any = None
    classes: Tensor | None = None
    class_names: tuple[str, ...] = ()
    labels_are: str | None = None

    @property
    def rate(self) -> float:
        """The learning rate.

        Raises:
            StoreError: there is none, or something else than one number.
        """
        if self.lr is None:
            raise StoreError(
                f"{self.path} says no learning rate for networks that are trained on it; pass it as lr= (--lr)"
            )
        try:
            return float(self.lr)
        except (TypeError, ValueError, RuntimeError) as error:
            raise StoreError(f"lr of {self.path} must be one number ({error}); pass it as lr= (--lr)") from error


def contents_of(path: Path, parts: Mapping[str, Any]) -> Contents:
    """Of arrays by name: images, labels and, where it is there, lr.

    Raises:
        StoreError: one of the first two is missing, or one is no array of numbers.
    """
    missing = [name for name in ("images", "labels") if name not in parts]
    if missing:
        raise StoreError(
            f"{path} holds {', '.join(map(str, parts)) or 'nothing'}; expected images and labels, and lr where known"
        )
    images, labels = (_tensor(parts[name], name, path) for name in ("images", "labels"))
    return Contents(path, images, labels, parts.get("lr"))


def _tensor(value: Any, what: str, path: Path) -> Tensor:
    try:
        return torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise StoreError(f"{what} of {path} are no array of numbers ({error})") from error


def as_images(images: Tensor, path: Path, images_are: str | None) -> tuple[Tensor, bool]:
    """Images float32 `[N, C, H, W]`, pixels with 1.0 for white, and whether they are pixels.

    Args:
        images: see :class:`Contents`.
        path: they were read from, for messages.
        images_are: which of :data:`IMAGES_ARE`. None recognises them by their range: pixels lie in 0..1 or 0..255,
            normalised images on both sides of 0.

    Raises:
        ConfigError: an unknown kind.
        StoreError: another shape or dtype, or a range that may be either.
    """
    if images_are is not None:
        require_one_of("images_are", images_are, IMAGES_ARE)
    if images.dim() == 3:
        images = images[:, None]
    if images.dim() != 4 or not len(images):
        raise StoreError(
            f"the images of {path} have shape {list(images.shape)}; expected [N, C, H, W], [N, H, W, C] or [N, H, W]"
        )
    if channels_last(*images.shape[1:]):
        images = images.permute(0, 3, 1, 2)
    if images.dtype == torch.uint8 and images_are != "normalized":
        return unit_pixels(images), True
    if not images.is_floating_point():
        raise StoreError(
            f"the images of {path} are {str(images.dtype).removeprefix('torch.')}; expected uint8 pixels (0 to 255), "
            "or floating point"
        )
    images = unit_pixels(images)
    if images_are == "normalized":
        return images, False
    low, high = float(images.min()), float(images.max())
    if images_are == "pixels":
        return (images / 255 if max(high, -low) > _BRIGHT else images), True
    if low < 0:
        return images, False
    if not high <= 1 and not _BRIGHT < high <= 255:
        raise StoreError(
            f"the images of {path} lie in {low:.4g} to {high:.4g}: neither pixels (0 to 1, 0 to 255) nor surely "
            "normalised; pass images_are='pixels' or images_are='normalized' (--images)"
        )
    scale = 1 if high <= 1 else 255
    logger.info(
        f"the images of {path} lie in 0 to {scale} and are read as pixels; images_are= (--images) says otherwise"
    )
    return images / scale, True
