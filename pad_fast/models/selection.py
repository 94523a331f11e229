"""Which entries of a flat parameter vector a loss mask keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.shapes import Bool, Float


def keep_largest(squared_error: Float[Tensor, "*K P"], dropped: int) -> Bool[Tensor, "*K P"]:
    """Boolean mask over the last axis that leaves out the `dropped` smallest entries, ties by position."""
    if not dropped:
        return torch.ones_like(squared_error, dtype=torch.bool)
    # Selecting one value takes a tenth of the time of ordering all of them. NaN is the largest, as in a sort.
    last = squared_error.kthvalue(dropped, dim=-1, keepdim=True).values
    nan, last_is_nan = squared_error.isnan(), last.isnan()
    below = (squared_error < last) | (last_is_nan & ~nan)
    tied = (squared_error == last) | (last_is_nan & nan)
    left = dropped - below.sum(-1, keepdim=True)
    return ~(below | (tied & (tied.cumsum(-1) <= left)))
