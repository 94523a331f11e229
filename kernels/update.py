"""Steps on flat parameter vectors `[P]` or stacked `[K, P]`: SGD, momentum, and GSAM's ascent point and step.

The twins are :class:`pad_fast.models.updates.Updates`; norms and inner products are taken per row, in float64.
Learning rates are tensors on the device, so that a captured graph serves every value; the other settings are compiled
in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError
from ..models.updates import Updates
from .calls import Call, moved, with_further
from .published import NEWEST, TRAINED, UNROLLED
from .row_tiles import WARPS, load_block, require_alike, row_stride, store_block, tiles, total

if TYPE_CHECKING:
    from .aot import Production

_TINY = tl.constexpr(1e-12)  # added to GSAM's norms before a division


@triton.jit
@no_type_check
def _sgd_kernel(
    p_out,  # [K, P]
    p_theta,
    p_g,
    p_buffer,  # written when MOMENTUM is not 0
    p_lr,  # [1] or [K]
    length,
    stride,
    lr_stride,
    MOMENTUM: tl.constexpr,
    DECAY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    k = tl.program_id(1)
    lr = tl.load(p_lr + k * lr_stride).to(p_theta.dtype.element_ty)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    row = k.to(tl.int64) * stride
    theta = load_block(p_theta + row, start, 0, length, BLOCK)
    direction = load_block(p_g + row, start, 0, length, BLOCK)
    if MOMENTUM != 0:
        buffer = load_block(p_buffer + row, start, 0, length, BLOCK)  # before theta is used: all loads at once
    if DECAY != 0:
        direction += DECAY * theta
    if MOMENTUM != 0:
        direction += MOMENTUM * buffer
        store_block(p_buffer + row, direction, start, length, BLOCK)
    store_block(p_out + row, theta - lr * direction, start, length, BLOCK)


@triton.jit
@no_type_check
def _products_kernel(
    p_partial,  # [K, 3 or 1, tiles] float64: <x, x>, <x, y>, <y, y>; or <xy, xy>, or <x, x>
    p_x,  # [K, P]
    p_y,
    length,
    stride,
    per,
    OF_PRODUCT: tl.constexpr,
    PAIR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
    count = tl.num_programs(0)
    p_x += k * stride
    p_y += k * stride
    sum_xx = tl.zeros([BLOCK], tl.float64)
    sum_xy = tl.zeros([BLOCK], tl.float64)
    sum_yy = tl.zeros([BLOCK], tl.float64)
    for index in range(per):
        start = (tile.to(tl.int64) * per + index) * BLOCK
        x = load_block(p_x, start, 0, length, BLOCK).to(tl.float64)
        if OF_PRODUCT:
            x *= load_block(p_y, start, 0, length, BLOCK).to(tl.float64)
        sum_xx += x * x
        if PAIR:
            y = load_block(p_y, start, 0, length, BLOCK).to(tl.float64)
            sum_xy += x * y
            sum_yy += y * y
    if PAIR:
        p_partial += k * 3 * count + tile
        tl.store(p_partial, tl.sum(sum_xx, 0))
        tl.store(p_partial + count, tl.sum(sum_xy, 0))
        tl.store(p_partial + 2 * count, tl.sum(sum_yy, 0))
    else:
        tl.store(p_partial + k * count + tile, tl.sum(sum_xx, 0))


@triton.jit
@no_type_check
def _ascent_kernel(
    p_out,  # [K, P]
    p_theta,
    p_g,
    p_partial,  # [K, count] float64: <theta g, theta g>
    length,
    stride,
    count,
    RHO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    k = tl.program_id(1).to(tl.int64)
    norm = tl.sqrt(total(p_partial + k * count, count))
    scale = (RHO / (norm + _TINY)).to(p_theta.dtype.element_ty)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    theta = load_block(p_theta + k * stride, start, 0, length, BLOCK)
    g = load_block(p_g + k * stride, start, 0, length, BLOCK)
    store_block(p_out + k * stride, theta + scale * theta * theta * g, start, length, BLOCK)


@triton.jit
@no_type_check
def _surrogate_kernel(
    p_out,  # [K, P]
    p_theta,
    p_g1,
    p_g2,
    p_lr,  # [1] or [K]
    p_partial,  # [K, 3, count] float64: <g1, g1>, <g1, g2>, <g2, g2>
    length,
    stride,
    lr_stride,
    count,
    ALPHA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    k = tl.program_id(1).to(tl.int64)
    p_partial += k * 3 * count
    norm1 = tl.sqrt(total(p_partial, count))
    norm2 = tl.sqrt(total(p_partial + 2 * count, count))
    cosine = total(p_partial + count, count) / (norm1 * norm2 + _TINY)
    parallel = (cosine * norm1 / (norm2 + _TINY)).to(p_g1.dtype.element_ty)  # g1's part along g2, in units of g2
    lr = tl.load(p_lr + k * lr_stride).to(p_theta.dtype.element_ty)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    g1 = load_block(p_g1 + k * stride, start, 0, length, BLOCK)
    g2 = load_block(p_g2 + k * stride, start, 0, length, BLOCK)
    theta = load_block(p_theta + k * stride, start, 0, length, BLOCK)
    store_block(p_out + k * stride, theta - lr * (g2 - ALPHA * (g1 - parallel * g2)), start, length, BLOCK)


def sgd(theta: Tensor, g: Tensor, lr: Tensor, out: Tensor | None = None) -> Tensor:
    """`theta - lr * g`: the student's step, and with `v` and its derivative, the step back.

    Args:
        theta, g: `[P]` or `[K, P]`, contiguous, of one floating dtype.
        lr: `[]` or `[1]`, or `[K]` for one rate per row; on the same device, of any floating dtype.
        out: written and returned; may be `theta` or `g` itself. None makes a new tensor.

    Raises:
        InputError: tensors that do not agree.
    """
    out = torch.empty_like(theta) if out is None else out
    require_alike(theta=theta, g=g, out=out)
    _sgd_call(out, theta, g, theta, lr, 0.0, 0.0).run()
    return out


def momentum_sgd(
    theta: Tensor,
    g: Tensor,
    buffer: Tensor,
    lr: Tensor,
    *,
    momentum: float,
    weight_decay: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """`buffer <- momentum * buffer + g + weight_decay * theta`, then `theta - lr * buffer`, in one pass.

    Args:
        theta, g, lr, out: see :func:`sgd`.
        buffer: like `theta`, overwritten. Zeros at first, which makes the first step torch's. Not touched when
            `momentum` is 0.
        momentum, weight_decay: compiled in.

    Raises:
        InputError: tensors that do not agree.
    """
    out = torch.empty_like(theta) if out is None else out
    require_alike(theta=theta, g=g, buffer=buffer, out=out)
    _sgd_call(out, theta, g, buffer, lr, momentum, weight_decay).run()
    return out


def gsam_ascent(theta: Tensor, g: Tensor, *, rho: float, out: Tensor | None = None) -> Tensor:
    """`theta + rho theta^2 g / (|| theta g || + 1e-12)` per row: where GSAM takes its second gradient.

    Args:
        theta, g: `[P]` or `[K, P]`, contiguous, of one floating dtype.
        rho: radius, compiled in.
        out: written and returned; may be `theta` or `g` itself. None makes a new tensor.

    Raises:
        InputError: tensors that do not agree.
    """
    out = torch.empty_like(theta) if out is None else out
    require_alike(theta=theta, g=g, out=out)
    partial, norms = _products_call(theta, g, of_product=True, pair=False)
    norms.run()
    _ascent_call(out, theta, g, partial, rho).run()
    return out


def gsam_step(theta: Tensor, g1: Tensor, g2: Tensor, lr: Tensor, *, alpha: float, out: Tensor | None = None) -> Tensor:
    """`theta - lr * (g2 - alpha (g1 - c ||g1|| g2 / (||g2|| + 1e-12)))` per row, c the cosine of `g1` and `g2`.

    Args:
        theta, g1, g2: `[P]` or `[K, P]`, contiguous, of one floating dtype.
        lr: see :func:`sgd`.
        alpha: compiled in.
        out: written and returned; may be one of the three vectors. None makes a new tensor.

    Raises:
        InputError: tensors that do not agree.
    """
    out = torch.empty_like(theta) if out is None else out
    require_alike(theta=theta, g1=g1, g2=g2, out=out)
    partial, products = _products_call(g1, g2, of_product=False, pair=True)
    products.run()
    _surrogate_call(out, theta, g1, g2, lr, partial, alpha).run()
    return out


def _stacked(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(1, -1)


def _lr_stride(lr: Tensor, theta: Tensor) -> int:
    """Entries between the rates of two rows; 0 when there is one for all."""
    rows = len(_stacked(theta))
    if lr.device != theta.device:
        raise InputError(f"lr is on {lr.device}, theta on {theta.device}; move lr once, before the first step")
    if lr.numel() == 1:
        return 0
    if lr.shape != (rows,):
        raise InputError(f"lr has shape {list(lr.shape)}; pass one value, or [{rows}] for one per row")
    return lr.stride(0)


def _sgd_call(
    out: Tensor, theta: Tensor, g: Tensor, buffer: Tensor, lr: Tensor, momentum: float, weight_decay: float
) -> Call:
    lr_stride = _lr_stride(lr, theta)
    # One rate for all: the rows together are one long row, and only its end is masked.
    rows, length = (len(theta), theta.shape[1]) if lr_stride else (1, theta.numel())
    cut = tiles(length, theta.dtype)
    return Call(
        _sgd_kernel,
        (cut.count, rows),
        (out, theta, g, buffer, lr, length, length if rows > 1 else 0, lr_stride),
        moved(out, theta, g, *((buffer, buffer) if momentum else ())),
        {"MOMENTUM": momentum, "DECAY": weight_decay, "BLOCK": cut.block, "num_warps": WARPS},
    )


def _products_call(x: Tensor, y: Tensor, *, of_product: bool, pair: bool) -> tuple[Tensor, Call]:
    x, y = _stacked(x), _stacked(y)
    cut = tiles(x.shape[1], x.dtype, summed=True)
    partial = torch.empty(len(x), 3 if pair else 1, cut.count, dtype=torch.float64, device=x.device)
    return partial, Call(
        _products_kernel,
        (cut.count, len(x)),
        (partial, x, y, x.shape[1], row_stride(x), cut.per),
        moved(partial, x, y),
        {"OF_PRODUCT": of_product, "PAIR": pair, "BLOCK": cut.block, "num_warps": WARPS},
    )


def _ascent_call(out: Tensor, theta: Tensor, g: Tensor, partial: Tensor, rho: float) -> Call:
    theta = _stacked(theta)
    cut = tiles(theta.shape[1], theta.dtype)
    return Call(
        _ascent_kernel,
        (cut.count, len(theta)),
        (out, theta, g, partial, theta.shape[1], row_stride(theta), partial.shape[-1]),
        moved(out, theta, g, partial),
        {"RHO": rho, "BLOCK": cut.block, "num_warps": WARPS},
    )


def _surrogate_call(
    out: Tensor, theta: Tensor, g1: Tensor, g2: Tensor, lr: Tensor, partial: Tensor, alpha: float
) -> Call:
    g1 = _stacked(g1)
    cut = tiles(g1.shape[1], g1.dtype)
    return Call(
        _surrogate_kernel,
        (cut.count, len(g1)),
        (
            out,
            theta,
            g1,
            g2,
            lr,
            partial,
            g1.shape[1],
            row_stride(g1),
            _lr_stride(lr, g1),
            partial.shape[-1],
        ),
        moved(out, theta, g1, g2, partial),
        {"ALPHA": alpha, "BLOCK": cut.block, "num_warps": WARPS},
    )


def production() -> list[Production]:
    """The launches of one step of 320,010 parameters (ConvNet D3), one trajectory and four."""
    items = []
    for rows, dtype in ((1, torch.float32), (4, torch.float32), (1, torch.float64)):
        hot = dtype == torch.float32
        name = f"P = 320,010, {rows} row{'s' * (rows > 1)}{', float64' * (not hot)}"
        x = torch.empty(rows, 320010, dtype=dtype, device="meta")
        lr = torch.empty((), device="meta")
        square, norms = _products_call(x, x, of_product=True, pair=False)
        three, products = _products_call(x, x, of_product=False, pair=True)
        calls = {
            name: _sgd_call(x, x, x, x, lr, 0.0, 0.0),
            f"momentum, decay, {name}": _sgd_call(x, x, x, x, lr, 0.9, 5e-4),
            f"norm of theta g, {name}": norms,
            f"ascent, {name}": _ascent_call(x, x, x, square, 0.01),
            f"three products, {name}": products,
            f"GSAM's step, {name}": _surrogate_call(x, x, x, x, lr, three, 0.3),
        }
        items += [call.production(title, hot=hot) for title, call in calls.items()]
    further: list[Production] = []
    lr = torch.empty((), device="meta")
    for sizes in UNROLLED + TRAINED:
        x = torch.empty(sizes.trajectories, sizes.parameters, device="meta")
        further.append(_sgd_call(x, x, x, x, lr, 0.0, 0.0).production(sizes.name, targets=NEWEST))
        if not sizes.training:
            continue
        square, norms = _products_call(x, x, of_product=True, pair=False)
        three, products = _products_call(x, x, of_product=False, pair=True)
        step = _ascent_call(x, x, x, square, 0.01), _surrogate_call(x, x, x, x, lr, three, 0.3)
        momentum = _sgd_call(x, x, x, x, lr, 0.9, 5e-4)
        further += [call.production(sizes.name, targets=NEWEST) for call in (norms, products, *step, momentum)]
    return with_further(items, further)


_TORCH = Updates()
naive_sgd = _TORCH.sgd
naive_momentum_sgd = _TORCH.momentum_sgd
naive_gsam_ascent = _TORCH.gsam_ascent
naive_gsam_step = _TORCH.gsam_step
