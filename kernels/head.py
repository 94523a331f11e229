"""The linear classifier and the softmax cross entropy, with tangent and adjoint.

Equation numbers are those of docs/cpu_engine.md. Features are channels-last `[K, B, h, w, C]`; the classifier lies in
the flat vector as torch has it, `[classes, C, h, w]` and then its bias `[classes]`. Products go through cuBLAS, in the
arithmetic that torch is set to for matrix products (by default full float32).

Labels are classes (int64 `[B]` or `[K, B]`) or logits (`[B, classes]` or `[K, B, classes]`), softmaxed here. A class
that does not exist makes its row NaN: no value means "ignore".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError
from .launch import Cost, note
from .rows import Call, finish, moved

if TYPE_CHECKING:
    from .aot import Production


@triton.jit
def _logits(p_x, image, images, block, classes, BLOCK: tl.constexpr):
    """A block of rows of logits, -inf where there are none, with its offsets and mask."""
    column = block * BLOCK + tl.arange(0, BLOCK)
    o = image[:, None] * classes + column[None, :]
    inside = (image < images)[:, None] & (column < classes)[None, :]
    return tl.load(p_x + o, mask=inside, other=float("-inf")), o, inside


@triton.jit
def _softmax_sums(
    p_x,
    p_weight,
    image,
    images,
    classes,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """What each row is shifted by, its sum of exponentials, and the mean of a weight under the softmax."""
    top = tl.full([ROWS], float("-inf"), p_x.dtype.element_ty)
    sums = tl.zeros([ROWS], p_x.dtype.element_ty)
    weighted = tl.zeros([ROWS], p_x.dtype.element_ty)
    for block in range(BLOCKS):
        x, o, inside = _logits(p_x, image, images, block, classes, BLOCK)
        # The maximum passes over a NaN, but the sums do not.
        higher = tl.maximum(top, tl.max(x, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        e = tl.exp(x - shift[:, None])
        before = tl.exp(top - shift)
        sums = sums * before + tl.sum(e, 1)
        if WEIGHTED:
            weight = tl.load(p_weight + o, mask=inside, other=0.0)
            weighted = weighted * before + tl.sum(e * weight, 1)
        top = higher
    return tl.where(top == float("-inf"), 0.0, top), sums, weighted / sums


@triton.jit
def _distribution(p_labels, image, images, block, classes, top, sums, HARD: tl.constexpr, BLOCK: tl.constexpr):
    """A block of label distributions q."""
    if HARD:
        label = tl.load(p_labels + image, mask=image < images, other=0)
        exists = (label >= 0) & (label < classes)
        column = block * BLOCK + tl.arange(0, BLOCK)
        return tl.where(exists[:, None], tl.where(label[:, None] == column[None, :], 1.0, 0.0), float("nan"))
    else:
        y, _o, _inside = _logits(p_labels, image, images, block, classes, BLOCK)
        return tl.exp(y - top[:, None]) / sums[:, None]


@triton.jit
def _loss_kernel(
    p_sum,  # [K], or [K, tiles] float64 with more than one tile
    p_gud,  # [K, B, classes]
    p_u,  # [K, B, classes]
    p_labels,
    images,
    classes,
    batch,
    label_stride,  # from one trajectory's labels to the next one's; 0 when shared
    HARD: tl.constexpr,
    ONE_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    tile, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
    image = tile * ROWS + tl.arange(0, ROWS)
    p_u += k * images * classes
    p_gud += k * images * classes
    p_labels += k * label_stride
    top_p, sum_p, _mean_p = _softmax_sums(p_u, p_u, image, images, classes, False, ROWS, BLOCK, BLOCKS)
    top_q, sum_q = top_p, sum_p
    if not HARD:
        top_q, sum_q, _mean_q = _softmax_sums(p_labels, p_labels, image, images, classes, False, ROWS, BLOCK, BLOCKS)

    # In float64, because the fast float32 logarithm is off by 1e-7 however small the loss.
    log_sum = tl.log(sum_p.to(tl.float64)).to(sum_p.dtype)
    losses = tl.zeros([ROWS], tl.float64)
    for block in range(BLOCKS):
        u, o, inside = _logits(p_u, image, images, block, classes, BLOCK)
        q = _distribution(p_labels, image, images, block, classes, top_q, sum_q, HARD, BLOCK)
        p = tl.exp(u - top_p[:, None]) / sum_p[:, None]
        tl.store(p_gud + o, (p - q) / batch, mask=inside)  # (25)
        minus_log_p = log_sum[:, None] - (u - top_p[:, None])
        losses += tl.sum(tl.where(q == 0, 0.0, q * minus_log_p), 1).to(tl.float64)
    value = tl.sum(tl.where(image < images, losses, 0.0), 0)
    if ONE_TILE:
        tl.store(p_sum + k, (value / batch).to(p_sum.dtype.element_ty))
    else:
        tl.store(p_sum + k * tl.num_programs(0) + tile, value)


@triton.jit
def _adjoint_kernel(
    p_sum,  # [K], or [K, tiles] float64 with more than one tile
    p_gu,  # [K, B, classes]
    p_gud,  # [K, B, classes]
    p_gy,  # like the labels, written when OF_LABELS
    p_u,  # [K, B, classes]
    p_ud,  # [K, B, classes]
    p_labels,
    trajectories,
    images,
    classes,
    batch,
    label_stride,  # see _loss_kernel
    each,  # trajectories of one program: all where their label gradients are summed, else 1
    HARD: tl.constexpr,
    OF_LABELS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    tile = tl.program_id(0)
    first = tl.program_id(1) * each
    image = tile * ROWS + tl.arange(0, ROWS)
    for k in range(first, tl.minimum(first + each, trajectories)):
        trajectory = tl.zeros([], tl.int64) + k
        base = trajectory * images * classes
        of_labels = trajectory * label_stride
        top_p, sum_p, mean_p = _softmax_sums(p_u + base, p_ud + base, image, images, classes, True, ROWS, BLOCK, BLOCKS)
        top_q, sum_q, mean_q = top_p, sum_p, mean_p
        if not HARD:
            top_q, sum_q, mean_q = _softmax_sums(
                p_labels + of_labels, p_ud + base, image, images, classes, OF_LABELS, ROWS, BLOCK, BLOCKS
            )

        phis = tl.zeros([ROWS], tl.float64)
        for block in range(BLOCKS):
            u, o, inside = _logits(p_u + base, image, images, block, classes, BLOCK)
            ud = tl.load(p_ud + base + o, mask=inside, other=0.0)
            q = _distribution(p_labels + of_labels, image, images, block, classes, top_q, sum_q, HARD, BLOCK)
            p = tl.exp(u - top_p[:, None]) / sum_p[:, None]
            tl.store(p_gud + base + o, (p - q) / batch, mask=inside)  # (25)
            tl.store(p_gu + base + o, p * (ud - mean_p[:, None]) / batch, mask=inside)
            phis += tl.sum((p - q) * ud, 1).to(tl.float64)  # (26)
            if OF_LABELS:
                gy = -q * (ud - mean_q[:, None]) / batch
                if k > first:
                    gy += tl.load(p_gy + of_labels + o, mask=inside)
                tl.store(p_gy + of_labels + o, gy, mask=inside)
        if OF_LABELS:
            # The next trajectory's load may be made by another thread than this one's store.
            tl.debug_barrier()
        value = tl.sum(tl.where(image < images, phis, 0.0), 0)
        if ONE_TILE:
            tl.store(p_sum + k, (value / batch).to(p_sum.dtype.element_ty))
        else:
            tl.store(p_sum + trajectory * tl.num_programs(0) + tile, value)


@triton.jit
def _transpose_kernel(
    p_out,  # [K, classes, columns, rows], trajectories out_stride apart
    p_in,  # [K, classes, rows, columns], trajectories in_stride apart
    p_gu,  # [K, images, classes], read when BIAS
    rows,
    columns,
    images,
    out_stride,
    in_stride,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,  # the last tile adds gu up over images, for out[classes * columns * rows :]
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile, label, k = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    classes = tl.num_programs(1)
    p_out += k * out_stride
    across = tl.cdiv(columns, COLUMNS)
    if BIAS and tile == tl.cdiv(rows, ROWS) * across:
        o = tl.arange(0, 128)
        sums = tl.zeros([128], tl.float64)
        for start in range(0, images, 128):
            at = start + o
            gu = tl.load(p_gu + (k * images + at) * classes + label, mask=at < images, other=0.0)
            sums += gu.to(tl.float64)
        p_bias = p_out + classes.to(tl.int64) * rows * columns + label
        bias = tl.sum(sums, 0).to(p_out.dtype.element_ty)
        if ADD:
            bias += tl.load(p_bias)
        tl.store(p_bias, bias)
    else:
        row = tile // across * ROWS + tl.arange(0, ROWS)
        column = tile % across * COLUMNS + tl.arange(0, COLUMNS)
        base = label.to(tl.int64) * rows * columns
        x = tl.load(
            p_in + k * in_stride + base + row[:, None] * columns + column[None, :],
            mask=(row < rows)[:, None] & (column < columns)[None, :],
        )
        p_weights = p_out + base + column[:, None] * rows + row[None, :]
        inside = (column < columns)[:, None] & (row < rows)[None, :]
        value = tl.trans(x)
        if ADD:
            value += tl.load(p_weights, mask=inside)
        tl.store(p_weights, value, mask=inside)


def pack(theta: Tensor, offset: int, classes: int, f_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The classifier in the order of channels-last features.

    Args:
        theta: `[K, P]`, the weights from column `offset` on.
        classes: number of classes.
        f_shape: of the features, `[..., h, w, C]`.

    Returns:
        Weights `[K, classes, h * w * C]`, and the bias `[K, classes]`, a view of `theta`.
    """
    height, width, channels = f_shape[-3:]
    end = offset + classes * height * width * channels
    weights, bias = theta[:, offset:end], theta[:, end : end + classes]
    if height * width > 1:
        packed = torch.empty(len(theta), classes, height * width * channels, dtype=theta.dtype, device=theta.device)
        _transpose_call(packed, weights, classes, channels, height * width).run()
        return packed, bias
    return weights.unflatten(1, (classes, channels)), bias


def logits(f: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """`u = C f + c` (24).

    Args:
        f: `[K, B, h, w, C]`, contiguous.
        w, bias: from :func:`pack`.

    Returns:
        `[K, B, classes]`.
    """
    return _affine(f.flatten(2), w, bias)


def tangent_logits(f: Tensor, fd: Tensor, w: Tensor, bias: Tensor, wv: Tensor, bias_v: Tensor) -> tuple[Tensor, Tensor]:
    """`u = C f + c` and `ud = C fd + Vc f + vc` (24), each `[K, B, classes]`.

    Args:
        f, fd: features and their tangent, `[K, B, h, w, C]`, contiguous.
        w, bias, wv, bias_v: the classifier and its direction, from :func:`pack`.
    """
    f = f.flatten(2)
    ud = _affine(f, wv, bias_v)
    _note_product(fd, w, ud)
    return _affine(f, w, bias), ud.baddbmm_(fd.flatten(2), w.mT)


def loss(u: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Cross entropy of each trajectory, and its derivative by the logits.

    Args:
        u: logits `[K, B, classes]`.
        labels: see above; of the same device, logits of the same dtype.
        batch: what sums over images are divided by: the size of the whole batch, where this is a part of it.

    Returns:
        losses `[K]` (a sum over these B images, divided by `batch`) and `ud' = (p - q) / batch` `[K, B, classes]`.

    Raises:
        InputError: labels that do not fit.
    """
    u = u.contiguous()
    labels, label_stride = _labels(labels, u)
    gud = torch.empty_like(u)
    losses, partial, call = _loss_call(gud, u, labels, label_stride, batch)
    call.run()
    if partial is not None:
        finish(losses, partial, batch).run()
    return losses, gud


def adjoint(
    u: Tensor, ud: Tensor, labels: Tensor, batch: int, *, wants_labels: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`phi = <ud', ud>` and its derivatives by tangent, logits and label logits (25, 26).

    Args:
        u, ud: logits and their tangent, `[K, B, classes]`.
        labels, batch: see :func:`loss`.
        wants_labels: False leaves the last result out.

    Returns:
        `phi` `[K]` (of these B images), `u'` and `ud'` `[K, B, classes]`, and for label logits `y'` in their own shape:
        summed over the trajectories, in order, where these share `[B, classes]`. None for hard labels.

    Raises:
        InputError: labels that do not fit.
    """
    u, ud = u.contiguous(), ud.contiguous()
    labels, label_stride = _labels(labels, u)
    gu, gud = torch.empty_like(u), torch.empty_like(u)
    gy = torch.empty_like(labels) if wants_labels and labels.is_floating_point() else None
    phi, partial, call = _adjoint_call(gu, gud, gy, u, ud, labels, label_stride, batch)
    call.run()
    if partial is not None:
        finish(phi, partial, batch).run()
    return phi, gu, gud, gy


def pull(gu: Tensor, w: Tensor, f_shape: Sequence[int]) -> Tensor:
    """`f' = C^T u'` `[K, B, h, w, C]` for `gu` `[K, B, classes]`."""
    return _product(gu, w).view(tuple(f_shape))


def pull_dual(gu: Tensor, gud: Tensor, w: Tensor, wv: Tensor, f_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`f' = C^T u' + Vc^T ud'` and `fd' = C^T ud'` (27), each `[K, B, h, w, C]`."""
    gf = _product(gu, w)
    _note_product(gud, wv, gf)
    return gf.baddbmm_(gud, wv).view(tuple(f_shape)), _product(gud, w).view(tuple(f_shape))


def weight_grad(gud: Tensor, f: Tensor, out: Tensor, offset: int, *, accumulate: bool = False) -> None:
    """`C' = ud' (x) f`, `c' = sum ud'` of the plain step, into `out[:, offset:]` in torch's order.

    Args:
        gud: `[K, B, classes]`, contiguous.
        f: `[K, B, h, w, C]`, contiguous.
        out: `[K, P]`, rows of adjacent entries.
        offset: first column written.
        accumulate: add to what `out` holds.
    """
    _store_call(_product(gud.mT, f.flatten(2)), gud, f, out, offset, accumulate).run()


def weight_grad_dual(
    gu: Tensor, gud: Tensor, f: Tensor, fd: Tensor, out: Tensor, offset: int, *, accumulate: bool = False
) -> None:
    """`C' = u' (x) f + ud' (x) fd`, `c' = sum u'` (27); see :func:`weight_grad`."""
    product = _product(gu.mT, f.flatten(2))
    _note_product(gud, fd, product)
    product.baddbmm_(gud.mT, fd.flatten(2))
    _store_call(product, gu, f, out, offset, accumulate).run()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """`a b` for `[K, m, n]` and `[K, n, l]`."""
    out = torch.bmm(a, b)
    _note_product(a, b, out)
    return out


def _affine(f: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """`f w^T + bias` for `[K, B, F]`, `[K, classes, F]` and `[K, classes]`."""
    if len(f) == 1:
        u = torch.addmm(bias[0], f[0], w[0].T)[None]  # cuBLASLt adds the bias itself
    else:
        u = torch.baddbmm(bias[:, None], f, w.mT)
    _note_product(f, w, u)
    return u


def _note_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """A product of matrices sums over what its operands have that its result has not."""
    summed = math.isqrt(a[0].numel() * b[0].numel() // max(1, out[0].numel()))
    note("cublas", Cost(moved(a, b, out).bytes, 2 * out.numel() * summed))


def _labels(labels: Tensor, u: Tensor) -> tuple[Tensor, int]:
    """The labels, contiguous, and the entries between two trajectories' (0: shared)."""
    shapes = [u.shape[1:], u.shape] if labels.is_floating_point() else [u.shape[1:2], u.shape[:2]]
    kind = u.dtype if labels.is_floating_point() else torch.int64
    if labels.shape not in shapes or labels.dtype != kind or labels.device != u.device:
        raise InputError(
            f"labels are {labels.dtype} {list(labels.shape)} on {labels.device} for logits {u.dtype} {list(u.shape)} "
            f"on {u.device}; pass {kind} {list(shapes[0])}, or {list(shapes[1])} for labels of each trajectory's own"
        )
    return labels.contiguous(), 0 if labels.dim() == len(shapes[0]) else labels[0].numel()


def _shape(u: Tensor) -> tuple[int, dict[str, int]]:
    """Tiles of images, and the block shape: a tile of about 2,048 logits, rows longer than that in several blocks."""
    _, images, classes = u.shape
    largest = 8192 // u.dtype.itemsize
    block = min(triton.next_power_of_2(classes), largest)
    rows = min(largest // block, triton.next_power_of_2(images))
    warps = max(1, rows * block // 128)
    options = {"ROWS": rows, "BLOCK": block, "BLOCKS": -(-classes // block), "num_warps": warps}
    return -(-images // rows), options


def _sums(u: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """`[K]` for the result, and `[K, count]` for partial sums where there is more than one."""
    partial = None
    if count > 1:
        partial = torch.empty(len(u), count, dtype=torch.float64, device=u.device)
    return torch.empty(len(u), dtype=u.dtype, device=u.device), partial


def _loss_call(
    gud: Tensor, u: Tensor, labels: Tensor, label_stride: int, batch: int
) -> tuple[Tensor, Tensor | None, Call]:
    trajectories, images, classes = u.shape
    count, options = _shape(u)
    losses, partial = _sums(u, count)
    target = losses if partial is None else partial
    call = Call(
        _loss_kernel,
        (count, trajectories),
        (target, gud, u, labels, images, classes, batch, label_stride),
        moved(target, gud, u, labels),
        {"HARD": not labels.is_floating_point(), "ONE_TILE": partial is None, **options},
    )
    return losses, partial, call


def _adjoint_call(
    gu: Tensor,
    gud: Tensor,
    gy: Tensor | None,
    u: Tensor,
    ud: Tensor,
    labels: Tensor,
    label_stride: int,
    batch: int,
) -> tuple[Tensor, Tensor | None, Call]:
    trajectories, images, classes = u.shape
    count, options = _shape(u)
    phi, partial = _sums(u, count)
    target = phi if partial is None else partial
    each = 1 if gy is None or label_stride else trajectories
    call = Call(
        _adjoint_kernel,
        (count, trajectories // each),
        (target, gu, gud, gy, u, ud, labels, trajectories, images, classes, batch, label_stride, each),
        moved(target, gu, gud, u, ud, labels, *(() if gy is None else (gy,))),
        {
            "HARD": not labels.is_floating_point(),
            "OF_LABELS": gy is not None,
            "ONE_TILE": partial is None,
            **options,
        },
    )
    return phi, partial, call


def _transpose_call(
    out: Tensor,
    x: Tensor,
    classes: int,
    rows: int,
    columns: int,
    gu: Tensor | None = None,
    *,
    accumulate: bool = False,
) -> Call:
    """`x` `[K, classes, rows, columns]` to `out` `[K, classes, columns, rows]`, both flat after K."""
    wide = min(triton.next_power_of_2(columns), 128)
    high = min(triton.next_power_of_2(rows), 2048 // wide)
    count = -(-rows // high) * -(-columns // wide)
    images = 0 if gu is None else gu.shape[1]
    return Call(
        _transpose_kernel,
        (count + (gu is not None), classes, len(x)),
        (out, x, gu, rows, columns, images, out.stride(0), x.stride(0)),
        moved(x, x, *((x,) if accumulate else ()), *(() if gu is None else (gu,))),
        {"ADD": accumulate, "BIAS": gu is not None, "ROWS": high, "COLUMNS": wide, "num_warps": 4},
    )


def _store_call(weights: Tensor, gu: Tensor, f: Tensor, out: Tensor, offset: int, accumulate: bool) -> Call:
    """Weights `[K, classes, h * w * C]` in torch's order to `offset`, and the sum of `gu` over images after them."""
    channels = f.shape[-1]
    positions = weights.shape[2] // channels
    piece = out[:, offset : offset + (weights.shape[2] + 1) * weights.shape[1]]
    return _transpose_call(
        piece, weights.flatten(1), weights.shape[1], positions, channels, gu.contiguous(), accumulate=accumulate
    )


def production() -> list[Production]:
    """The head of a ConvNet whose last map is 4 x 4 x 128, at several batches and numbers of classes."""
    items = []
    for batch, classes in ((10, 10), (100, 10), (1000, 10), (100, 100), (200, 200), (10, 1000), (10, 10000)):
        name = f"{classes} classes, batch {batch}"
        u = torch.empty(1, batch, classes, device="meta")
        soft, hard = u[0], torch.empty(batch, dtype=torch.int64, device="meta")
        losses, partial, call = _loss_call(u, u, soft, 0, batch)
        items.append(call.production(f"soft labels, {name}"))
        items.append(_adjoint_call(u, u, soft, u, u, soft, 0, batch)[2].production(f"soft labels, {name}"))
        if batch in (100, 1000) and classes == 10:
            items.append(_loss_call(u, u, hard, 0, batch)[2].production(f"hard labels, {name}"))
            items.append(_adjoint_call(u, u, None, u, u, hard, 0, batch)[2].production(f"hard labels, {name}"))
            four = torch.empty(4, batch, classes, device="meta")
            call = _adjoint_call(four, four, soft, four, four, soft, 0, batch)[2]
            items.append(call.production(f"soft labels, 4 trajectories, {name}"))
            if partial is not None:
                items.append(finish(losses, partial, batch).production(name))
    u = torch.empty(2, 100, 10, dtype=torch.float64, device="meta")
    for call in (_loss_call(u, u, u[0], 0, 100)[2], _adjoint_call(u, u, u[0], u, u, u[0], 0, 100)[2]):
        items.append(call.production("float64, 2 trajectories, soft labels, 10 classes, batch 100", hot=False))
    for classes in (10, 200):
        name = f"{classes} classes of 4 x 4 x 128, batch 100"
        theta, f = torch.empty(1, 320010 + 400000, device="meta"), torch.empty(1, 100, 4, 4, 128, device="meta")
        weights, gu = torch.empty(1, classes, 2048, device="meta"), torch.empty(1, 100, classes, device="meta")
        packed = weights.flatten(1)
        items.append(
            _transpose_call(weights, theta[:, : packed.shape[1]], classes, 128, 16).production(f"pack, {name}")
        )
        for accumulate in (False, True):
            call = _store_call(weights, gu, f, theta, 0, accumulate)
            items.append(call.production(f"{'add' if accumulate else 'store'}, {name}"))
    return items


def naive_pack(theta: Tensor, offset: int, classes: int, f_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Twin of :func:`pack`."""
    rows, (h, w, channels) = theta.shape[0], f_shape[-3:]
    end = offset + classes * h * w * channels
    weights = theta[:, offset:end].reshape(rows, classes, channels, h * w)
    return weights.transpose(2, 3).reshape(rows, classes, -1), theta[:, end : end + classes]


def naive_logits(f: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """Twin of :func:`logits`."""
    return f.flatten(2) @ w.mT + bias[:, None]


def naive_tangent_logits(
    f: Tensor, fd: Tensor, w: Tensor, bias: Tensor, wv: Tensor, bias_v: Tensor
) -> tuple[Tensor, Tensor]:
    """Twin of :func:`tangent_logits`."""
    return naive_logits(f, w, bias), fd.flatten(2) @ w.mT + f.flatten(2) @ wv.mT + bias_v[:, None]


def naive_target(labels: Tensor, u: Tensor) -> Tensor:
    """Label distributions q `[K or 1, B, classes]`; NaN in the whole row where a class does not exist."""
    if labels.is_floating_point():
        q = labels.softmax(-1)
        return q if q.dim() == 3 else q[None]
    hard = labels if labels.dim() == 2 else labels[None]
    q = (hard[..., None] == torch.arange(u.shape[-1], device=u.device)).to(u.dtype)
    return q.masked_fill(((hard < 0) | (hard >= u.shape[-1]))[..., None], math.nan)


def naive_loss(u: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Twin of :func:`loss`."""
    q = naive_target(labels, u)
    terms = torch.where(q == 0, 0, -q * u.log_softmax(-1))
    return terms.sum((1, 2)) / batch, (u.softmax(-1) - q) / batch


def naive_adjoint(
    u: Tensor, ud: Tensor, labels: Tensor, batch: int, *, wants_labels: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Twin of :func:`adjoint`."""
    p, q = u.softmax(-1), naive_target(labels, u)
    gud = (p - q) / batch
    gu = p * (ud - (p * ud).sum(-1, keepdim=True)) / batch
    gy = None
    if labels.is_floating_point() and wants_labels:
        gy = -q * (ud - (q * ud).sum(-1, keepdim=True)) / batch  # [K, B, classes]
        gy = gy if labels.dim() == 3 else gy.sum(0)
    return (gud * ud).sum((1, 2)), gu, gud, gy


def naive_pull(gu: Tensor, w: Tensor, f_shape: Sequence[int]) -> Tensor:
    """Twin of :func:`pull`."""
    return (gu @ w).view(tuple(f_shape))


def naive_pull_dual(gu: Tensor, gud: Tensor, w: Tensor, wv: Tensor, f_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Twin of :func:`pull_dual`."""
    return (gu @ w + gud @ wv).view(tuple(f_shape)), (gud @ w).view(tuple(f_shape))


def _naive_store(weights: Tensor, bias: Tensor, f: Tensor, out: Tensor, offset: int, accumulate: bool) -> None:
    channels = f.shape[-1]
    in_order = weights.unflatten(2, (-1, channels)).transpose(2, 3).flatten(1)  # [K, classes * C * h * w]
    value = torch.cat([in_order, bias], 1)
    piece = out[:, offset : offset + value.shape[1]]
    piece.copy_(piece + value if accumulate else value)


def naive_weight_grad(gud: Tensor, f: Tensor, out: Tensor, offset: int, *, accumulate: bool = False) -> None:
    """Twin of :func:`weight_grad`."""
    _naive_store(gud.mT @ f.flatten(2), gud.sum(1), f, out, offset, accumulate)


def naive_weight_grad_dual(
    gu: Tensor, gud: Tensor, f: Tensor, fd: Tensor, out: Tensor, offset: int, *, accumulate: bool = False
) -> None:
    """Twin of :func:`weight_grad_dual`."""
    _naive_store(gu.mT @ f.flatten(2) + gud.mT @ fd.flatten(2), gu.sum(1), f, out, offset, accumulate)
