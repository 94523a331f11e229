"""The linear classifier: logits of features, their tangent, and the pull-back through both.

Equation numbers are those of docs/cpu_engine.md. Features are channels-last `[K, B, h, w, C]`; the classifier lies in
the flat vector as torch has it, `[classes, C, h, w]` and then its bias `[classes]`, and is read and written there.

A small batch has few logits, each a long sum, so that the sums are cut into parts and whoever reads logits adds the
parts up (`[parts, K, B, classes]`, see :mod:`.head`): one launch less than adding them here. Products are exact to
float32 in every precision, as torch's are: with "tf32" and "bf16" the matrix units take float32 in three parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError
from .calls import Call, moved, with_further
from .launch import PRECISIONS, Cost
from .published import EVERY, NEWEST, WIDTH
from .row_tiles import row_stride

if TYPE_CHECKING:
    from .aot import Production

MOST_PARTS = 8
"""Of a sum over features: readers add them up one after the other."""

_PROGRAMS = 128
"""Programs that occupy a large GPU, about one for each of its processors."""


@triton.jit
@no_type_check
def _product(a, b, acc, PRECISION: tl.constexpr):
    """`acc` plus the matrix product of the two."""
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
@no_type_check
def _weights(p_w, label, r, classes, FEATURES: tl.constexpr):
    """Weights of two broadcast index blocks, in torch's order of features."""
    return tl.load(p_w + label * FEATURES + r, mask=(label < classes) & (r < FEATURES), other=0.0)


@triton.jit
@no_type_check
def _features(p_f, image, r, images, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """Features of two broadcast index blocks: torch counts pixels first, channels-last memory channels."""
    inside = (image < images) & (r < CHANNELS * PIXELS)
    return tl.load(p_f + image * (CHANNELS * PIXELS) + r % PIXELS * CHANNELS + r // PIXELS, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["images", "offset"])
@no_type_check
def _logits_kernel(
    p_u,  # [parts, K, B, classes]
    p_ud,  # the same, written when DUAL
    p_f,  # [K, B, PIXELS, CHANNELS]
    p_fd,  # read when DUAL
    p_theta,  # [K, P]
    p_v,  # read when DUAL
    offset,
    theta_stride,
    v_stride,
    images,
    classes,
    span,  # features of one part
    DUAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, k, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    FEATURES: tl.constexpr = CHANNELS * PIXELS
    across = tl.cdiv(classes, BN)
    image = tile // across * BM + tl.arange(0, BM)
    label = tile % across * BN + tl.arange(0, BN)
    p_theta += k * theta_stride + offset
    p_v += k * v_stride + offset
    p_f += k * images * FEATURES
    p_fd += k * images * FEATURES
    u = tl.zeros([BM, BN], p_f.dtype.element_ty)
    ud = tl.zeros([BM, BN], p_f.dtype.element_ty)
    for start in range(0, span, BR):
        r = part * span + start + tl.arange(0, BR)
        f = _features(p_f, image[:, None], r[None, :], images, CHANNELS, PIXELS)
        w = _weights(p_theta, label[None, :], r[:, None], classes, FEATURES)
        u = _product(f, w, u, PRECISION)
        if DUAL:
            ud = _product(f, _weights(p_v, label[None, :], r[:, None], classes, FEATURES), ud, PRECISION)
            ud = _product(_features(p_fd, image[:, None], r[None, :], images, CHANNELS, PIXELS), w, ud, PRECISION)
    m_bias = (label < classes) & (part == 0)
    o = ((part * tl.num_programs(1) + k) * images + image[:, None]) * classes + label[None, :]
    inside = (image < images)[:, None] & (label < classes)[None, :]
    bias = tl.load(p_theta + classes * FEATURES + label, mask=m_bias, other=0.0)
    tl.store(p_u + o, u + bias[None, :], mask=inside)
    if DUAL:
        bias_v = tl.load(p_v + classes * FEATURES + label, mask=m_bias, other=0.0)
        tl.store(p_ud + o, ud + bias_v[None, :], mask=inside)


@triton.jit
@no_type_check
def _weight_gradients(
    p_out,  # of one trajectory, at the classifier, as all the pointers here
    p_gu,
    p_gud,
    p_f,
    p_fd,
    tile,
    images,
    classes,
    DUAL: tl.constexpr,
    ADD: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of weights summed over images; those of the first features also sum the bias."""
    FEATURES: tl.constexpr = CHANNELS * PIXELS
    across = tl.cdiv(FEATURES, BR)
    label = tile // across * BN + tl.arange(0, BN)
    r = tile % across * BR + tl.arange(0, BR)
    gw = tl.zeros([BN, BR], p_f.dtype.element_ty)
    sums = tl.zeros([BN], tl.float64)
    for start in range(0, images, BM):
        image = start + tl.arange(0, BM)
        o = image[None, :] * classes + label[:, None]
        inside = (image < images)[None, :] & (label < classes)[:, None]
        gu = tl.load(p_gu + o, mask=inside, other=0.0)
        sums += tl.sum(gu.to(tl.float64), 1)
        gw = _product(gu, _features(p_f, image[:, None], r[None, :], images, CHANNELS, PIXELS), gw, PRECISION)
        if DUAL:
            gud = tl.load(p_gud + o, mask=inside, other=0.0)
            gw = _product(gud, _features(p_fd, image[:, None], r[None, :], images, CHANNELS, PIXELS), gw, PRECISION)
    bias = sums.to(p_f.dtype.element_ty)
    p_weights = p_out + label[:, None] * FEATURES + r[None, :]
    p_bias = p_out + classes * FEATURES + label
    m_weights = (label < classes)[:, None] & (r < FEATURES)[None, :]
    m_bias = (label < classes) & (tile % across == 0)
    if ADD:
        gw += tl.load(p_weights, mask=m_weights, other=0.0)
        bias += tl.load(p_bias, mask=m_bias, other=0.0)
    tl.store(p_weights, gw, mask=m_weights)
    tl.store(p_bias, bias, mask=m_bias)


@triton.jit
@no_type_check
def _feature_gradients(
    p_gf,  # of one trajectory, as all the pointers here
    p_gfd,
    p_gu,
    p_gud,
    p_theta,  # at the classifier
    p_v,  # at the classifier
    tile,
    images,
    classes,
    DUAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of features' gradients summed over classes."""
    FEATURES: tl.constexpr = CHANNELS * PIXELS
    across = tl.cdiv(FEATURES, BR)
    image = tile // across * BM + tl.arange(0, BM)
    r = tile % across * BR + tl.arange(0, BR)
    gf = tl.zeros([BM, BR], p_gf.dtype.element_ty)
    gfd = tl.zeros([BM, BR], p_gf.dtype.element_ty)
    for start in range(0, classes, BN):
        label = start + tl.arange(0, BN)
        o = image[:, None] * classes + label[None, :]
        inside = (image < images)[:, None] & (label < classes)[None, :]
        gu = tl.load(p_gu + o, mask=inside, other=0.0)
        w = _weights(p_theta, label[:, None], r[None, :], classes, FEATURES)
        gf = _product(gu, w, gf, PRECISION)
        if DUAL:
            gud = tl.load(p_gud + o, mask=inside, other=0.0)
            gf = _product(gud, _weights(p_v, label[:, None], r[None, :], classes, FEATURES), gf, PRECISION)
            gfd = _product(gud, w, gfd, PRECISION)
    o_f = image[:, None] * FEATURES + (r % PIXELS * CHANNELS + r // PIXELS)[None, :]
    m_f = (image < images)[:, None] & (r < FEATURES)[None, :]
    tl.store(p_gf + o_f, gf, mask=m_f)
    if DUAL:
        tl.store(p_gfd + o_f, gfd, mask=m_f)


@triton.jit(do_not_specialize=["images", "offset", "weight_programs"])
@no_type_check
def _gradients_kernel(
    p_out,  # [K, P]: weights and bias at `offset`
    p_gf,  # [K, B, PIXELS, CHANNELS]
    p_gfd,  # the same, written when DUAL
    p_gu,  # [K, B, classes]
    p_gud,  # read when DUAL
    p_f,  # [K, B, PIXELS, CHANNELS]
    p_fd,  # read when DUAL
    p_theta,  # [K, P]
    p_v,  # read when DUAL
    offset,
    out_stride,
    theta_stride,
    v_stride,
    images,
    classes,
    weight_programs,  # so many programs write weights, the others features
    DUAL: tl.constexpr,
    ADD: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_f = k * images * (CHANNELS * PIXELS)
    p_gu += k * images * classes
    p_gud += k * images * classes
    if program < weight_programs:
        _weight_gradients(
            p_out + k * out_stride + offset, p_gu, p_gud, p_f + o_f, p_fd + o_f, program, images, classes,
            DUAL, ADD, CHANNELS, PIXELS, BM, BN, BR, PRECISION,
        )  # fmt: skip
    else:
        _feature_gradients(
            p_gf + o_f, p_gfd + o_f, p_gu, p_gud, p_theta + k * theta_stride + offset, p_v + k * v_stride + offset,
            program - weight_programs, images, classes,
            DUAL, CHANNELS, PIXELS, BM, BN, BR, PRECISION,
        )  # fmt: skip


def logits(f: Tensor, theta: Tensor, offset: int, classes: int, *, precision: str) -> Tensor:
    """`u = C f + c` (24).

    Args:
        f: features `[K, B, h, w, C]`, contiguous.
        theta: flat parameters `[K, P]`, the classifier from column `offset` on.
        precision: "tf32", "bf16" or "ieee" (float64: "ieee").

    Returns:
        `[parts, K, B, classes]`, to be added up.

    Raises:
        InputError: tensors that do not fit.
    """
    parts = parts_of(f, classes, precision)
    u = torch.empty(parts, *f.shape[:2], classes, dtype=f.dtype, device=f.device)
    _logits_call(u, None, f, None, theta, None, offset, precision).run()
    return u


def tangent_logits(
    f: Tensor, fd: Tensor, theta: Tensor, v: Tensor, offset: int, classes: int, *, precision: str
) -> tuple[Tensor, Tensor]:
    """`u = C f + c` and `ud = C fd + Vc f + vc` (24), each `[parts, K, B, classes]`, to be added up.

    Args:
        f, fd: features and their tangent, `[K, B, h, w, C]`, contiguous.
        theta, v, offset, precision: parameters and direction `[K, P]`; see :func:`logits`.

    Raises:
        InputError: tensors that do not fit.
    """
    parts = parts_of(f, classes, precision)
    u, ud = (torch.empty(parts, *f.shape[:2], classes, dtype=f.dtype, device=f.device) for _ in range(2))
    _logits_call(u, ud, f, fd, theta, v, offset, precision).run()
    return u, ud


def backward(
    gud: Tensor, f: Tensor, theta: Tensor, out: Tensor, offset: int, *, precision: str, accumulate: bool = False
) -> Tensor:
    """The plain step's `C' = ud' (x) f` and `c' = sum ud'`, and the features' gradient `C^T ud'`.

    Args:
        gud: `[K, B, classes]`, contiguous.
        f, theta, offset, precision: see :func:`logits`.
        out: `[K, P]`, rows of adjacent entries; receives C' and c' at `offset`, in torch's order.
        accumulate: add to what `out` holds.

    Returns:
        `f'` `[K, B, h, w, C]`.

    Raises:
        InputError: tensors that do not fit.
    """
    gf = torch.empty_like(f)
    _gradients_call(out, gf, None, gud, None, f, None, theta, None, offset, precision, accumulate).run()
    return gf


def backward_dual(
    gu: Tensor,
    gud: Tensor,
    f: Tensor,
    fd: Tensor,
    theta: Tensor,
    v: Tensor,
    out: Tensor | None,
    offset: int,
    *,
    precision: str,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """`C' = u' (x) f + ud' (x) fd` and `c' = sum u'`; `f' = C^T u' + Vc^T ud'` and `fd' = C^T ud'` (27).

    Args:
        gu, gud: `[K, B, classes]`, contiguous.
        f, fd, theta, v, offset, precision: see :func:`tangent_logits`.
        out, accumulate: see :func:`backward`; without `out` only features are pulled back.

    Returns:
        `f'` and `fd'`, each `[K, B, h, w, C]`.

    Raises:
        InputError: tensors that do not fit.
    """
    gf, gfd = torch.empty_like(f), torch.empty_like(f)
    _gradients_call(out, gf, gfd, gu, gud, f, fd, theta, v, offset, precision, accumulate).run()
    return gf, gfd


# Which tiles: functions of the shapes alone, so that what is compiled ahead of time is what runs.


def _tiles(f: Tensor, precision: str, block: int) -> dict[str, Any]:
    """Block sizes, `block` of features, and the constants that every kernel takes.

    Small ones: float32 in three parts fills registers.
    """
    return {
        "CHANNELS": f.shape[-1],
        "PIXELS": f.shape[-2] * f.shape[-3],
        "BM": 32,
        "BN": 16,
        "BR": block if precision != "ieee" else 32,
        "PRECISION": "ieee" if precision == "ieee" else "tf32x3",
        "num_warps": 4,
        "num_stages": 2,
    }


def parts_of(f: Tensor, classes: int, precision: str) -> int:
    """Parts of a sum over features: enough programs, and at least one block of features each."""
    options, features = _tiles(f, precision, 32), f[0, 0].numel()
    tiles = len(f) * -(-f.shape[1] // options["BM"]) * -(-classes // options["BN"])
    blocks = -(-features // options["BR"])
    each = -(-blocks // max(1, min(MOST_PARTS, _PROGRAMS // tiles, blocks)))
    return -(-blocks // each)


def _logits_call(
    u: Tensor,
    ud: Tensor | None,
    f: Tensor,
    fd: Tensor | None,
    theta: Tensor,
    v: Tensor | None,
    offset: int,
    precision: str,
) -> Call:
    parts, trajectories, images, classes = u.shape
    used = _checked(f, theta, offset, classes, precision, features=(fd,), flat=(v,))
    options = _tiles(f, precision, 32)
    features, dual = f[0, 0].numel(), ud is not None
    blocks = -(-features // options["BR"])
    written, read = (u, ud) if ud is not None else (u,), (f, fd) if fd is not None else (f,)
    tiles = -(-images // options["BM"]) * -(-classes // options["BN"])
    products = 3 if dual else 1
    return Call(
        _logits_kernel,
        (tiles, trajectories, parts),
        (
            u,
            u if ud is None else ud,
            f,
            f if fd is None else fd,
            theta,
            theta if v is None else v,
            offset,
            row_stride(theta),
            row_stride(theta if v is None else v),
            images,
            classes,
            -(-blocks // parts) * options["BR"],
        ),
        Cost(
            moved(*written, *read).bytes + (1 + dual) * used, 2 * products * trajectories * images * classes * features
        ),
        {"DUAL": dual, **options},
    )


def _gradients_call(
    out: Tensor | None,
    gf: Tensor,
    gfd: Tensor | None,
    gu: Tensor,
    gud: Tensor | None,
    f: Tensor,
    fd: Tensor | None,
    theta: Tensor,
    v: Tensor | None,
    offset: int,
    precision: str,
    accumulate: bool,
) -> Call:
    trajectories, images, classes = gu.shape
    used = _checked(f, theta, offset, classes, precision, features=(fd,), flat=(v, out), logits=(gu, gud))
    options = _tiles(f, precision, 64)
    features, dual = f[0, 0].numel(), gfd is not None
    across = -(-features // options["BR"])
    weight_programs = 0 if out is None else across * -(-classes // options["BN"])
    feature_programs = across * -(-images // options["BM"])
    tensors = [x for x in (gf, gfd, gu, gud, f, fd) if x is not None]
    vectors = 1 + dual + (out is not None) * (1 + accumulate)
    products = (3 if dual else 1) + (out is not None) * (1 + dual)
    return Call(
        _gradients_kernel,
        (weight_programs + feature_programs, trajectories),
        (
            gf if out is None else out,
            gf,
            gf if gfd is None else gfd,
            gu,
            gu if gud is None else gud,
            f,
            f if fd is None else fd,
            theta,
            theta if v is None else v,
            offset,
            0 if out is None else row_stride(out),
            row_stride(theta),
            row_stride(theta if v is None else v),
            images,
            classes,
            weight_programs,
        ),
        Cost(moved(*tensors).bytes + vectors * used, 2 * products * trajectories * images * classes * features),
        {"DUAL": dual, "ADD": accumulate, **options},
    )


def _checked(
    f: Tensor,
    theta: Tensor,
    offset: int,
    classes: int,
    precision: str,
    *,
    features: Sequence[Tensor | None] = (),
    flat: Sequence[Tensor | None] = (),
    logits: Sequence[Tensor | None] = (),
) -> int:
    """Bytes of one classifier of every trajectory; kernels read raw memory, so everything about it is checked here."""
    if precision not in PRECISIONS or (f.dtype == torch.float64 and precision != "ieee"):
        raise InputError(f"precision is {precision!r} for {f.dtype}; use one of {PRECISIONS}, for float64 'ieee'")
    for x, shape in [(f, f.shape), *((x, f.shape) for x in features), *((x, (*f.shape[:2], classes)) for x in logits)]:
        if x is None:
            continue
        if x.shape != shape or x.dtype != f.dtype or x.device != f.device or not x.is_contiguous():
            raise InputError(
                f"features [K, B, h, w, C] and gradients of their logits are contiguous and alike; got "
                f"{x.dtype} {list(x.shape)} with strides {x.stride()} for {f.dtype} {list(shape)} on {f.device}"
            )
    count = classes * (f[0, 0].numel() + 1)
    for vector in (theta, *flat):
        if vector is None:
            continue
        fits = vector.dim() == 2 and len(vector) == len(f) and vector.stride(1) == 1
        if not fits or vector.shape[1] < offset + count or vector.dtype != f.dtype or vector.device != f.device:
            raise InputError(
                f"flat vectors are [{len(f)}, at least {offset + count}] of {f.dtype} on {f.device} with adjacent "
                f"entries; got {vector.dtype} {list(vector.shape)} with strides {vector.stride()} on {vector.device}"
            )
    return len(f) * count * f.element_size()


def production() -> list[Production]:
    """The classifier of a ConvNet whose last map is 4 x 4 x 128, at several batches and numbers of classes."""
    items = []
    cases = [(10, 10, "tf32"), (1000, 10, "tf32"), (500, 200, "tf32"), (100, 10, "ieee"), (100, 10, "float64")]
    for batch, classes, numbers in cases:
        double = numbers == "float64"
        precision, dtype = ("ieee", torch.float64) if double else (numbers, torch.float32)
        f = torch.empty(1, batch, 4, 4, 128, dtype=dtype, device="meta")
        offset = 240_000
        theta = torch.empty(1, offset + classes * 2049, dtype=dtype, device="meta")
        u = torch.empty(parts_of(f, classes, precision), 1, batch, classes, dtype=dtype, device="meta")
        gu = u[0]
        calls = {
            "logits": _logits_call(u, None, f, None, theta, None, offset, precision),
            "logits and tangent": _logits_call(u, u, f, f, theta, theta, offset, precision),
        }
        for accumulate in (False, True)[: 2 if batch == 1000 else 1]:
            add = ", added" * accumulate
            plain = (theta, f, None, gu, None, f, None, theta, None, offset, precision, accumulate)
            dual = (theta, f, f, gu, gu, f, f, theta, theta, offset, precision, accumulate)
            calls[f"backward{add}"] = _gradients_call(*plain)
            calls[f"backward of both{add}"] = _gradients_call(*dual)
        name, shown = f"{classes} classes, batch {batch}", "tf32x3" if numbers == "tf32" else numbers
        items += [call.production(f"{title}, {name}", hot=not double, precision=shown) for title, call in calls.items()]
    further: list[Production] = []
    for sizes in EVERY:
        f = torch.empty(sizes.trajectories, sizes.batch, 4, 4, WIDTH, device="meta")
        theta = f.new_empty(sizes.trajectories, sizes.parameters)
        where = (sizes.classifier, sizes.precision)
        u = f.new_empty(parts_of(f, sizes.classes, sizes.precision), *f.shape[:2], sizes.classes)
        calls = {
            "logits": _logits_call(u, None, f, None, theta, None, *where),
            "backward": _gradients_call(theta, f, None, u[0], None, f, None, theta, None, *where, False),
        }
        if not sizes.training:
            both = (f, f, u[0], u[0], f, f, theta, theta, *where, False)
            calls["logits and tangent"] = _logits_call(u, u, f, f, theta, theta, *where)
            calls["backward of both"] = _gradients_call(theta, *both)
            calls["backward of both, features alone"] = _gradients_call(None, *both)
        shown = "ieee" if sizes.precision == "ieee" else "tf32x3"
        further += [
            call.production(f"{title}, {sizes.name}", precision=shown, targets=NEWEST) for title, call in calls.items()
        ]
    return with_further(items, further)


def naive_logits(f: Tensor, theta: Tensor, offset: int, classes: int, *, precision: str) -> Tensor:
    """Twin of :func:`logits`, in one part."""
    w, bias = _classifier(theta, offset, classes, f)
    return (f.flatten(2) @ w.mT + bias[:, None])[None]


def naive_tangent_logits(
    f: Tensor, fd: Tensor, theta: Tensor, v: Tensor, offset: int, classes: int, *, precision: str
) -> tuple[Tensor, Tensor]:
    """Twin of :func:`tangent_logits`, in one part."""
    w, _ = _classifier(theta, offset, classes, f)
    along_v = naive_logits(f, v, offset, classes, precision=precision)
    return naive_logits(f, theta, offset, classes, precision=precision), fd.flatten(2) @ w.mT + along_v


def naive_backward(
    gud: Tensor, f: Tensor, theta: Tensor, out: Tensor, offset: int, *, precision: str, accumulate: bool = False
) -> Tensor:
    """Twin of :func:`backward`."""
    w, _ = _classifier(theta, offset, gud.shape[2], f)
    _naive_store(gud.mT @ f.flatten(2), gud.sum(1), f, out, offset, accumulate)
    return (gud @ w).view(f.shape)


def naive_backward_dual(
    gu: Tensor,
    gud: Tensor,
    f: Tensor,
    fd: Tensor,
    theta: Tensor,
    v: Tensor,
    out: Tensor | None,
    offset: int,
    *,
    precision: str,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Twin of :func:`backward_dual`."""
    (w, _), (direction, _) = (_classifier(x, offset, gu.shape[2], f) for x in (theta, v))
    if out is not None:
        product = gu.mT @ f.flatten(2) + gud.mT @ fd.flatten(2)
        _naive_store(product, gu.sum(1), f, out, offset, accumulate)
    return (gu @ w + gud @ direction).view(f.shape), (gud @ w).view(f.shape)


def _classifier(theta: Tensor, offset: int, classes: int, f: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[K, classes, h * w * C]` in the order of the features, and bias `[K, classes]`."""
    pixels, channels = f.shape[2] * f.shape[3], f.shape[4]
    end = offset + classes * pixels * channels
    weights = theta[:, offset:end].reshape(len(theta), classes, channels, pixels)
    return weights.transpose(2, 3).reshape(len(theta), classes, -1), theta[:, end : end + classes]


def _naive_store(weights: Tensor, bias: Tensor, f: Tensor, out: Tensor, offset: int, accumulate: bool) -> None:
    in_order = weights.unflatten(2, (-1, f.shape[-1])).transpose(2, 3).flatten(1)  # [K, classes * C * h * w]
    value = torch.cat([in_order, bias], 1)
    piece = out[:, offset : offset + value.shape[1]]
    piece.copy_(piece + value if accumulate else value)
