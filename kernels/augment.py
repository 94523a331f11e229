"""Differentiable Siamese Augmentation on the device: its draws, the six operations and their transposes.

See :mod:`pad_fast.data.augment` for the operations. A *table* holds draws as numbers: float32 `[..., images, 4]`, the
columns being the operation's place in `OPERATIONS` (-1 for none) and its numbers as in `DSADraw.values`, zeros behind
them. Kernels read it from device memory, so one captured CUDA graph serves every draw.

`scale` and `rotate` are linear maps M of the offset from the image's centre: output pixel p samples the input at M p,
bilinearly, with weight hat(M p - q) on input pixel q, hat(d) = max(0, 1 - |d_x|) max(0, 1 - |d_y|). The transpose
gathers: input pixel q visits every output pixel p with hat(M p - q) > 0, that is p in M^-1 (q + (-1, 1)^2), a window of
3 x 3 for draws of square images. No atomics, so gradients are the same bit for bit in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..data.augment import DSA, OPERATIONS, DSADraw, cutout_side, value_ranges
from ..errors import InputError
from .calls import Call, moved, with_further
from .launch import Cost
from .published import NEWEST, TRAINED, UNROLLED

if TYPE_CHECKING:
    from .aot import Production

COLOR = tl.constexpr(OPERATIONS.index("color"))
CROP = tl.constexpr(OPERATIONS.index("crop"))
CUTOUT = tl.constexpr(OPERATIONS.index("cutout"))
FLIP = tl.constexpr(OPERATIONS.index("flip"))
SCALE = tl.constexpr(OPERATIONS.index("scale"))
ROTATE = tl.constexpr(OPERATIONS.index("rotate"))

COLUMNS = 4
_NONE = -1


# ---------------------------------------------------------------- applying


def apply(x: Tensor, table: Tensor, *, index: Tensor | None = None) -> Tensor:
    """Augment images by one step's draw.

    Args:
        x: images `[B, C, H, W]`, shared by all trajectories, or `[K, B, C, H, W]`, where K may be expanded.
        table: float32 `[B, 4]` or `[K, B, 4]`, with 1 in place of B for a draw shared by the batch, of K for one shared
            by the trajectories.
        index: int64 `[B]`; takes `x[index]` on the way. `x` is then `[N, C, H, W]`.

    Returns:
        A new tensor `[B, C, H, W]`, or `[K, B, C, H, W]` where `x` or `table` has K. Half precision is computed in
        float32.

    Raises:
        InputError: shapes or types that do not fit.

    Example:
        >>> images = torch.rand(10, 3, 32, 32, device="cuda")  # doctest: +SKIP
        >>> steps = draw(torch.tensor(7, device="cuda"), steps=80, batch=10, shape=(32, 32))  # doctest: +SKIP
        >>> apply(images, steps[3, 0]).shape  # doctest: +SKIP
        torch.Size([10, 3, 32, 32])
    """
    if index is not None and (x.dim() != 4 or index.dim() != 1 or index.dtype != torch.int64):
        raise InputError(
            f"index takes rows of images [N, C, H, W] by an int64 [B]; got {index.dtype} {list(index.shape)} for "
            f"images {list(x.shape)}"
        )
    x = _inner_contiguous(x)
    batch = x.shape[-4] if index is None else len(index)
    table, trajectories = _fit(x, table, batch)
    stacked = x.dim() == 5 or table.dim() == 3
    out = x.new_empty(*([trajectories] if stacked else []), batch, *x.shape[-3:])
    if out.numel():
        _augment_call(x, table, out, index, trajectories, batch, transpose=False).run()
    return out


def transpose(grad: Tensor, table: Tensor) -> Tensor:
    """The transpose of :func:`apply`'s linear part for the same table: the gradient by its images.

    Args:
        grad: `[B, C, H, W]` or `[K, B, C, H, W]`.
        table: as for :func:`apply`.

    Returns:
        A new tensor like `grad`.
    """
    grad = _inner_contiguous(grad)
    batch = grad.shape[-4]
    table, trajectories = _fit(grad, table, batch)
    out = grad.new_empty(grad.shape)
    if out.numel():
        _augment_call(grad, table, out, None, trajectories, batch, transpose=True).run()
    return out


def _inner_contiguous(x: Tensor) -> Tensor:
    """Images whose pixels are contiguous; batch and trajectory may keep their strides."""
    if not isinstance(x, Tensor) or x.dim() not in (4, 5) or not x.is_floating_point():
        what = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"augmentation needs floating point images [B, C, H, W] or [K, B, C, H, W], got {what}")
    _, height, width = x.shape[-3:]
    return x if x.stride()[-3:] == (height * width, width, 1) else x.contiguous()


def _fit(x: Tensor, table: Tensor, batch: int) -> tuple[Tensor, int]:
    """The table expanded to the images' batch and trajectories, and the number of these."""
    trajectories = x.shape[0] if x.dim() == 5 else (table.shape[0] if table.dim() == 3 else 1)
    rows = table.dim() in (2, 3) and table.shape[-2] in (1, batch)
    stacks = table.dim() == 2 or table.shape[0] in (1, trajectories)
    if not (rows and stacks and table.shape[-1] == COLUMNS and table.dtype == torch.float32):
        raise InputError(
            f"no draw table {table.dtype} {list(table.shape)} fits images {list(x.shape)}; it must be float32 "
            f"[{batch} or 1, {COLUMNS}], or that for each trajectory"
        )
    if table.device != x.device:
        raise InputError(f"the draw table is on {table.device}, the images are on {x.device}; move it there")
    table = table if table.stride(-1) == 1 else table.contiguous()
    leading = (trajectories,) if table.dim() == 3 else ()
    return table.expand(*leading, batch, COLUMNS), trajectories


_WARPS = 8


def _tile(pixels: int) -> int:
    """Pixels per program: small images in quarters, so that ten of them already occupy forty processors."""
    return 256 if pixels <= 1024 else 512


def _augment_call(
    x: Tensor,
    table: Tensor,
    out: Tensor,
    index: Tensor | None,
    trajectories: int,
    batch: int,
    *,
    transpose: bool,
) -> Call:
    channels, height, width = x.shape[-3:]
    block = _tile(height * width)
    strides = (x.stride(0) if x.dim() == 5 else 0, x.stride(-4))
    table_strides = (table.stride(0) if table.dim() == 3 else 0, table.stride(-2))
    pixels = channels * height * width
    own = trajectories if strides[0] else 1  # expanded images are read once
    cost = Cost(
        bytes=(own * batch * pixels + out.numel()) * x.element_size() + table.numel() * table.element_size(),
        flops=_FLOPS * trajectories * batch * pixels,
    )
    constants = {
        "C": channels,
        "H": height,
        "W": width,
        "CUT_H": cutout_side(height),
        "CUT_W": cutout_side(width),
        "TRANSPOSE": transpose,
        "BLOCK_C": triton.next_power_of_2(channels),
        "BLOCK": block,
        # Coordinates in half precision would be off by whole pixels.
        "WORK": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "num_warps": _WARPS,
    }
    grid = (out.numel() // pixels, triton.cdiv(height * width, block))
    return Call(_augment_kernel, grid, (x, table, index, out, batch, *strides, *table_strides), cost, constants)


_FLOPS = 8  # per pixel: four products and sums of a bilinear sample, the dearest operation


@triton.jit
@no_type_check
def _augment_kernel(
    p_x,
    p_table,
    p_index,
    p_out,
    batch,
    x_stride_k,
    x_stride_b,
    table_stride_k,
    table_stride_b,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CUT_H: tl.constexpr,
    CUT_W: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
    WORK: tl.constexpr,
):
    """One tile of pixels, all channels, of one image."""
    image = tl.program_id(0)
    o_c = tl.arange(0, BLOCK_C)
    o_p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = o_p // W
    column = o_p % W
    m_out = (o_c < C)[:, None] & (o_p < H * W)[None, :]
    k = (image // batch).to(tl.int64)
    source = (image % batch).to(tl.int64)
    p_draw = p_table + k * table_stride_k + source * table_stride_b
    if p_index is not None:
        source = tl.load(p_index + source)
    b_out = _pull(
        p_x + k * x_stride_k + source * x_stride_b, p_draw,
        o_c, row, column, C, H, W, CUT_H, CUT_W, TRANSPOSE, BLOCK_C, BLOCK, WORK,
    )  # fmt: skip
    p_out += image.to(tl.int64) * (C * H * W)
    tl.store(p_out + o_c[:, None] * (H * W) + o_p[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
@no_type_check
def _gather(p_x, o_c, row, column, valid, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, WORK: tl.constexpr):
    """Pixels [BLOCK_C, BLOCK] of an image in the working type, zero where not valid."""
    offsets = o_c[:, None] * (H * W) + (row * W + column)[None, :]
    return tl.load(p_x + offsets, mask=(o_c < C)[:, None] & valid[None, :], other=0.0).to(WORK)


@triton.jit
@no_type_check
def _pull(
    p_x,
    p_draw,
    o_c,
    row,
    column,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CUT_H: tl.constexpr,
    CUT_W: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
    WORK: tl.constexpr,
):
    """One tile of one augmented image (or of the transpose of a gradient), [BLOCK_C, BLOCK]."""
    operation = tl.load(p_draw).to(tl.int32)
    first = tl.load(p_draw + 1).to(WORK)
    second = tl.load(p_draw + 2).to(WORK)
    third = tl.load(p_draw + 3).to(WORK)
    inside = row < H
    if operation == COLOR:
        # With m the channel mean, M the image mean: s k x + (1 - s) k m + (1 - k) M + b, symmetric but for b.
        b_x = _gather(p_x, o_c, row, column, inside, C, H, W, WORK)
        total = tl.zeros([BLOCK_C, BLOCK], WORK)
        for start in range(0, H * W, BLOCK):
            o_p = start + tl.arange(0, BLOCK)
            total += _gather(p_x, o_c, o_p // W, o_p % W, o_p < H * W, C, H, W, WORK)
        mean = tl.sum(tl.sum(total, axis=0), axis=0) / (C * H * W)
        gray = tl.sum(b_x, axis=0) / C  # [BLOCK]
        gain = second * third
        offset = (third - gain) * gray + (1 - third) * mean
        if not TRANSPOSE:
            offset += first
        b_y = gain * b_x + offset[None, :]
    elif (operation == SCALE) | (operation == ROTATE):
        # M, in pixels. A size of one pixel has no extent to turn into.
        WIDE: tl.constexpr = (W - 1) / (H - 1) if H > 1 and W > 1 else 0.0
        TALL: tl.constexpr = (H - 1) / (W - 1) if H > 1 and W > 1 else 0.0
        rotates = operation == ROTATE
        sine, cosine = _sine_and_cosine(first)
        sine = tl.where(rotates, sine, 0.0)
        xx = tl.where(rotates, cosine, first)
        yy = tl.where(rotates, cosine, second)
        xy = -sine * WIDE
        yx = sine * TALL
        if TRANSPOSE:
            b_y = _bilinear_transpose(p_x, o_c, row, column, xx, xy, yx, yy, C, H, W, BLOCK_C, BLOCK, WORK)
        else:
            b_y = _bilinear(p_x, o_c, row, column, xx, xy, yx, yy, C, H, W, WORK)
    else:
        # Every output pixel is one input pixel, or zero. (Blocks: the interpreter's masks take no scalars.)
        b_code = row * 0 + operation
        sign: tl.constexpr = -1 if TRANSPOSE else 1
        from_row = row + tl.where(b_code == CROP, sign * first, 0.0).to(tl.int32)
        from_column = column + tl.where(b_code == CROP, sign * second, 0.0).to(tl.int32)
        from_column = tl.where((b_code == FLIP) & (column * 0 + first <= 0), W - 1 - column, from_column)
        # A centre lies on a pixel for an odd side, between two for an even one.
        valid = tl.abs(row + (1 - CUT_H % 2) / 2 - first) >= CUT_H / 2
        valid |= tl.abs(column + (1 - CUT_W % 2) / 2 - second) >= CUT_W / 2
        valid |= b_code != CUTOUT
        valid &= inside & (from_row >= 0) & (from_row < H) & (from_column >= 0) & (from_column < W)
        b_y = _gather(p_x, o_c, from_row, from_column, valid, C, H, W, WORK)
    return b_y


@triton.jit
@no_type_check
def _sine_and_cosine(angle):
    # By their series, within a half turn to the last bits: the library's functions put a table on the stack.
    angle -= tl.floor(angle * 0.15915494309189535 + 0.5) * 6.283185307179586
    square = angle * angle
    sine = square * 0 + 1
    cosine = sine
    for term in tl.static_range(14, 0, -1):
        sine = 1 - sine * square * (1 / (2 * term * (2 * term + 1)))
        cosine = 1 - cosine * square * (1 / (2 * term * (2 * term - 1)))
    return sine * angle, cosine


@triton.jit
@no_type_check
def _bilinear(
    p_x, o_c, row, column, xx, xy, yx, yy, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, WORK: tl.constexpr
):
    x = column - (W - 1) / 2
    y = row - (H - 1) / 2
    at_x = xx * x + xy * y + (W - 1) / 2
    at_y = yx * x + yy * y + (H - 1) / 2
    left = tl.floor(at_x)
    top = tl.floor(at_y)
    right_weight = at_x - left
    low_weight = at_y - top
    # Floats far outside the image must not overflow an int.
    inside = (row < H) & (left >= -1) & (left < W) & (top >= -1) & (top < H)
    left_at = tl.where(inside, left, 0.0).to(tl.int32)
    top_at = tl.where(inside, top, 0.0).to(tl.int32)
    b_y = tl.zeros([o_c.shape[0], row.shape[0]], WORK)
    for low in tl.static_range(2):
        for right in tl.static_range(2):
            from_row = top_at + low
            from_column = left_at + right
            weight = (low_weight if low else 1 - low_weight) * (right_weight if right else 1 - right_weight)
            valid = inside & (from_row >= 0) & (from_row < H) & (from_column >= 0) & (from_column < W)
            b_y += weight[None, :] * _gather(p_x, o_c, from_row, from_column, valid, C, H, W, WORK)
    return b_y


@triton.jit
@no_type_check
def _bilinear_transpose(
    p_x,
    o_c,
    row,
    column,
    xx,
    xy,
    yx,
    yy,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
    WORK: tl.constexpr,
):
    # The centre of the window and its half sides: M^-1 of the pixel and of the square (-1, 1)^2, a little wider than
    # rounding. Where M sends whole lines to one point (zoom 0), the window is the image.
    area = xx * yy - xy * yx
    flat = tl.abs(area) < 1e-20
    scale = 1 / tl.where(flat, 1.0, area)
    slack = 1.0001
    half_x = tl.minimum(tl.where(flat, W, (tl.abs(yy) + tl.abs(xy)) * tl.abs(scale) * slack), 1.0 * W)
    half_y = tl.minimum(tl.where(flat, H, (tl.abs(yx) + tl.abs(xx)) * tl.abs(scale) * slack), 1.0 * H)
    x = column - (W - 1) / 2
    y = row - (H - 1) / 2
    from_x = tl.where(half_x < W, tl.ceil((yy * x - xy * y) * scale + (W - 1) / 2 - half_x), 0.0)
    from_y = tl.where(half_y < H, tl.ceil((xx * y - yx * x) * scale + (H - 1) / 2 - half_y), 0.0)
    from_x = tl.minimum(tl.maximum(from_x, 0.0), 1.0 * W)
    from_y = tl.minimum(tl.maximum(from_y, 0.0), 1.0 * H)
    columns = tl.minimum(tl.floor(2 * half_x).to(tl.int32) + 1, W)
    rows = tl.minimum(tl.floor(2 * half_y).to(tl.int32) + 1, H)
    # M p - q at the window's first pixel.
    off_x = xx * (from_x - (W - 1) / 2) + xy * (from_y - (H - 1) / 2) - x
    off_y = yx * (from_x - (W - 1) / 2) + yy * (from_y - (H - 1) / 2) - y
    off_x = tl.where(row < H, off_x, 1e6)
    from_column = from_x.to(tl.int32)
    from_row = from_y.to(tl.int32)
    b_y = tl.zeros([BLOCK_C, BLOCK], WORK)
    for down in range(0, rows):
        for along in range(0, columns, 3):
            # Three at once: the loads of a draw's whole window are in flight together.
            for third in tl.static_range(3):
                far_x = tl.abs(off_x + ((along + third) * xx + down * xy))
                far_y = tl.abs(off_y + ((along + third) * yx + down * yy))
                at_row = from_row + down
                at_column = from_column + along + third
                valid = (at_row < H) & (at_column < W) & (far_x < 1) & (far_y < 1)
                weight = (1 - far_x) * (1 - far_y)
                b_y += weight[None, :] * _gather(p_x, o_c, at_row, at_column, valid, C, H, W, WORK)
    return b_y


# ---------------------------------------------------------------- drawing


def table_of(draws: Sequence[DSADraw], images: int) -> Tensor:
    """Draws of K batches of `images` images as a table `[K, images, 4]` on the CPU, for :func:`apply`."""
    table = torch.zeros(len(draws), images, COLUMNS)
    for lines, draw in zip(table, draws, strict=True):
        lines[:, 0] = OPERATIONS.index(draw.operation) if draw.operation != "none" else _NONE
        lines[:, 1 : 1 + draw.values.shape[1]] = draw.values
    return table


def draw(
    seed: Tensor,
    *,
    steps: int,
    batch: int,
    shape: Sequence[int],
    strategy: str = "_".join(OPERATIONS),
    trajectories: int = 1,
    siamese: bool = False,
) -> Tensor:
    """Draw every step of a run on the device, one operation per step and trajectory, as :class:`DSA` does.

    Each number is a pure function of (seed, step, trajectory, image): Philox 4x32-10 with the seed for a key. A longer
    run or a larger batch has the same draws where it has the same steps and images.

    Args:
        seed: int64, one number on the device; read there, so a captured graph draws anew when it has been changed.
        shape: ends in (height, width).
        strategy: as for :class:`DSA`.
        siamese: one draw for all images of a batch.

    Returns:
        float32 `[steps, trajectories, batch, 4]`, with 1 for `batch` when siamese. `table[t]` is for
        :func:`apply` at step t.

    Raises:
        InputError: the seed is not one int64 number. ConfigError: an unknown strategy.
    """
    _check_seed(seed)
    rows = 1 if siamese else batch
    table = torch.empty(steps, trajectories, rows, COLUMNS, dtype=torch.float32, device=seed.device)
    if table.numel():
        _draw_call(seed, table, shape, strategy).run()
    return table


def _draw_call(seed: Tensor, table: Tensor, shape: Sequence[int], strategy: str) -> Call:
    steps, trajectories, rows, _ = table.shape
    block = min(triton.next_power_of_2(rows), 256)
    options = {
        "CHOICES": tuple(OPERATIONS.index(operation) for operation in DSA(strategy).operations),
        "RANGES": _ranges(int(shape[-2]), int(shape[-1])),
        "WHOLE": _whole(),
        "BLOCK": block,
        "num_warps": max(1, block // 64),
    }
    grid = (steps * trajectories, triton.cdiv(rows, block))
    return Call(_draw_kernel, grid, (seed, table, trajectories, rows), moved(table, seed), options)


_CPU = torch.device("cpu")


def _check_seed(seed: Tensor) -> None:
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.numel() != 1:
        what = f"{seed.dtype} {list(seed.shape)}" if isinstance(seed, Tensor) else type(seed).__name__
        raise InputError(f"the seed must be one int64 number in a tensor on the device of the draws; got {what}")


@lru_cache(maxsize=64)
def _ranges(height: int, width: int) -> tuple[float, ...]:
    """(low, span) of every number of every operation, three pairs each."""
    flat: list[float] = []
    for operation in OPERATIONS:
        low, span, _ = value_ranges(operation, height, width, _CPU)
        pairs = [number for pair in zip(low.tolist(), span.tolist(), strict=True) for number in pair]
        flat += pairs + [0.0] * (6 - len(pairs))
    return tuple(flat)


@lru_cache(maxsize=1)
def _whole() -> tuple[bool, ...]:
    """Whether the numbers of each operation are whole ones."""
    return tuple(value_ranges(operation, 8, 8, _CPU)[2] for operation in OPERATIONS)


@triton.jit
@no_type_check
def _draw_kernel(
    p_seed,
    p_table,
    trajectories,
    rows,
    CHOICES: tl.constexpr,
    RANGES: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The draws of BLOCK images of one step and trajectory."""
    line = tl.program_id(0)
    step = line // trajectories
    trajectory = line % trajectories
    o_row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seed = tl.load(p_seed)
    zeros = o_row * 0
    bits, _, _, _ = tl.philox(seed, zeros, zeros + trajectory, zeros + step, zeros + 1)
    choice = ((bits.to(tl.uint64) * len(CHOICES)) >> 32).to(tl.int32)
    first, second, third, _ = tl.philox(seed, o_row, zeros + trajectory, zeros + step, zeros)
    # Multiples of 2^-24 below 1, as torch draws them.
    first = (first >> 8).to(tl.float32) * 5.9604644775390625e-08
    second = (second >> 8).to(tl.float32) * 5.9604644775390625e-08
    third = (third >> 8).to(tl.float32) * 5.9604644775390625e-08
    operation = zeros - 1
    for place in tl.static_range(len(CHOICES)):
        operation = tl.where(choice == place, CHOICES[place], operation)
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    c = tl.zeros([BLOCK], tl.float32)
    for kind in tl.static_range(len(WHOLE)):
        chosen = operation == kind
        a = tl.where(chosen, _place(first, RANGES[6 * kind], RANGES[6 * kind + 1], WHOLE[kind]), a)
        b = tl.where(chosen, _place(second, RANGES[6 * kind + 2], RANGES[6 * kind + 3], WHOLE[kind]), b)
        c = tl.where(chosen, _place(third, RANGES[6 * kind + 4], RANGES[6 * kind + 5], WHOLE[kind]), c)
    p_row = p_table + (line.to(tl.int64) * rows + o_row) * 4
    m_row = o_row < rows
    tl.store(p_row, operation.to(tl.float32), mask=m_row)
    tl.store(p_row + 1, a, mask=m_row)
    tl.store(p_row + 2, b, mask=m_row)
    tl.store(p_row + 3, c, mask=m_row)


@triton.jit
@no_type_check
def _place(u, low: tl.constexpr, span: tl.constexpr, whole: tl.constexpr):
    return low + (tl.floor(u * span) if whole else u * span)


# ---------------------------------------------------------------- naive twins


def naive_apply(x: Tensor, table: Tensor, *, index: Tensor | None = None) -> Tensor:
    """:func:`apply`, image by image through :meth:`DSA.apply`."""
    x = x if index is None else x[index]
    batch = x.shape[-4]
    expanded, trajectories = _fit(x, table, batch)
    stacked = x.dim() == 5 or table.dim() == 3
    x = x.expand(trajectories, *x.shape[-4:])
    expanded = expanded.expand(trajectories, batch, COLUMNS)
    images = [
        _naive_image(image[None], line)
        for group, lines in zip(x, expanded, strict=True)
        for image, line in zip(group, lines, strict=True)
    ]
    out = torch.cat(images).reshape(trajectories, batch, *x.shape[-3:])
    return out if stacked else out[0]


def _naive_image(image: Tensor, line: Tensor) -> Tensor:
    code = int(line[0])
    operation = OPERATIONS[code] if code != _NONE else "none"
    columns = len(value_ranges(operation, 8, 8, _CPU)[0]) if operation != "none" else 0
    return DSA.apply(image, DSADraw(operation, line[None, 1 : 1 + columns]))


def naive_transpose(grad: Tensor, table: Tensor) -> Tensor:
    """:func:`transpose` by autograd through :func:`naive_apply`."""
    with torch.enable_grad():
        x = torch.zeros_like(grad).requires_grad_()
        return torch.autograd.grad(naive_apply(x, table), x, grad)[0]


def naive_draw(
    seed: Tensor,
    *,
    steps: int,
    batch: int,
    shape: Sequence[int],
    strategy: str = "_".join(OPERATIONS),
    trajectories: int = 1,
    siamese: bool = False,
) -> Tensor:
    """:func:`draw` in integers of 64 bits."""
    operations = DSA(strategy).operations
    rows = 1 if siamese else batch
    table = torch.zeros(steps, trajectories, rows, COLUMNS)
    table[..., 0] = _NONE
    step, trajectory, row = torch.meshgrid(*map(torch.arange, table.shape[:3]), indexing="ij")
    if not operations:
        return table.to(seed.device)
    bits = _philox(int(seed), [torch.zeros_like(row), trajectory, step, torch.ones_like(row)])[0]
    choice = bits * len(operations) >> 32
    numbers = _philox(int(seed), [row, trajectory, step, torch.zeros_like(row)])[:3]
    uniform = [(number >> 8).float() * 2.0**-24 for number in numbers]
    for place, operation in enumerate(operations):
        low, span, whole = value_ranges(operation, int(shape[-2]), int(shape[-1]), _CPU)
        chosen = choice == place
        table[..., 0][chosen] = OPERATIONS.index(operation)
        for column in range(len(low)):
            values = uniform[column] * span[column]
            table[..., 1 + column][chosen] = ((values.floor() if whole else values) + low[column])[chosen]
    return table.to(seed.device)


def _philox(seed: int, counters: list[Tensor]) -> list[Tensor]:
    """Philox 4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405) on int64 tensors that hold 32-bit words."""
    low = 0xFFFFFFFF
    key = [seed & low, (seed >> 32) & low]
    a, b, c, d = counters
    for _ in range(10):
        # A product of two words may need 64 bits; its halves are put together from half-words.
        (high_a, low_a), (high_c, low_c) = _product(a, 0xD2511F53), _product(c, 0xCD9E8D57)
        a, b, c, d = high_c ^ b ^ key[0], low_c, high_a ^ d ^ key[1], low_a
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return [a, b, c, d]


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32-bit product."""
    lower = (word & 0xFFFF) * factor  # below 2^48
    upper = (word >> 16) * factor + (lower >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)


# ---------------------------------------------------------------- configurations


def production() -> list[Production]:
    """Launches of CIFAR (32 px) and Tiny ImageNet (64 px) runs."""
    made = []
    for side, batch, trajectories in ((32, 10, 1), (32, 10, 8), (32, 100, 1), (32, 1000, 1), (64, 100, 1)):
        x = torch.empty(batch, 3, side, side, device="meta")
        out = torch.empty(trajectories, *x.shape, device="meta")
        table = torch.empty(trajectories, batch, COLUMNS, device="meta")
        for transposed in (False, True):
            source = out if transposed else x
            call = _augment_call(source, table, out, None, trajectories, batch, transpose=transposed)
            made.append(call.production(f"{side} px, K {trajectories}, B {batch}" + ", transpose" * transposed))
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    for batch in (10, 1000):
        table = torch.empty(80, 1, batch, COLUMNS, device="meta")
        call = _draw_call(seed, table, (32, 32), "_".join(OPERATIONS))
        made.append(call.production(f"80 steps of {batch} images"))
    further: list[Production] = []
    for sizes in UNROLLED:
        x = torch.empty(sizes.batch, 3, sizes.side, sizes.side, device="meta")
        table = x.new_empty(80, 1, sizes.batch, COLUMNS)
        chosen = torch.empty(sizes.batch, dtype=torch.int64, device="meta")
        calls = (
            _draw_call(seed, table, x.shape, "_".join(OPERATIONS)),
            _augment_call(x, table[0, 0], x, chosen, 1, sizes.batch, transpose=False),
            _augment_call(x, table[0, 0], x, None, 1, sizes.batch, transpose=True),
        )
        further += [call.production(f"{sizes.side} px, B {sizes.batch}", targets=NEWEST) for call in calls]
    for sizes in TRAINED:
        if sizes.trajectories > 1:  # one alone draws and applies its own in torch
            x = torch.empty(sizes.trajectories, sizes.batch, 3, sizes.side, sizes.side, device="meta")
            table = x.new_empty(*x.shape[:2], COLUMNS)
            call = _augment_call(x, table, x, None, len(x), sizes.batch, transpose=False)
            further.append(call.production(f"own images, K {len(x)}, B {sizes.batch}", targets=NEWEST))
    return with_further(made, further)
