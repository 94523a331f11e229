"""Long rows `[K, P]` cut into tiles, and sums over them in two stages.

Every tile leaves a partial sum in float64; whoever needs the sum adds the partial sums up in one fixed order
(:func:`total`), in every program alike. No atomics: the same numbers give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError
from .calls import Call, moved

WARPS = 4
MAX_TILES = 512
"""Most tiles of a row that is summed: several for each multiprocessor, few enough for each program to add up."""
_MAX_TILES = tl.constexpr(MAX_TILES)


@dataclass(frozen=True)
class Tiles:
    """A row's tiles: `count` of them, of `per` blocks of `block` entries each, from entry `first` on."""

    first: int
    count: int
    per: int
    block: int


def tiles(length: int, dtype: torch.dtype, *, first: int = 0, summed: bool = False) -> Tiles:
    """Cut a row of `length` entries of which those in front of `first` are not wanted.

    A block gives every thread four accesses of 16 bytes per operand; two where it keeps float64 sums as well.
    """
    block = WARPS * 32 * (32 if summed else 64) // dtype.itemsize
    start = min(first, length) // block * block  # a multiple of the block, so that accesses stay aligned
    blocks = max(1, -(-(length - start) // block))
    per = -(-blocks // MAX_TILES) if summed else 1
    return Tiles(start, -(-blocks // per), per, block)


def row_stride(x: Tensor) -> int:
    """Entries between the rows of `[K, P]`; 0 for a single one: a multiple of 16 keeps accesses 16 bytes wide."""
    return x.stride(0) if x.shape[0] > 1 else 0


def require_alike(*, contiguous: bool = True, **tensors: Tensor) -> None:
    """Refuse tensors that differ from the first in shape, dtype or device, and strided ones if so asked.

    Raises:
        InputError: names the one that differs.
    """
    (first, model), *_ = tensors.items()
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype, tensor.device) != (model.shape, model.dtype, model.device):
            raise InputError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, but {first} is {model.dtype} "
                f"{list(model.shape)} on {model.device}; they must agree"
            )
        if contiguous and not tensor.is_contiguous():
            raise InputError(f"{name} has strides {tensor.stride()}; pass a contiguous tensor (.contiguous())")


@triton.jit
@no_type_check
def load_block(p_row, start, first, length, BLOCK: tl.constexpr):
    """The block of a row that begins at entry `start`, 0 in front of entry `first` and from `length` on.

    A mask would narrow every access to one entry, so only a block at either end has one.
    """
    o = tl.arange(0, BLOCK)
    if (start >= first) & (start + BLOCK <= length):
        block = tl.load(p_row + start + o)
    else:
        block = tl.load(p_row + start + o, mask=(start + o >= first) & (start + o < length), other=0.0)
    return block


@triton.jit
@no_type_check
def store_block(p_row, block, start, length, BLOCK: tl.constexpr):
    """Write the block that begins at entry `start`, up to `length`; see :func:`load_block`."""
    o = tl.arange(0, BLOCK)
    if start + BLOCK <= length:
        tl.store(p_row + start + o, block)
    else:
        tl.store(p_row + start + o, block, mask=start + o < length)


@triton.jit
@no_type_check
def total(p_partial, count):
    """Sum of `count` partial sums."""
    o = tl.arange(0, _MAX_TILES)
    sums = tl.zeros([_MAX_TILES], tl.float64)
    for start in range(0, count, _MAX_TILES):
        sums += tl.load(p_partial + start + o, mask=start + o < count, other=0.0)
    return tl.sum(sums, 0)


@triton.jit
@no_type_check
def _finish_kernel(p_out, p_partial, count, divisor):
    k = tl.program_id(0).to(tl.int64)
    tl.store(p_out + k, (total(p_partial + k * count, count) / divisor).to(p_out.dtype.element_ty))


def finish(out: Tensor, partial: Tensor, divisor: int) -> Call:
    """`out[k] = sum(partial[k]) / divisor` for `partial` `[K, tiles]` in float64."""
    args = (out, partial, partial.shape[1], divisor)
    return Call(_finish_kernel, (len(out),), args, moved(out, partial), {"num_warps": WARPS})
