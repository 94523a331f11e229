"""The softmax cross entropy of logits, with tangent and adjoint; equation numbers are those of docs/cpu_engine.md.

Logits come as `[K, B, classes]`, or as the parts of a sum `[parts, K, B, classes]` that :mod:`.classifier` leaves.
Labels are classes (int64 `[B]` or `[K, B]`) or floating (`[B, classes]` or `[K, B, classes]`): logits, softmaxed here,
or probabilities, which count as they are, whatever they add up to. A class that does not exist makes its row NaN: no
value means "ignore".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError
from .calls import Call, moved, with_further
from .classifier import parts_of
from .published import EVERY, NEWEST, WIDTH
from .row_tiles import finish

if TYPE_CHECKING:
    from .aot import Production


@triton.jit
@no_type_check
def _added(p_x, o, inside, other, stride, PARTS: tl.constexpr):
    """The sum of parts that lie `stride` apart."""
    x = tl.load(p_x + o, mask=inside, other=other)
    for part in range(1, PARTS):
        x += tl.load(p_x + part * stride + o, mask=inside, other=0.0)
    return x


@triton.jit
@no_type_check
def _logits(p_x, image, images, block, classes, stride, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """A block of rows of logits, -inf where there are none, with its offsets and mask."""
    column = block * BLOCK + tl.arange(0, BLOCK)
    o = image[:, None] * classes + column[None, :]
    inside = (image < images)[:, None] & (column < classes)[None, :]
    return _added(p_x, o, inside, float("-inf"), stride, PARTS), o, inside


@triton.jit
@no_type_check
def _softmax_sums(
    p_x,
    p_weight,
    image,
    images,
    classes,
    stride,
    PARTS: tl.constexpr,
    WEIGHTED: tl.constexpr,  # how many parts the weight has; 0 where there is none
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The shift of each row, its sum of exponentials, and the mean of a weight under the softmax."""
    top = tl.full([ROWS], float("-inf"), p_x.dtype.element_ty)
    sums = tl.zeros([ROWS], p_x.dtype.element_ty)
    weighted = tl.zeros([ROWS], p_x.dtype.element_ty)
    for block in range(BLOCKS):
        x, o, inside = _logits(p_x, image, images, block, classes, stride, PARTS, BLOCK)
        # The maximum passes over a NaN, but the sums do not.
        higher = tl.maximum(top, tl.max(x, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        e = tl.exp(x - shift[:, None])
        before = tl.exp(top - shift)
        sums = sums * before + tl.sum(e, 1)
        if WEIGHTED:
            weight = _added(p_weight, o, inside, 0.0, stride, WEIGHTED)
            weighted = weighted * before + tl.sum(e * weight, 1)
        top = higher
    return tl.where(top == float("-inf"), 0.0, top), sums, weighted / sums


@triton.jit
@no_type_check
def _distribution(
    p_labels, image, images, block, classes, top, sums,
    HARD: tl.constexpr, PROBABILITIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of labels q: distributions, but for probabilities that do not add up to 1."""
    if PROBABILITIES:
        column = block * BLOCK + tl.arange(0, BLOCK)
        inside = (image < images)[:, None] & (column < classes)[None, :]
        return tl.load(p_labels + image[:, None] * classes + column[None, :], mask=inside, other=0.0)
    elif HARD:
        label = tl.load(p_labels + image, mask=image < images, other=0)
        exists = (label >= 0) & (label < classes)
        column = block * BLOCK + tl.arange(0, BLOCK)
        return tl.where(exists[:, None], tl.where(label[:, None] == column[None, :], 1.0, 0.0), float("nan"))
    else:
        y, _o, _inside = _logits(p_labels, image, images, block, classes, 0, 1, BLOCK)
        return tl.exp(y - top[:, None]) / sums[:, None]


@triton.jit
@no_type_check
def _totals(
    p_labels, image, images, classes,
    PROBABILITIES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """What the entries of each row of labels add up to."""
    if PROBABILITIES:
        totals = tl.zeros([ROWS], p_labels.dtype.element_ty)
        for block in range(BLOCKS):
            q = _distribution(p_labels, image, images, block, classes, totals, totals, False, True, BLOCK)
            totals += tl.sum(q, 1)
        return totals
    else:
        return tl.full([ROWS], 1.0, tl.float32)


@triton.jit
@no_type_check
def _loss_kernel(
    p_sum,  # [K], or [K, tiles] float64 with more than one tile
    p_gud,  # [K, B, classes]
    p_u,  # [PARTS, K, B, classes]
    p_labels,
    images,
    classes,
    batch,
    part_stride,
    label_stride,  # from one trajectory's labels to the next one's; 0 when shared
    PARTS: tl.constexpr,
    HARD: tl.constexpr,
    PROBABILITIES: tl.constexpr,
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
    top_p, sum_p, _mean_p = _softmax_sums(p_u, p_u, image, images, classes, part_stride, PARTS, 0, ROWS, BLOCK, BLOCKS)
    top_q, sum_q = top_p, sum_p
    if not HARD and not PROBABILITIES:
        top_q, sum_q, _mean_q = _softmax_sums(p_labels, p_labels, image, images, classes, 0, 1, 0, ROWS, BLOCK, BLOCKS)

    total = _totals(p_labels, image, images, classes, PROBABILITIES, ROWS, BLOCK, BLOCKS)

    # In float64, because the fast float32 logarithm is off by 1e-7 however small the loss.
    log_sum = tl.log(sum_p.to(tl.float64)).to(sum_p.dtype)
    losses = tl.zeros([ROWS], tl.float64)
    for block in range(BLOCKS):
        u, o, inside = _logits(p_u, image, images, block, classes, part_stride, PARTS, BLOCK)
        q = _distribution(p_labels, image, images, block, classes, top_q, sum_q, HARD, PROBABILITIES, BLOCK)
        p = tl.exp(u - top_p[:, None]) / sum_p[:, None]
        tl.store(p_gud + o, (p * total[:, None] - q) / batch, mask=inside)  # (25)
        minus_log_p = log_sum[:, None] - (u - top_p[:, None])
        losses += tl.sum(tl.where(q == 0, 0.0, q * minus_log_p), 1).to(tl.float64)
    value = tl.sum(tl.where(image < images, losses, 0.0), 0)
    if ONE_TILE:
        tl.store(p_sum + k, (value / batch).to(p_sum.dtype.element_ty))
    else:
        tl.store(p_sum + k * tl.num_programs(0) + tile, value)


@triton.jit
@no_type_check
def _adjoint_kernel(
    p_sum,  # [K], or [K, tiles] float64 with more than one tile
    p_gu,  # [K, B, classes]
    p_gud,  # [K, B, classes]
    p_gy,  # like the labels, written when OF_LABELS
    p_u,  # [PARTS, K, B, classes]
    p_ud,  # [PARTS, K, B, classes]
    p_labels,
    trajectories,
    images,
    classes,
    batch,
    part_stride,
    label_stride,  # see _loss_kernel
    each,  # trajectories of one program: all where their label gradients are summed, else 1
    PARTS: tl.constexpr,
    HARD: tl.constexpr,
    PROBABILITIES: tl.constexpr,
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
        top_p, sum_p, mean_p = _softmax_sums(
            p_u + base, p_ud + base, image, images, classes, part_stride, PARTS, PARTS, ROWS, BLOCK, BLOCKS
        )
        top_q, sum_q, mean_q = top_p, sum_p, mean_p
        if not HARD and not PROBABILITIES:
            # The weight's parts lie part_stride apart; labels have one part.
            top_q, sum_q, mean_q = _softmax_sums(
                p_labels + of_labels, p_ud + base, image, images, classes, part_stride, 1,
                PARTS if OF_LABELS else 0, ROWS, BLOCK, BLOCKS,
            )  # fmt: skip

        total = _totals(p_labels + of_labels, image, images, classes, PROBABILITIES, ROWS, BLOCK, BLOCKS)
        phis = tl.zeros([ROWS], tl.float64)
        for block in range(BLOCKS):
            u, o, inside = _logits(p_u + base, image, images, block, classes, part_stride, PARTS, BLOCK)
            ud = _added(p_ud + base, o, inside, 0.0, part_stride, PARTS)
            q = _distribution(
                p_labels + of_labels, image, images, block, classes, top_q, sum_q, HARD, PROBABILITIES, BLOCK
            )
            p = tl.exp(u - top_p[:, None]) / sum_p[:, None] * total[:, None]
            tl.store(p_gud + base + o, (p - q) / batch, mask=inside)  # (25)
            tl.store(p_gu + base + o, p * (ud - mean_p[:, None]) / batch, mask=inside)
            phis += tl.sum((p - q) * ud, 1).to(tl.float64)  # (26)
            if OF_LABELS:
                gy = (mean_p[:, None] - ud) / batch if PROBABILITIES else -q * (ud - mean_q[:, None]) / batch
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


def loss(u: Tensor, labels: Tensor, batch: int, *, labels_are: str = "logits") -> tuple[Tensor, Tensor]:
    """Cross entropy of each trajectory, and its derivative by the logits.

    Args:
        u: logits, `[K, B, classes]` or in parts.
        labels: see above; of the same device, floating ones of the same dtype.
        batch: what sums over images are divided by: the size of the whole batch, where this is a part of it.
        labels_are: of floating labels, "logits" or "probabilities".

    Returns:
        losses `[K]` (a sum over these B images, divided by `batch`) and `ud' = (p - q) / batch` `[K, B, classes]`, p
        times what the row's q add up to.

    Raises:
        InputError: labels that do not fit.
    """
    u = _parted(u)
    labels, label_stride = _labels(labels, u[0])
    gud = torch.empty_like(u[0])
    losses, partial, call = _loss_call(gud, u, labels, label_stride, batch, labels_are)
    call.run()
    if partial is not None:
        finish(losses, partial, batch).run()
    return losses, gud


def adjoint(
    u: Tensor, ud: Tensor, labels: Tensor, batch: int, *, labels_are: str = "logits", wants_labels: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`phi = <ud', ud>` and its derivatives by tangent, logits and labels (25, 26).

    Args:
        u, ud: logits and their tangent, `[K, B, classes]` or in as many parts as each other.
        labels, batch, labels_are: see :func:`loss`.
        wants_labels: False leaves the last result out.

    Returns:
        `phi` `[K]` (of these B images), `u'` and `ud'` `[K, B, classes]`, and for floating labels `y'` in their shape:
        summed over the trajectories, in order, where these share `[B, classes]`. None for hard labels.

    Raises:
        InputError: labels that do not fit.
    """
    u, ud = _parted(u), _parted(ud)
    labels, label_stride = _labels(labels, u[0])
    gu, gud = torch.empty_like(u[0]), torch.empty_like(u[0])
    gy = torch.empty_like(labels) if wants_labels and labels.is_floating_point() else None
    phi, partial, call = _adjoint_call(gu, gud, gy, u, ud, labels, label_stride, batch, labels_are)
    call.run()
    if partial is not None:
        finish(phi, partial, batch).run()
    return phi, gu, gud, gy


def _parted(u: Tensor) -> Tensor:
    """`[parts, K, B, classes]`, contiguous."""
    return (u if u.dim() == 4 else u[None]).contiguous()


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
    """Tiles of images, and the block shape: a tile of about 1,024 logits, rows longer than that in several blocks.

    Twice as many would take 16 warps, whose 128 registers a thread are too few for the adjoint of logits in parts.
    """
    _, images, classes = u.shape
    largest = 4096 // u.dtype.itemsize
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


def _which(labels: Tensor, labels_are: str) -> dict[str, bool]:
    soft = labels.is_floating_point()
    return {"HARD": not soft, "PROBABILITIES": soft and labels_are == "probabilities"}


def _loss_call(
    gud: Tensor, u: Tensor, labels: Tensor, label_stride: int, batch: int, labels_are: str = "logits"
) -> tuple[Tensor, Tensor | None, Call]:
    parts, trajectories, images, classes = u.shape
    count, options = _shape(u[0])
    losses, partial = _sums(u[0], count)
    target = losses if partial is None else partial
    call = Call(
        _loss_kernel,
        (count, trajectories),
        (target, gud, u, labels, images, classes, batch, u[0].numel(), label_stride),
        moved(target, gud, u, labels),
        {"PARTS": parts, **_which(labels, labels_are), "ONE_TILE": partial is None, **options},
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
    labels_are: str = "logits",
) -> tuple[Tensor, Tensor | None, Call]:
    parts, trajectories, images, classes = u.shape
    count, options = _shape(u[0])
    phi, partial = _sums(u[0], count)
    target = phi if partial is None else partial
    each = 1 if gy is None or label_stride else trajectories
    call = Call(
        _adjoint_kernel,
        (count, trajectories // each),
        (target, gu, gud, gy, u, ud, labels, trajectories, images, classes, batch, u[0].numel(), label_stride, each),
        moved(target, gu, gud, u, ud, labels, *(() if gy is None else (gy,))),
        {
            "PARTS": parts,
            **_which(labels, labels_are),
            "OF_LABELS": gy is not None,
            "ONE_TILE": partial is None,
            **options,
        },
    )
    return phi, partial, call


def production() -> list[Production]:
    """Logits of several batches and numbers of classes, in the parts that the classifier leaves them in."""
    items = []
    cases = ((10, 10, 8), (100, 10, 8), (1000, 10, 8), (100, 100, 8), (200, 200, 8), (10, 1000, 8), (10, 10000, 1))
    for batch, classes, parts in cases:
        name = f"{classes} classes, batch {batch}"
        u = torch.empty(parts, 1, batch, classes, device="meta")
        gu, soft = u[0], u[0, 0]
        hard = torch.empty(batch, dtype=torch.int64, device="meta")
        losses, partial, call = _loss_call(gu, u, soft, 0, batch)
        items.append(call.production(f"soft labels, {name}"))
        items.append(_adjoint_call(gu, gu, soft, u, u, soft, 0, batch)[2].production(f"soft labels, {name}"))
        if batch in (100, 1000) and classes == 10:
            items.append(_loss_call(gu, u, hard, 0, batch)[2].production(f"hard labels, {name}"))
            items.append(_adjoint_call(gu, gu, None, u, u, hard, 0, batch)[2].production(f"hard labels, {name}"))
            four = torch.empty(parts, 4, batch, classes, device="meta")
            call = _adjoint_call(four[0], four[0], soft, four, four, soft, 0, batch)[2]
            items.append(call.production(f"soft labels, 4 trajectories, {name}"))
            if partial is not None:
                items.append(finish(losses, partial, batch).production(name))
    u = torch.empty(4, 2, 100, 10, dtype=torch.float64, device="meta")
    for call in (_loss_call(u[0], u, u[0, 0], 0, 100)[2], _adjoint_call(u[0], u[0], u[0, 0], u, u, u[0, 0], 0, 100)[2]):
        items.append(call.production("float64, 2 trajectories, soft labels, 10 classes, batch 100", hot=False))
    further: list[Production] = []
    for sizes in EVERY:
        f = torch.empty(sizes.trajectories, sizes.batch, 4, 4, WIDTH, device="meta")
        u = f.new_empty(parts_of(f, sizes.classes, sizes.precision), *f.shape[:2], sizes.classes)
        labels = u.new_empty(u.shape[1:3], dtype=torch.int64) if sizes.hard else u[0]
        labels = labels if sizes.training else labels[0]  # trajectories share theirs
        stride = labels[0].numel() if sizes.training else 0
        losses, partial, call = _loss_call(u[0], u, labels, stride, sizes.batch)
        calls = [call]
        if partial is not None:
            calls.append(finish(losses, partial, sizes.batch))
        if not sizes.training:
            calls.append(_adjoint_call(u[0], u[0], labels, u, u, labels, stride, sizes.batch)[2])
        further += [call.production(sizes.name, targets=NEWEST) for call in calls]
    return with_further(items, further)


def naive_target(labels: Tensor, u: Tensor, labels_are: str = "logits") -> Tensor:
    """Labels q `[K or 1, B, classes]` as they count; NaN in the whole row where a class does not exist."""
    if labels.is_floating_point():
        q = labels.softmax(-1) if labels_are == "logits" else labels
        return q if q.dim() == 3 else q[None]
    hard = labels if labels.dim() == 2 else labels[None]
    q = (hard[..., None] == torch.arange(u.shape[-1], device=u.device)).to(u.dtype)
    return q.masked_fill(((hard < 0) | (hard >= u.shape[-1]))[..., None], math.nan)


def naive_loss(u: Tensor, labels: Tensor, batch: int, *, labels_are: str = "logits") -> tuple[Tensor, Tensor]:
    """Twin of :func:`loss`."""
    u = u.sum(0) if u.dim() == 4 else u
    q = naive_target(labels, u, labels_are)
    terms = torch.where(q == 0, 0, -q * u.log_softmax(-1))
    return terms.sum((1, 2)) / batch, (u.softmax(-1) * _naive_totals(labels, q, labels_are) - q) / batch


def _naive_totals(labels: Tensor, q: Tensor, labels_are: str) -> Tensor | float:
    return q.sum(-1, keepdim=True) if labels.is_floating_point() and labels_are == "probabilities" else 1.0


def naive_adjoint(
    u: Tensor, ud: Tensor, labels: Tensor, batch: int, *, labels_are: str = "logits", wants_labels: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Twin of :func:`adjoint`."""
    u, ud = (x.sum(0) if x.dim() == 4 else x for x in (u, ud))
    p, q = u.softmax(-1), naive_target(labels, u, labels_are)
    mean_p, total = (p * ud).sum(-1, keepdim=True), _naive_totals(labels, q, labels_are)
    gud = (p * total - q) / batch
    gu = p * total * (ud - mean_p) / batch
    gy = None
    if labels.is_floating_point() and wants_labels:  # [K, B, classes]
        gy = (-q * (ud - (q * ud).sum(-1, keepdim=True)) if labels_are == "logits" else mean_p - ud) / batch
        gy = gy if labels.dim() == 3 else gy.sum(0)
    return (gud * ud).sum((1, 2)), gu, gud, gy
