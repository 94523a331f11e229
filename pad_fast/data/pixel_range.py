"""Which floating point values are pixels: 0 to 1, 0 to 255, or values of somebody's own, such as normalised ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DatasetError

logger = logging.getLogger("pad_fast")

_ROUNDING = 1e-3  # how far computed pixels may leave [0, 1]


def settle_range(splits: Sequence[Tensor], source: str) -> list[Tensor]:
    """Images of all splits on one scale: floating point pixels from 0 to 255 are divided by 255, which is said.

    Values of any other range are kept, which is said as well: they may have been normalised already.

    Args:
        splits: `[N, C, H, W]` each, uint8 or floating point.
        source: the data set, for messages.

    Raises:
        DatasetError: the splits are on different scales.
    """
    low, high = _ends([split for split in splits if split.dtype != torch.uint8])
    scales = [_scale(split, bright=high >= 128) for split in splits]
    kinds = set(scales)
    if "bytes" in kinds and len(kinds) > 1 or kinds == {"uint8", "own"}:
        raise DatasetError(
            f"the splits of {source} are on different scales: "
            f"{' and '.join(_described(split, scale) for split, scale in zip(splits, scales, strict=True))}. Give all "
            "of them as uint8, or as floating point in [0, 1]."
        )
    if kinds == {"bytes"}:
        logger.warning(f"images of {source} run from {low:g} to {high:g} and are read as 8-bit: 255 is white")
        return [split.float() / 255 for split in splits]
    if kinds == {"uint8"} and _ends(splits)[1] == 1:
        logger.warning(
            f"images of {source} are uint8 from 0 to 1, nearly black, as 255 is white; give floating point where 1 is"
        )
    if "own" in kinds:
        logger.warning(
            f"images of {source} run from {low:.4g} to {high:.4g}, not from 0 to 1: they are kept as they are. Pixels "
            "are normalised here anyway; leave Normalize out of a transform, and divide others by the value of white"
        )
    return list(splits)


def _scale(split: Tensor, *, bright: bool) -> str:
    if split.dtype == torch.uint8 or not split.numel():
        return "uint8"
    low, high = _ends([split])
    if not math.isfinite(high - low):
        return "unit"  # refused when all is read
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return "unit"
    return "bytes" if bright and low >= 0 and high <= 255 else "own"


def _ends(splits: Sequence[Tensor]) -> tuple[float, float]:
    """Smallest and largest value; NaN where there is one."""
    ends = [torch.stack(torch.aminmax(split.detach())).double() for split in splits if split.numel()]
    return (float(torch.stack(ends)[:, 0].min()), float(torch.stack(ends)[:, 1].max())) if ends else (0.0, 0.0)


def _described(split: Tensor, scale: str) -> str:
    return scale if scale == "uint8" else "{:.4g} to {:.4g}".format(*_ends([split]))
