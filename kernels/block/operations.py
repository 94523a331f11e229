"""Instance norm, ReLU and 2x2 average pooling in one kernel per direction: forward, tangent, backward and adjoint.

Activations are channels-last `[K, B, H, W, C]`: K trajectories with parameters of their own, B images. A plane is one
(trajectory, image, channel); an odd last row or column is left out by the pooling but counts in the statistics.
Equation numbers are those of docs/cpu_engine.md.

A program has all pixels of one image and a few channels, as tiles `[4, windows, channels]` of pooling windows with the
four pixels of each: pooling is a sum over the first axis, which lies within a thread. Planes of up to 32x32 pixels are
read once and kept in registers; larger ones are read twice, and their blocks' statistics are merged (Chan).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import InputError
from ..launch import Cost, launch

if TYPE_CHECKING:
    from ..aot import Production

EPS = 1e-5
"""Added to the variance of a plane (eq. 2)."""


def forward(z: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise, rectify and pool.

    Args:
        z: `[K, B, H, W, C]`, contiguous, float32 or float64.
        g, b: weight and bias of the norm, `[K, C]` with any row stride.

    Returns:
        o `[K, B, H // 2, W // 2, C]`, and the planes' mean and `r = (var + eps)^-1/2` as `[K, B, 2, C]`.

    Raises:
        InputError: a tensor's shape, dtype or layout is not as said.
    """
    K, B, H, W, C = _shape(z, g, b)
    o, stats = z.new_empty(K, B, H // 2, W // 2, C), z.new_empty(K, B, 2, C)
    grid, options = _configuration(z.shape, z.dtype, maps=1)
    cost = Cost(_bytes(z, o, stats), 12 * z.numel())
    _launch(_forward_kernel, grid, o, stats, z, g, b, g.stride(0), b.stride(0), B, cost=cost, EPS=EPS, **options)
    return o, stats


def tangent(z: Tensor, zd: Tensor, g: Tensor, b: Tensor, gd: Tensor, bd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass and its tangent along `(zd, gd, bd)`.

    Returns:
        o and od `[K, B, H // 2, W // 2, C]`, and per plane the mean, r, the mean of zd, and `s = mean(n zd)` as
        `[K, B, 4, C]`.

    Raises:
        InputError: a tensor's shape, dtype or layout is not as said for :func:`forward`.
    """
    K, B, H, W, C = _shape(z, g, b, gd, bd, like=(zd,))
    o, stats = z.new_empty(K, B, H // 2, W // 2, C), z.new_empty(K, B, 4, C)
    od = torch.empty_like(o)
    grid, options = _configuration(z.shape, z.dtype, maps=2)
    cost = Cost(_bytes(z, zd, o, od, stats), 25 * z.numel())
    strides = (g.stride(0), b.stride(0), gd.stride(0), bd.stride(0))
    _launch(_tangent_kernel, grid, o, od, stats, z, zd, g, b, gd, bd, *strides, B, cost=cost, EPS=EPS, **options)
    return o, od, stats


def backward(
    z: Tensor,
    stats: Tensor,
    g: Tensor,
    b: Tensor,
    god: Tensor,
    out: Tensor,
    g_offset: int,
    b_offset: int,
    *,
    accumulate: bool = False,
) -> Tensor:
    """Pull the gradient of o back to z and, summed over the images, to g and b.

    Args:
        stats: of :func:`forward` or :func:`tangent`.
        god: gradient of o, `[K, B, H // 2, W // 2, C]`, contiguous.
        out: flat gradients `[K, P]`; those of g and b are written at the offsets.
        accumulate: add to `out` instead.

    Returns:
        The gradient of z.

    Raises:
        InputError: a tensor's shape, dtype or layout is not as said here and for :func:`forward`.
    """
    K, B, H, W, C = _shape(z, g, b, pooled=(god,), stats=stats, out=out)
    gzd, sums = torch.empty_like(z), z.new_empty(K, B, 2, C)
    grid, options = _configuration(z.shape, z.dtype, maps=2)
    cost = Cost(_bytes(z, gzd, god, stats, sums), 12 * z.numel())
    strides = (g.stride(0), b.stride(0))
    _launch(
        _backward_kernel, grid, gzd, sums, z, stats, g, b, god, *strides, B, cost=cost, ROWS=stats.shape[2], **options
    )
    sum_images(sums, out, (g_offset, C), (b_offset, C), accumulate=accumulate)
    return gzd


def adjoint(
    z: Tensor,
    zd: Tensor,
    stats: Tensor,
    g: Tensor,
    b: Tensor,
    gd: Tensor,
    bd: Tensor,
    go: Tensor,
    god: Tensor,
    out: Tensor,
    g_offset: int,
    b_offset: int,
    *,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pull gradients of (o, od) of :func:`tangent` back to (z, zd) and, summed over the images, to g and b.

    The gradients of gd and bd are those of g and b in :func:`backward`, and are not written.

    Args:
        stats: of :func:`tangent`.
        go, god: gradients of o and od, `[K, B, H // 2, W // 2, C]`, contiguous.
        out: flat gradients `[K, P]`; those of g and b are written at the offsets.
        accumulate: add to `out` instead.

    Returns:
        The gradients of z and zd. The latter is the plain step's gradient of z when `god` is its gradient of o.

    Raises:
        InputError: a tensor's shape, dtype or layout is not as said here and for :func:`forward`.
    """
    K, B, H, W, C = _shape(z, g, b, gd, bd, like=(zd,), pooled=(go, god), stats=stats, rows=4, out=out)
    gz, gzd, sums = torch.empty_like(z), torch.empty_like(z), z.new_empty(K, B, 2, C)
    grid, options = _configuration(z.shape, z.dtype, maps=4)
    cost = Cost(_bytes(z, zd, gz, gzd, go, god, stats, sums), 30 * z.numel())
    strides = (g.stride(0), b.stride(0), gd.stride(0))
    _launch(_adjoint_kernel, grid, gz, gzd, sums, z, zd, stats, g, b, gd, go, god, *strides, B, cost=cost, **options)
    sum_images(sums, out, (g_offset, C), (b_offset, C), accumulate=accumulate)
    return gz, gzd


def sum_images(parts: Tensor, out: Tensor, *columns: tuple[int, int], accumulate: bool = False) -> None:
    """Add up the images' gradients, the second of two stages: no atomics, so that a sum is the same in every run.

    Args:
        parts: `[K, B, ...]`, contiguous; the rest is cut into up to three pieces.
        out: flat gradients `[K, P]`.
        columns: (offset in `out`, length) of the pieces, in order.
        accumulate: add to `out` instead of assigning.
    """
    K, B = parts.shape[:2]
    pieces = (*columns, (0, 0), (0, 0))[:3]
    offsets, lengths = zip(*pieces, strict=True)
    total = sum(lengths)
    cost = Cost(_bytes(parts) + K * total * parts.element_size() * (2 if accumulate else 1), parts.numel())
    options = {"N0": lengths[0], "N1": lengths[1], "N2": lengths[2], "ACCUMULATE": accumulate}
    grid, tiles = _sum_configuration(K, B, total)
    _launch(_sum_images_kernel, grid, out, parts, out.stride(0), *offsets, B, cost=cost, **options, **tiles)


# Which tiles: a function of the shapes alone, so that what is compiled ahead of time is what runs.

_VALUES = {torch.float32: 8192, torch.float64: 4096}
"""Most values of one map in one program; two maps of 16x16 pixels and 32 channels are 64 registers of 256 threads."""
_PROGRAMS = 256
"""Programs that occupy a large GPU, about two for each of its processors."""


def _configuration(
    shape: torch.Size | tuple[int, ...], dtype: torch.dtype, *, maps: int
) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and constants for maps of this shape `[K, B, H, W, C]`, `maps` of which stay in registers."""
    K, B, H, W, C = shape
    windows = triton.next_power_of_2(((H + 1) // 2) * ((W + 1) // 2))
    values = _VALUES[dtype]
    if 32 * windows > values:  # 8 channels of the whole plane do not fit: blocks of windows in turn
        windows = values // (4 * 32)
    # With four maps, half as many values leave room for a second program, whose loads overlap the first one's stores.
    values = values if maps < 4 else values // 2
    channels = max(8, min(32, values // (4 * windows), triton.next_power_of_2(C)))
    while channels > 8 and K * B * triton.cdiv(C, channels) < _PROGRAMS:
        channels //= 2
    warps = 4 * windows * channels * dtype.itemsize // (32 * 64)  # 64 bytes of each map per thread ...
    warps = min(8 if maps < 4 else 16, max(1, warps))  # ... or 128, where that takes too many threads
    constants = {"H": H, "W": W, "C": C, "BW": windows, "BC": channels, "num_warps": warps}
    return (K * B * triton.cdiv(C, channels),), constants


def _sum_configuration(K: int, B: int, total: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and constants of the second stage for B rows of `total` columns."""
    rows = min(128, triton.next_power_of_2(B))
    return (triton.cdiv(total, 32), K), {"BR": rows, "BL": 32, "num_warps": 4}


_recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] | None = None
_target: int | None = None


def capability(device: torch.device) -> int:
    """Compute capability that tiles are chosen for, ten times the usual number; 90 where there is no GPU."""
    if _target is not None or device.type != "cuda":
        return _target or 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """:func:`launch`, or inside :func:`recorded` a note of what it would be given."""
    if _recorded is None:
        launch(kernel, grid, *args, **options)
    else:
        _recorded.append((kernel, args, options))


@contextmanager
def recorded(name: str, precision: str = "ieee", target: int | None = None) -> Iterator[list[Production]]:
    """Collect what is launched inside as productions, for one compute capability or for all; tensors are on "meta"."""
    from ..aot import TARGETS, production_of

    global _recorded, _target
    found: list[Production] = []
    _recorded, _target = [], target
    try:
        yield found
        for kernel, args, options in _recorded:
            wide = not any(isinstance(value, Tensor) and value.dtype == torch.float32 for value in args)
            unit = "float64" if wide else precision if "PRECISION" in options else "ieee"
            targets = tuple(TARGETS) if target is None else (target,)
            found.append(production_of(name, kernel, *args, precision=unit, targets=targets, **options))
    finally:
        _recorded = _target = None


def production() -> list[Production]:
    """The published networks' blocks behind the first, 128 channels: 32 px at depth 3, 64 px at depth 4, 128 px."""
    blocks = [(f"{side}x{side}, batch {batch}", side, batch) for batch in (10, 100, 1000) for side in (16, 8)]
    blocks += [("32x32, batch 100", 32, 100), ("64x64, batch 10", 64, 10)]
    cases = [(*block, torch.float32) for block in blocks] + [("16x16, batch 10, float64", 16, 10, torch.float64)]
    found: list[Production] = []
    for name, side, batch, dtype in cases:
        z = torch.empty(1, batch, side, side, 128, dtype=dtype, device="meta")
        o = z.new_empty(1, batch, side // 2, side // 2, 128)
        out, g = z.new_empty(1, 320010), z.new_empty(1, 320010)[:, :128]
        stats = z.new_empty(1, batch, 4, 128)
        with recorded(name) as calls:
            forward(z, g, g)
            tangent(z, z, g, g, g, g)
            backward(z, stats[:, :, :2].contiguous(), g, g, o, out, 0, 128)
            adjoint(z, z, stats, g, g, g, g, o, o, out, 0, 128)
        found += calls
    return _distinct(found)


def _distinct(found: list[Production]) -> list[Production]:
    """Without those that compile to what an earlier one does; what two capabilities share is one production."""
    seen: dict[tuple[Any, ...], Production] = {}
    for item in found:
        key = (item.kernel.__name__, *item.signature.values(), *item.constexprs.values(), item.num_warps)
        first = seen.setdefault(key, item)
        seen[key] = replace(first, targets=tuple(sorted({*first.targets, *item.targets})))
    return list(seen.values())


# The checks in front of the kernels.


def _shape(
    z: Tensor,
    *norms: Tensor,
    like: tuple[Tensor, ...] = (),
    pooled: tuple[Tensor, ...] = (),
    stats: Tensor | None = None,
    rows: int = 0,
    out: Tensor | None = None,
) -> tuple[int, int, int, int, int]:
    """Sizes of z; kernels read raw memory, so everything about it is checked here."""
    if z.ndim != 5 or z.dtype not in _VALUES or z.shape[2] < 2 or z.shape[3] < 2:
        raise InputError(
            f"a map to normalise and pool is [K, B, H, W, C] with H, W >= 2 in float32 or float64; got "
            f"{list(z.shape)} in {z.dtype}"
        )
    K, B, H, W, C = z.shape
    wanted: list[tuple[Tensor, tuple[int, ...], bool]] = [(t, (K, B, H, W, C), True) for t in (z, *like)]
    wanted += [(t, (K, B, H // 2, W // 2, C), True) for t in pooled]
    wanted += [(t, (K, C), False) for t in norms]
    if stats is not None:
        wanted.append((stats, (K, B, rows or stats.shape[2], C), True))
    for tensor, shape, whole in wanted:
        packed = tensor.is_contiguous() if whole else tensor.stride(-1) == 1 or C == 1
        if tensor.shape != shape or tensor.dtype != z.dtype or tensor.device != z.device or not packed:
            raise InputError(
                f"beside a map {[K, B, H, W, C]} of {z.dtype} on {z.device} this must be a contiguous {list(shape)}; "
                f"got {list(tensor.shape)} of {tensor.dtype} on {tensor.device} with strides {tensor.stride()}"
            )
    if out is not None and (out.ndim != 2 or len(out) != K or out.dtype != z.dtype or out.stride(1) != 1):
        raise InputError(f"flat gradients for {K} trajectories are [{K}, P] of {z.dtype}; got {list(out.shape)}")
    return K, B, H, W, C


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# The kernels. Tiles are [4, BW, BC]; what belongs to a plane is [1, 1, BC].


@triton.jit
def _place(B, C: tl.constexpr, BC: tl.constexpr):
    """What a program has: its image, the image's trajectory, channels [1, 1, BC] and which of them exist."""
    pid = tl.program_id(0)
    image = pid // tl.cdiv(C, BC)
    cols = (pid % tl.cdiv(C, BC)) * BC + tl.arange(0, BC)[None, None, :]
    return image.to(tl.int64), (image // B).to(tl.int64), cols, cols < C


@triton.jit
def _windows(w0, H: tl.constexpr, W: tl.constexpr, BW: tl.constexpr):
    """Pixels [4, BW, 1] of the windows from w0 on and whether they exist, the same of pooled pixels [1, BW, 1]."""
    window = w0 + tl.arange(0, BW)[None, :, None]
    wy, wx = window // ((W + 1) // 2), window % ((W + 1) // 2)
    corner = tl.arange(0, 4)[:, None, None]
    y, x = 2 * wy + corner // 2, 2 * wx + corner % 2
    return y * W + x, (y < H) & (x < W), wy * (W // 2) + wx, (wy < H // 2) & (wx < W // 2)


@triton.jit
def _over_plane(tile):
    return tl.sum(tl.sum(tile, axis=0, keep_dims=True), axis=1, keep_dims=True)


@triton.jit
def _merge(n, mean, m2, z, inside):
    """Pixels seen, their mean and sum of squares about it, after one more block of the plane (Chan)."""
    count = _over_plane(inside.to(z.dtype))
    block = _over_plane(z) / count
    centred = tl.where(inside, z - block, 0.0)
    step = block - mean
    m2 += _over_plane(centred * centred) + step * step * (n * count / (n + count))
    return n + count, mean + step * (count / (n + count)), m2


@triton.jit
def _merge_dual(n, mean, m2, mean_d, mixed, z, zd, inside):
    """The same with the mean of zd and the sum of products of both about their means."""
    count = _over_plane(inside.to(z.dtype))
    block, block_d = _over_plane(z) / count, _over_plane(zd) / count
    centred = tl.where(inside, z - block, 0.0)
    step, step_d = block - mean, block_d - mean_d
    weight, share = n * count / (n + count), count / (n + count)
    m2 += _over_plane(centred * centred) + step * step * weight
    mixed += _over_plane(centred * (zd - block_d)) + step * step_d * weight
    return n + count, mean + step * share, m2, mean_d + step_d * share, mixed


@triton.jit
def _kept(a, value):
    # Not a > 0: a NaN must show, in the output and in every gradient.
    return tl.where(a <= 0, 0.0, value)


@triton.jit(do_not_specialize=["g_stride", "b_stride", "B"])
def _forward_kernel(
    p_o, p_stats, p_z, p_g, p_b, g_stride, b_stride, B,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Eq. 2-3."""
    image, k, cols, m_cols = _place(B, C, BC)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    g = tl.load(p_g + k * g_stride + cols, mask=m_cols, other=0.0)
    b = tl.load(p_b + k * b_stride + cols, mask=m_cols, other=0.0)
    p_z += image * (H * W * C)
    p_o += image * ((H // 2) * (W // 2) * C)
    p_stats += image * (2 * C)

    pixel, inside, _, _ = _windows(0, H, W, BW)
    z = tl.load(p_z + pixel * C + cols, mask=inside & m_cols, other=0.0)
    zero = tl.zeros([1, 1, BC], z.dtype)
    n, mean, m2 = _merge(tl.zeros([1, 1, 1], z.dtype), zero, zero, z, inside)
    for w0 in range(BW, WINDOWS, BW):
        pixel, inside, _, _ = _windows(w0, H, W, BW)
        tile = tl.load(p_z + pixel * C + cols, mask=inside & m_cols, other=0.0)
        n, mean, m2 = _merge(n, mean, m2, tile, inside)
    r = tl.rsqrt(m2 / (H * W) + EPS)
    tl.store(p_stats + cols, mean, mask=m_cols)
    tl.store(p_stats + C + cols, r, mask=m_cols)

    for w0 in range(0, WINDOWS, BW):
        pixel, inside, o_pixel, pooled = _windows(w0, H, W, BW)
        if WINDOWS > BW:
            z = tl.load(p_z + pixel * C + cols, mask=inside & m_cols, other=0.0)
        a = (z - mean) * (g * r) + b
        o = tl.sum(_kept(a, a), axis=0, keep_dims=True) * 0.25
        tl.store(p_o + o_pixel * C + cols, o, mask=pooled & m_cols)


@triton.jit(do_not_specialize=["g_stride", "b_stride", "gd_stride", "bd_stride", "B"])
def _tangent_kernel(
    p_o, p_od, p_stats, p_z, p_zd, p_g, p_b, p_gd, p_bd, g_stride, b_stride, gd_stride, bd_stride, B,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Eq. 2-3 and 9-10."""
    image, k, cols, m_cols = _place(B, C, BC)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    g = tl.load(p_g + k * g_stride + cols, mask=m_cols, other=0.0)
    b = tl.load(p_b + k * b_stride + cols, mask=m_cols, other=0.0)
    gd = tl.load(p_gd + k * gd_stride + cols, mask=m_cols, other=0.0)
    bd = tl.load(p_bd + k * bd_stride + cols, mask=m_cols, other=0.0)
    p_z += image * (H * W * C)
    p_zd += image * (H * W * C)
    p_o += image * ((H // 2) * (W // 2) * C)
    p_od += image * ((H // 2) * (W // 2) * C)
    p_stats += image * (4 * C)

    pixel, inside, _, _ = _windows(0, H, W, BW)
    z = tl.load(p_z + pixel * C + cols, mask=inside & m_cols, other=0.0)
    zd = tl.load(p_zd + pixel * C + cols, mask=inside & m_cols, other=0.0)
    zero = tl.zeros([1, 1, BC], z.dtype)
    n, mean, m2, mean_d, mixed = _merge_dual(tl.zeros([1, 1, 1], z.dtype), zero, zero, zero, zero, z, zd, inside)
    for w0 in range(BW, WINDOWS, BW):
        pixel, inside, _, _ = _windows(w0, H, W, BW)
        tile = tl.load(p_z + pixel * C + cols, mask=inside & m_cols, other=0.0)
        tile_d = tl.load(p_zd + pixel * C + cols, mask=inside & m_cols, other=0.0)
        n, mean, m2, mean_d, mixed = _merge_dual(n, mean, m2, mean_d, mixed, tile, tile_d, inside)
    r = tl.rsqrt(m2 / (H * W) + EPS)
    s = mixed * r / (H * W)
    tl.store(p_stats + cols, mean, mask=m_cols)
    tl.store(p_stats + C + cols, r, mask=m_cols)
    tl.store(p_stats + 2 * C + cols, mean_d, mask=m_cols)
    tl.store(p_stats + 3 * C + cols, s, mask=m_cols)

    h = gd - r * s * g
    for w0 in range(0, WINDOWS, BW):
        pixel, inside, o_pixel, pooled = _windows(w0, H, W, BW)
        if WINDOWS > BW:
            z = tl.load(p_z + pixel * C + cols, mask=inside & m_cols, other=0.0)
            zd = tl.load(p_zd + pixel * C + cols, mask=inside & m_cols, other=0.0)
        a = (z - mean) * (g * r) + b
        ad = (zd - mean_d) * (g * r) + ((z - mean) * (h * r) + bd)
        o = tl.sum(_kept(a, a), axis=0, keep_dims=True) * 0.25
        od = tl.sum(_kept(a, ad), axis=0, keep_dims=True) * 0.25
        tl.store(p_o + o_pixel * C + cols, o, mask=pooled & m_cols)
        tl.store(p_od + o_pixel * C + cols, od, mask=pooled & m_cols)


@triton.jit
def _pulled(
    p_z, p_god, w0, cols, m_cols, mean, gr, b, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr
):
    """Of the windows from w0 on: zc and Ad."""
    pixel, inside, o_pixel, pooled = _windows(w0, H, W, BW)
    zc = tl.load(p_z + pixel * C + cols, mask=inside & m_cols, other=0.0) - mean
    up = tl.load(p_god + o_pixel * C + cols, mask=pooled & m_cols, other=0.0) * 0.25
    return zc, _kept(gr * zc + b, up)


@triton.jit(do_not_specialize=["g_stride", "b_stride", "B"])
def _backward_kernel(
    p_gzd, p_sums, p_z, p_stats, p_g, p_b, p_god, g_stride, b_stride, B, ROWS: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Eq. 5-6, with the sums of Ad n and Ad per image."""
    image, k, cols, m_cols = _place(B, C, BC)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    mean = tl.load(p_stats + image * (ROWS * C) + cols, mask=m_cols, other=0.0)
    r = tl.load(p_stats + image * (ROWS * C) + C + cols, mask=m_cols, other=0.0)
    gr = tl.load(p_g + k * g_stride + cols, mask=m_cols, other=0.0) * r
    b = tl.load(p_b + k * b_stride + cols, mask=m_cols, other=0.0)
    p_z += image * (H * W * C)
    p_gzd += image * (H * W * C)
    p_god += image * ((H // 2) * (W // 2) * C)
    p_sums += image * (2 * C)

    zc, Ad = _pulled(p_z, p_god, 0, cols, m_cols, mean, gr, b, H, W, C, BW)
    sum_d, sum_dz = _over_plane(Ad), _over_plane(Ad * zc)
    for w0 in range(BW, WINDOWS, BW):
        tile, tile_d = _pulled(p_z, p_god, w0, cols, m_cols, mean, gr, b, H, W, C, BW)
        sum_d += _over_plane(tile_d)
        sum_dz += _over_plane(tile_d * tile)
    tl.store(p_sums + cols, sum_dz * r, mask=m_cols)
    tl.store(p_sums + C + cols, sum_d, mask=m_cols)

    k6, k7 = -gr * r * r * sum_dz / (H * W), -gr * sum_d / (H * W)
    for w0 in range(0, WINDOWS, BW):
        if WINDOWS > BW:
            zc, Ad = _pulled(p_z, p_god, w0, cols, m_cols, mean, gr, b, H, W, C, BW)
        pixel, inside, _, _ = _windows(w0, H, W, BW)
        tl.store(p_gzd + pixel * C + cols, gr * Ad + (k6 * zc + k7), mask=inside & m_cols)


@triton.jit
def _pulled_dual(
    p_z, p_zd, p_go, p_god, w0, cols, m_cols, mean, mean_d, gr, b,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Of the windows from w0 on: zc and zdc (about their means), A and Ad."""
    pixel, inside, o_pixel, pooled = _windows(w0, H, W, BW)
    zc = tl.load(p_z + pixel * C + cols, mask=inside & m_cols, other=0.0) - mean
    zdc = tl.load(p_zd + pixel * C + cols, mask=inside & m_cols, other=0.0) - mean_d
    up = tl.load(p_go + o_pixel * C + cols, mask=pooled & m_cols, other=0.0) * 0.25
    up_d = tl.load(p_god + o_pixel * C + cols, mask=pooled & m_cols, other=0.0) * 0.25
    a = gr * zc + b
    return zc, zdc, _kept(a, up), _kept(a, up_d)


@triton.jit(do_not_specialize=["g_stride", "b_stride", "gd_stride", "B"])
def _adjoint_kernel(
    p_gz, p_gzd, p_sums, p_z, p_zd, p_stats, p_g, p_b, p_gd, p_go, p_god, g_stride, b_stride, gd_stride, B,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Eq. 11-17, with the sums of A n + Ad nd and A per image."""
    image, k, cols, m_cols = _place(B, C, BC)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    g = tl.load(p_g + k * g_stride + cols, mask=m_cols, other=0.0)
    b = tl.load(p_b + k * b_stride + cols, mask=m_cols, other=0.0)
    gd = tl.load(p_gd + k * gd_stride + cols, mask=m_cols, other=0.0)
    p_stats += image * (4 * C)
    mean = tl.load(p_stats + cols, mask=m_cols, other=0.0)
    r = tl.load(p_stats + C + cols, mask=m_cols, other=0.0)
    mean_d = tl.load(p_stats + 2 * C + cols, mask=m_cols, other=0.0)
    s = tl.load(p_stats + 3 * C + cols, mask=m_cols, other=0.0)
    gr = g * r
    p_z += image * (H * W * C)
    p_zd += image * (H * W * C)
    p_gz += image * (H * W * C)
    p_gzd += image * (H * W * C)
    p_go += image * ((H // 2) * (W // 2) * C)
    p_god += image * ((H // 2) * (W // 2) * C)
    p_sums += image * (2 * C)

    zc, zdc, A, Ad = _pulled_dual(p_z, p_zd, p_go, p_god, 0, cols, m_cols, mean, mean_d, gr, b, H, W, C, BW)
    sum_a, sum_az, sum_d, sum_dz = _over_plane(A), _over_plane(A * zc), _over_plane(Ad), _over_plane(Ad * zc)
    sum_dzd = _over_plane(Ad * zdc)
    for w0 in range(BW, WINDOWS, BW):
        tile, tile_zd, tile_a, tile_d = _pulled_dual(
            p_z, p_zd, p_go, p_god, w0, cols, m_cols, mean, mean_d, gr, b, H, W, C, BW
        )
        sum_a += _over_plane(tile_a)
        sum_az += _over_plane(tile_a * tile)
        sum_d += _over_plane(tile_d)
        sum_dz += _over_plane(tile_d * tile)
        sum_dzd += _over_plane(tile_d * tile_zd)
    sum_an, sum_dn = sum_az * r, sum_dz * r
    sum_dnd = r * (sum_dzd - s * sum_dn)  # eq. 13
    tl.store(p_sums + cols, sum_an + sum_dnd, mask=m_cols)
    tl.store(p_sums + C + cols, sum_a, mask=m_cols)

    # Eq. 17: z' = k1 A + k2 Ad + k3 zdc + k4 zc + k5,  zd' = k1 Ad + k3 zc + k7.
    h = gd - s * gr
    q = g * sum_dn / (H * W)
    k2, k3 = r * h, -r * r * q
    k4 = -r * r * ((g * (sum_an + sum_dnd) + h * sum_dn) / (H * W) - r * q * s)
    k5, k7 = -r * (g * sum_a + h * sum_d) / (H * W), -gr * sum_d / (H * W)
    for w0 in range(0, WINDOWS, BW):
        if WINDOWS > BW:
            zc, zdc, A, Ad = _pulled_dual(p_z, p_zd, p_go, p_god, w0, cols, m_cols, mean, mean_d, gr, b, H, W, C, BW)
        pixel, inside, _, _ = _windows(w0, H, W, BW)
        tl.store(p_gz + pixel * C + cols, gr * A + k2 * Ad + (k3 * zdc + (k4 * zc + k5)), mask=inside & m_cols)
        tl.store(p_gzd + pixel * C + cols, gr * Ad + (k3 * zc + k7), mask=inside & m_cols)


@triton.jit(do_not_specialize=["out_stride", "offset0", "offset1", "offset2", "B"])
def _sum_images_kernel(
    p_out, p_parts, out_stride, offset0, offset1, offset2, B,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, ACCUMULATE: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """out[k, ...] = sum of parts[k, :, ...]; in float64, so that a thousand images cost no accuracy."""
    k = tl.program_id(1).to(tl.int64)
    TOTAL: tl.constexpr = N0 + N1 + N2
    col = tl.program_id(0) * BL + tl.arange(0, BL)[None, :]
    p_parts += k * B * TOTAL
    total = tl.zeros([BR, BL], tl.float64)
    for row0 in range(0, B, BR):
        row = row0 + tl.arange(0, BR)[:, None]
        part = tl.load(p_parts + row.to(tl.int64) * TOTAL + col, mask=(row < B) & (col < TOTAL), other=0.0)
        total += part.to(tl.float64)
    value = tl.sum(total, axis=0, keep_dims=True)
    at = tl.where(col < N0, offset0 + col, tl.where(col < N0 + N1, offset1 + col - N0, offset2 + col - N0 - N1))
    p_out += k * out_stride + at
    if ACCUMULATE:
        value += tl.load(p_out, mask=col < TOTAL, other=0.0)
    tl.store(p_out, value.to(p_out.dtype.element_ty), mask=col < TOTAL)


# The same in plain torch, any floating dtype: what the kernels are compared with.


def naive_forward(z: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Twin of :func:`forward` (eq. 2-3)."""
    mean, r, n = _normalized(z)
    o = _pool((_wide(g) * n + _wide(b)).relu())
    return o, torch.stack((mean, r), 2)


def naive_tangent(z: Tensor, zd: Tensor, g: Tensor, b: Tensor, gd: Tensor, bd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of :func:`tangent` (eq. 2-3, 9-10)."""
    mean, r, n = _normalized(z)
    mean_d = zd.mean((2, 3))
    s = (n * zd).mean((2, 3))
    nd = _plane(r) * (zd - _plane(mean_d) - n * _plane(s))
    a = _wide(g) * n + _wide(b)
    ad = _wide(gd) * n + _wide(g) * nd + _wide(bd)
    return _pool(a.relu()), _pool(_where_kept(a, ad)), torch.stack((mean, r, mean_d, s), 2)


def naive_backward(
    z: Tensor,
    stats: Tensor,
    g: Tensor,
    b: Tensor,
    god: Tensor,
    out: Tensor,
    g_offset: int,
    b_offset: int,
    *,
    accumulate: bool = False,
) -> Tensor:
    """Twin of :func:`backward` (eq. 5-6)."""
    r = _plane(stats[:, :, 1])
    n = (z - _plane(stats[:, :, 0])) * r
    kept = _where_kept(_wide(g) * n + _wide(b), _unpool(god, z))  # Ad
    _assign(out, g_offset, (kept * n).sum((1, 2, 3)), accumulate)
    _assign(out, b_offset, kept.sum((1, 2, 3)), accumulate)
    return r * _project(_wide(g) * kept, n)


def naive_adjoint(
    z: Tensor,
    zd: Tensor,
    stats: Tensor,
    g: Tensor,
    b: Tensor,
    gd: Tensor,
    bd: Tensor,
    go: Tensor,
    god: Tensor,
    out: Tensor,
    g_offset: int,
    b_offset: int,
    *,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Twin of :func:`adjoint` (eq. 11-16, before the means are gathered into coefficients)."""
    mean, r, mean_d, s = (_plane(row) for row in stats.unbind(2))
    n = (z - mean) * r
    nd = r * (zd - mean_d - n * s)
    a = _wide(g) * n + _wide(b)
    kept, kept_d = _where_kept(a, _unpool(go, z)), _where_kept(a, _unpool(god, z))  # A, Ad
    _assign(out, g_offset, (kept * n + kept_d * nd).sum((1, 2, 3)), accumulate)
    _assign(out, b_offset, kept.sum((1, 2, 3)), accumulate)
    gnd = _wide(g) * kept_d
    gn = _wide(g) * kept + _wide(gd) * kept_d - r * (s * gnd + zd * (gnd * n).mean((2, 3), keepdim=True))
    gz = r * _project(gn, n) - r * n * (gnd * nd).mean((2, 3), keepdim=True)
    return gz, r * _project(gnd, n)


def _wide(parameter: Tensor) -> Tensor:
    return parameter[:, None, None, None, :]  # [K, 1, 1, 1, C]


def _plane(value: Tensor) -> Tensor:
    return value[:, :, None, None, :]  # [K, B, 1, 1, C]


def _normalized(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and r of every plane `[K, B, C]`, and n (eq. 2)."""
    mean = z.mean((2, 3))
    centred = z - _plane(mean)
    r = (centred.square().mean((2, 3)) + EPS).rsqrt()
    return mean, r, centred * _plane(r)


def _where_kept(a: Tensor, value: Tensor) -> Tensor:
    """`value` where the ReLU lets it through; a NaN in `a` is not a reason to hide it."""
    return torch.where(a <= 0, torch.zeros_like(value), value)


def _pixels(z: Tensor) -> Tensor:
    """The pixels that are pooled, `[K, B, H // 2, 2, W // 2, 2, C]`."""
    K, B, H, W, C = z.shape
    return z[:, :, : H // 2 * 2, : W // 2 * 2].unflatten(2, (H // 2, 2)).unflatten(4, (W // 2, 2))


def _pool(a: Tensor) -> Tensor:
    return _pixels(a).mean((3, 5)).contiguous()


def _unpool(go: Tensor, like: Tensor) -> Tensor:
    """The transpose of pooling: `up(go) / 4`, 0 in an odd last row or column."""
    full = torch.zeros_like(like)
    _pixels(full).copy_(go[:, :, :, None, :, None] / 4)
    return full


def _project(value: Tensor, n: Tensor) -> Tensor:
    """`value - mean value - n mean(value n)`."""
    return value - value.mean((2, 3), keepdim=True) - n * (value * n).mean((2, 3), keepdim=True)


def _assign(out: Tensor, offset: int, value: Tensor, accumulate: bool) -> None:
    columns = out[:, offset : offset + value.shape[1]]
    columns.copy_(columns + value if accumulate else value)
