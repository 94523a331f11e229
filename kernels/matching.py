"""The normalised matching loss on stacked trajectories `[K, P]`, masked, with its three gradients.

Sums are taken in float64 over the vectors as they are given. The `loss` mask needs the entry that comes `dropped`-th
when squared errors are ordered by value, equal ones by position. It is found digit by digit, highest first: one pass
over the rows counts how often each of the 256 values of a digit occurs among the entries that agree with the digits
found so far. The digits of the value come first (the bits of a float that is not negative are ordered like the float),
then those of the position. Nothing is sorted, the host never waits, and counts do not depend on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError
from .calls import Call, moved, run_all, with_further
from .launch import Cost, note
from .published import NEWEST, UNROLLED
from .row_tiles import WARPS, load_block, require_alike, row_stride, store_block, tiles, total

if TYPE_CHECKING:
    from .aot import Production


@triton.jit
@no_type_check
def _squared_error_bits(end, target, BITS: tl.constexpr):
    """Bits of `(end - target)^2`, ordered like the value; every NaN comes last, as in torch.argsort."""
    error = end - target
    square = error * error
    if BITS == 64:
        return tl.where(square == square, square.to(tl.int64, bitcast=True), 0x7FFFFFFFFFFFFFFF)
    else:
        return tl.where(square == square, square.to(tl.int32, bitcast=True), 0x7FFFFFFF)


@triton.jit
@no_type_check
def _found(p_counts, p_found, k, dropped, DIGIT: tl.constexpr, BITS: tl.constexpr):
    """Value and position up to digit DIGIT, once it is counted, and the rank sought among what agrees with them.

    The fourth result says that this rank is the last, so that all of them are dropped and no digit need be counted.
    """
    rows = tl.num_programs(1)
    value = tl.zeros([], tl.int64)
    position = tl.zeros([], tl.int64)
    rank = tl.zeros([], tl.int64) + dropped
    if DIGIT > 0:
        p_found += ((DIGIT - 1) * rows + k) * 3
        value = tl.load(p_found)
        position = tl.load(p_found + 1)
        rank = tl.load(p_found + 2)
    o = tl.arange(0, 256)
    counts = tl.load(p_counts + (DIGIT * rows + k) * 256 + o).to(tl.int64)
    below = tl.cumsum(counts, 0) - counts
    # The last digit with fewer than `rank` entries below it; 255 where nothing was counted, all being settled.
    digit = tl.sum((below < rank).to(tl.int64), 0) - 1
    count = tl.sum(tl.where(o == digit, counts, 0), 0)
    rank -= tl.sum(tl.where(o == digit, below, 0), 0)
    if DIGIT < BITS // 8:
        value = (value << 8) | digit
    else:
        position = (position << 8) | digit
    return value, position, rank, (count == rank) | (count == 0)


@triton.jit
@no_type_check
def _count_kernel(
    p_counts,  # [digits, K, 256] int32, zeros at first
    p_found,  # [digits, K, 3] int64: value, position, rank after each digit
    p_end,  # [K, P]
    p_target,
    length,
    end_stride,
    target_stride,
    first_kept,
    dropped,
    first_block,
    per,
    DIGIT: tl.constexpr,
    DIGITS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, k, rows = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    OF_VALUE: tl.constexpr = DIGIT < BITS // 8
    SHIFT: tl.constexpr = 8 * ((BITS // 8 if OF_VALUE else DIGITS) - 1 - DIGIT)
    if DIGIT > 0:
        value, position, rank, settled = _found(p_counts, p_found, k, dropped, DIGIT - 1, BITS)
        if tile == 0:
            p_mine = p_found + ((DIGIT - 1) * rows + k) * 3
            tl.store(p_mine, value)
            tl.store(p_mine + 1, position)
            tl.store(p_mine + 2, rank)
        if BITS == 32:
            value = value.to(tl.int32)
        per = tl.where(settled, 0, per)

    o = tl.arange(0, BLOCK)
    p_end += k * end_stride
    p_target += k * target_stride
    counts = tl.zeros([256], tl.int32)
    for index in range(per):
        start = first_block + (tile * per + index) * BLOCK
        at = start + o
        wanted = (at >= first_kept) & (at < length)
        end = load_block(p_end, start, first_kept, length, BLOCK)
        target = load_block(p_target, start, first_kept, length, BLOCK)
        bits = _squared_error_bits(end, target, BITS)
        if OF_VALUE:
            digit = (bits >> SHIFT) & 255
            if DIGIT > 0:
                wanted &= (bits >> (SHIFT + 8)) == value
        else:
            digit = (at >> SHIFT) & 255
            wanted &= (bits == value) & ((at >> (SHIFT + 8)) == position)
        counts += tl.histogram(digit.to(tl.int32), 256, mask=wanted)
    p_counts += (DIGIT * rows + k) * 256 + tl.arange(0, 256)
    tl.atomic_add(p_counts, counts, mask=counts > 0, sem="relaxed")


@triton.jit
@no_type_check
def _sums_kernel(
    p_partial,  # [K, 2, tiles] float64: squared error reached, and required
    p_cut,  # [K, 2] int64: the last entry dropped, written when DIGITS
    p_end,  # [K, P]
    p_start,
    p_target,
    p_counts,  # see _count_kernel, read when DIGITS
    p_found,
    length,
    end_stride,
    start_stride,
    target_stride,
    first_kept,
    dropped,
    first_block,
    per,
    DIGITS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, k, count = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    if DIGITS > 0:
        value, position, _, _ = _found(p_counts, p_found, k, dropped, DIGITS - 1, BITS)
        if tile == 0:
            tl.store(p_cut + 2 * k, value)
            tl.store(p_cut + 2 * k + 1, position)
        if BITS == 32:
            value = value.to(tl.int32)

    o = tl.arange(0, BLOCK)
    p_end += k * end_stride
    p_start += k * start_stride
    p_target += k * target_stride
    sum_reached = tl.zeros([BLOCK], tl.float64)
    sum_required = tl.zeros([BLOCK], tl.float64)
    for index in range(per):
        at_first = first_block + (tile * per + index) * BLOCK
        at = at_first + o
        end = load_block(p_end, at_first, first_kept, length, BLOCK)
        start = load_block(p_start, at_first, first_kept, length, BLOCK)
        target = load_block(p_target, at_first, first_kept, length, BLOCK)
        reached = end.to(tl.float64) - target.to(tl.float64)
        required = start.to(tl.float64) - target.to(tl.float64)
        if DIGITS > 0:
            bits = _squared_error_bits(end, target, BITS)
            kept = (bits > value) | ((bits == value) & (at > position))
            reached = tl.where(kept, reached, 0.0)
            required = tl.where(kept, required, 0.0)
        sum_reached += reached * reached
        sum_required += required * required
    p_partial += k * 2 * count + tile
    tl.store(p_partial, tl.sum(sum_reached, 0))
    tl.store(p_partial + count, tl.sum(sum_required, 0))


@triton.jit
@no_type_check
def _ratio_kernel(
    p_loss,  # [K]
    p_sums,  # [K, 2] float64
    p_partial,  # [K, 2, count] float64
    count,
):
    k = tl.program_id(0).to(tl.int64)
    reached = total(p_partial + k * 2 * count, count)
    required = total(p_partial + k * 2 * count + count, count)
    tl.store(p_sums + 2 * k, reached)
    tl.store(p_sums + 2 * k + 1, required)
    tl.store(p_loss + k, (reached / required).to(p_loss.dtype.element_ty))


@triton.jit
@no_type_check
def _gradients_kernel(
    p_d_end,  # [K, P], each written when asked for
    p_d_start,
    p_d_target,
    p_end,  # [K, P]
    p_start,
    p_target,
    p_grad,  # [K]
    p_sums,  # [K, 2] float64
    p_cut,  # [K, 2] int64, read when CUT
    length,
    stride,
    end_stride,
    start_stride,
    target_stride,
    grad_stride,
    first_kept,
    per,
    OF_END: tl.constexpr,
    OF_START: tl.constexpr,
    OF_TARGET: tl.constexpr,
    CUT: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    required_sum = tl.load(p_sums + 2 * k + 1)
    of_end = 2.0 * tl.load(p_grad + k * grad_stride).to(tl.float64) / required_sum
    of_start = -of_end * (tl.load(p_sums + 2 * k) / required_sum)
    if CUT:
        value = tl.load(p_cut + 2 * k)
        position = tl.load(p_cut + 2 * k + 1)
        if BITS == 32:
            value = value.to(tl.int32)

    o = tl.arange(0, BLOCK)
    p_end += k * end_stride
    p_start += k * start_stride
    p_target += k * target_stride
    p_d_end += k * stride
    p_d_start += k * stride
    p_d_target += k * stride
    for index in range(per):
        at_first = (tile * per + index) * BLOCK
        at = at_first + o
        kept = (at >= first_kept) & (at < length)
        end = load_block(p_end, at_first, first_kept, length, BLOCK)
        start = load_block(p_start, at_first, first_kept, length, BLOCK)
        target = load_block(p_target, at_first, first_kept, length, BLOCK)
        if CUT:
            bits = _squared_error_bits(end, target, BITS)
            kept &= (bits > value) | ((bits == value) & (at > position))
        # Chosen, not multiplied by 0: a factor may be infinite.
        d_end = tl.where(kept, of_end * (end.to(tl.float64) - target.to(tl.float64)), 0.0)
        d_start = tl.where(kept, of_start * (start.to(tl.float64) - target.to(tl.float64)), 0.0)
        if OF_END:
            store_block(p_d_end, d_end.to(end.dtype), at_first, length, BLOCK)
        if OF_START:
            store_block(p_d_start, d_start.to(end.dtype), at_first, length, BLOCK)
        if OF_TARGET:
            store_block(p_d_target, -(d_end + d_start).to(end.dtype), at_first, length, BLOCK)


@dataclass(frozen=True, eq=False)
class Measured:
    """Sums and mask of a distance, for :func:`distance_backward`.

    Attributes:
        sums: `[K, 2]` float64, the squared errors reached and required.
        cut: `[K, 2]` int64, bits and position of the last entry dropped; None without a `loss` mask.
        first_kept: see :func:`distance`.
    """

    sums: Tensor
    cut: Tensor | None
    first_kept: int


def distance(end: Tensor, start: Tensor, target: Tensor, *, first_kept: int = 0, dropped: int = 0) -> Tensor:
    """`sum (end - target)^2 / sum (start - target)^2` over the entries that the mask leaves.

    Args:
        end, start, target: `[P]` or `[K, P]`, of one dtype (float32 or float64). Rows may be any distance apart.
        first_kept: entries in front of it are left out.
        dropped: so many of the others, those with the smallest `(end - target)^2` (in the dtype of the vectors, and of
            equal ones the first), are left out as well.

    Returns:
        `[]` or `[K]`; infinite where start and target coincide on the mask, NaN where it leaves nothing.

    Raises:
        InputError: tensors that do not agree, a negative count.
    """
    rows = _rows(end, start, target, first_kept, dropped)
    return distance_forward(*rows, first_kept=first_kept, dropped=dropped)[0].view(end.shape[:-1])


def distance_gradients(
    end: Tensor,
    start: Tensor,
    target: Tensor,
    grad: Tensor,
    *,
    first_kept: int = 0,
    dropped: int = 0,
    wants: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `sum(grad * distance)` by `end`, `start` and `target`; 0 where the mask leaves an entry out.

    Args:
        end, start, target, first_kept, dropped: see :func:`distance`.
        grad: `[]` or `[K]`, of any floating dtype.
        wants: which of the three.

    Returns:
        New tensors like `end`, None where not wanted.

    Raises:
        InputError: tensors that do not agree, a negative count.
    """
    rows = _rows(end, start, target, first_kept, dropped)
    _, measured = distance_forward(*rows, first_kept=first_kept, dropped=dropped)
    gradients = distance_backward(measured, *rows, grad.expand(end.shape[:-1]).reshape(-1), wants=wants)
    d_end, d_start, d_target = (None if gradient is None else gradient.view(end.shape) for gradient in gradients)
    return d_end, d_start, d_target


def distance_forward(
    end: Tensor, start: Tensor, target: Tensor, *, first_kept: int, dropped: int
) -> tuple[Tensor, Measured]:
    """The distance `[K]` of `[K, P]` with adjacent entries, and what its gradients need; see :func:`distance`."""
    if dropped >= end.shape[1] - first_kept:
        first_kept, dropped = end.shape[1], 0  # nothing is left
    chosen = None
    if dropped:
        chosen, calls = _count_calls(end, target, first_kept, dropped)
        note("memset", moved(chosen[0]))
        run_all(calls)
    partial, cut, call = _sums_call(end, start, target, chosen, first_kept, dropped)
    call.run()
    loss, sums = end.new_empty(len(end)), partial.new_empty(len(end), 2)
    _ratio_call(loss, sums, partial).run()
    return loss, Measured(sums, cut, first_kept)


def distance_backward(
    measured: Measured,
    end: Tensor,
    start: Tensor,
    target: Tensor,
    grad: Tensor,
    *,
    wants: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `sum(grad * distance)` by the three vectors `[K, P]`, in one pass; None where not wanted.

    Args:
        measured: from :func:`distance_forward` of the same vectors.
        grad: `[K]`; expanded is fine.
        wants: which of the three.
    """
    outputs = [torch.empty(end.shape, dtype=end.dtype, device=end.device) if wanted else None for wanted in wants]
    if any(wants):
        _gradients_call(outputs, measured, end, start, target, grad).run()
    d_end, d_start, d_target = outputs
    return d_end, d_start, d_target


def _rows(end: Tensor, start: Tensor, target: Tensor, first_kept: int, dropped: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three as `[K, P]` with adjacent entries."""
    if first_kept < 0 or dropped < 0:
        raise InputError(f"first_kept is {first_kept} and dropped is {dropped}; neither can be negative")
    require_alike(contiguous=False, end=end, start=start, target=target)
    if end.dtype not in (torch.float32, torch.float64):
        raise InputError(f"parameters are {end.dtype}; pass float32 or float64")
    return _row_major(end), _row_major(start), _row_major(target)


def _row_major(x: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _bits(x: Tensor) -> int:
    return 8 * x.dtype.itemsize


def _count_calls(
    end: Tensor, target: Tensor, first_kept: int, dropped: int
) -> tuple[tuple[Tensor, Tensor], list[Call]]:
    rows, length = end.shape
    digits = _bits(end) // 8 + max(1, -(-(length - 1).bit_length() // 8))
    counts = torch.zeros(digits, rows, 256, dtype=torch.int32, device=end.device)
    found = torch.empty(digits, rows, 3, dtype=torch.int64, device=end.device)
    cut = tiles(length, end.dtype, first=first_kept, summed=True)
    read = 2 * rows * (length - first_kept) * end.dtype.itemsize
    calls = [
        Call(
            _count_kernel,
            (cut.count, rows),
            (counts, found, end, target, length, row_stride(end), row_stride(target), first_kept, dropped)
            + (cut.first, cut.per),
            Cost(read + 2 * counts[0].nbytes),
            {"DIGIT": digit, "DIGITS": digits, "BITS": _bits(end), "BLOCK": cut.block, "num_warps": WARPS},
        )
        for digit in range(digits)
    ]
    return (counts, found), calls


def _sums_call(
    end: Tensor,
    start: Tensor,
    target: Tensor,
    chosen: tuple[Tensor, Tensor] | None,
    first_kept: int,
    dropped: int,
) -> tuple[Tensor, Tensor | None, Call]:
    rows, length = end.shape
    tiled = tiles(length, end.dtype, first=first_kept, summed=True)
    partial = torch.empty(rows, 2, tiled.count, dtype=torch.float64, device=end.device)
    cut = None if chosen is None else torch.empty(rows, 2, dtype=torch.int64, device=end.device)
    counts, found = (None, None) if chosen is None else chosen
    strides = (row_stride(end), row_stride(start), row_stride(target))
    return (
        partial,
        cut,
        Call(
            _sums_kernel,
            (tiled.count, rows),
            (partial, cut, end, start, target, counts, found, length, *strides)
            + (first_kept, dropped, tiled.first, tiled.per),
            Cost(3 * rows * max(0, length - first_kept) * end.dtype.itemsize + partial.nbytes),
            {
                "DIGITS": 0 if counts is None else len(counts),
                "BITS": _bits(end),
                "BLOCK": tiled.block,
                "num_warps": WARPS,
            },
        ),
    )


def _ratio_call(loss: Tensor, sums: Tensor, partial: Tensor) -> Call:
    args = (loss, sums, partial, partial.shape[-1])
    return Call(_ratio_kernel, (len(loss),), args, moved(loss, sums, partial), {"num_warps": WARPS})


def _gradients_call(
    outputs: Sequence[Tensor | None], measured: Measured, end: Tensor, start: Tensor, target: Tensor, grad: Tensor
) -> Call:
    rows, length = end.shape
    tiled = tiles(length, end.dtype, summed=True)
    strides = (length if rows > 1 else 0, *map(row_stride, (end, start, target)), grad.stride(0))
    # A kernel takes a pointer for each; one that is not written may be any.
    d_end, d_start, d_target = (end if out is None else out for out in outputs)
    read = 3 * rows * max(0, length - measured.first_kept) * end.dtype.itemsize
    return Call(
        _gradients_kernel,
        (tiled.count, rows),
        (d_end, d_start, d_target, end, start, target, grad, measured.sums, measured.cut)
        + (length, *strides, measured.first_kept, tiled.per),
        Cost(read + sum(out.nbytes for out in outputs if out is not None)),
        {
            "OF_END": outputs[0] is not None,
            "OF_START": outputs[1] is not None,
            "OF_TARGET": outputs[2] is not None,
            "CUT": measured.cut is not None,
            "BITS": _bits(end),
            "BLOCK": tiled.block,
            "num_warps": WARPS,
        },
    )


def production() -> list[Production]:
    """The launches of one matching loss over 320,010 parameters (ConvNet D3), one trajectory and four."""
    items = []
    for rows, dtype in ((1, torch.float32), (4, torch.float32), (2, torch.float64)):
        hot = dtype == torch.float32
        name = f"P = 320,010, {rows} row{'s' * (rows > 1)}{', float64' * (not hot)}"
        x = torch.empty(rows, 320010, dtype=dtype, device="meta")
        grad = torch.empty(rows, dtype=dtype, device="meta")
        for mask, first_kept, dropped in (("depth", 160005, 0), ("loss", 0, 160005)):
            chosen = None
            if dropped:
                chosen, calls = _count_calls(x, x, first_kept, dropped)
                places = ["first", "second", *("third", "fourth", "fifth", "sixth")[: len(calls) - 3], "last"]
                shown = enumerate(places) if hot else ((0, "first"), (1, "second"), (-1, "last"))
                items += [
                    calls[digit].production(f"{which} digit of {len(calls)}, {name}", hot=False)
                    for digit, which in shown
                ]
            partial, cut, sums = _sums_call(x, x, x, chosen, first_kept, dropped)
            loss, pair = x.new_empty(rows), partial.new_empty(rows, 2)
            measured = Measured(pair, cut, first_kept)
            of_end = _gradients_call([x, None, None], measured, x, x, x, grad)
            of_all = _gradients_call([x, x, x], measured, x, x, x, grad)
            items += [
                sums.production(f"{mask} mask, {name}", hot=hot),
                of_end.production(f"of the end, {mask} mask, {name}", hot=hot),
                of_all.production(f"all three, {mask} mask, {name}", hot=hot),
            ]
        items.append(_ratio_call(loss, pair, partial).production(name, hot=hot))
    further: list[Production] = []
    for sizes in UNROLLED:
        x = torch.empty(sizes.trajectories, sizes.parameters, device="meta")
        for mask, first_kept in (("no mask", 0), ("a quarter masked", len(x[0]) // 4), ("half masked", len(x[0]) // 2)):
            partial, cut, sums = _sums_call(x, x, x, None, first_kept, 0)
            measured = Measured(partial.new_empty(len(x), 2), cut, first_kept)
            of_end = _gradients_call([x, None, None], measured, x, x, x, x.new_empty(len(x)))
            name = f"{mask}, P = {sizes.parameters:,}, {len(x)} row{'s' * (len(x) > 1)}"
            further += [call.production(name, targets=NEWEST) for call in (sums, of_end)]
    return with_further(items, further)


def _naive_keep(end: Tensor, target: Tensor, first_kept: int, dropped: int) -> Tensor:
    from ..models.selection import keep_largest

    keep = torch.ones_like(end, dtype=torch.bool)
    keep[..., :first_kept] = False
    if dropped:
        keep[..., first_kept:] = keep_largest((end - target)[..., first_kept:].square(), dropped)
    return keep


def naive_distance(end: Tensor, start: Tensor, target: Tensor, *, first_kept: int = 0, dropped: int = 0) -> Tensor:
    """Twin of :func:`distance`: sums in float64, the choice of what to drop in the vectors' own dtype."""
    keep = _naive_keep(end, target, first_kept, dropped)
    reached = (end.double() - target.double()).square() * keep
    required = (start.double() - target.double()).square() * keep
    return (reached.sum(-1) / required.sum(-1)).to(end.dtype)


def naive_distance_gradients(
    end: Tensor,
    start: Tensor,
    target: Tensor,
    grad: Tensor,
    *,
    first_kept: int = 0,
    dropped: int = 0,
    wants: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Twin of :func:`distance_gradients`."""
    keep = _naive_keep(end, target, first_kept, dropped)
    reached = (end.double() - target.double()) * keep
    required = (start.double() - target.double()) * keep
    total = required.square().sum(-1, keepdim=True)
    scale = 2 * grad.double()[..., None] / total
    d_end = torch.where(keep, scale * reached, 0)
    d_start = torch.where(keep, -scale * (reached.square().sum(-1, keepdim=True) / total) * required, 0)
    gradients = (d_end, d_start, -(d_end + d_start))
    of_end, of_start, of_target = (
        gradient.to(end.dtype) if wanted else None for gradient, wanted in zip(gradients, wants, strict=True)
    )
    return of_end, of_start, of_target
