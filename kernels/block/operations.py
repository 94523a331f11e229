"""Instance norm, ReLU and 2x2 average pooling in one kernel per direction: forward, tangent, backward and adjoint.

Activations are channels-last `[K, B, H, W, C]`: K trajectories with parameters of their own, B images. A plane is one
(trajectory, image, channel); an odd last row or column is left out by the pooling but counts in the statistics.
Equation numbers are those of docs/cpu_engine.md.

A program has all pixels of one image and a few channels, as tiles `[4, windows, channels]` of pooling windows with the
four pixels of each: pooling is a sum over the first axis, which lies within a thread. Planes of up to 32x32 pixels are
read once and kept in registers; larger ones are read twice, and their blocks' statistics are merged (Chan).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from ...errors import InputError
from ..calls import PROGRAMS, Call, distinct, moved
from ..launch import Cost
from ..published import EVERY, NEWEST
from .kernels import EPS, adjoint_kernel, backward_kernel, forward_kernel, sum_images_kernel, tangent_kernel

if TYPE_CHECKING:
    from ..aot import Production


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
    _forward_call(o, stats, z, g, b).run()
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
    _tangent_call(o, od, stats, z, zd, g, b, gd, bd).run()
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
    _backward_call(gzd, sums, z, stats, g, b, god).run()
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
    _adjoint_call(gz, gzd, sums, z, zd, stats, g, b, gd, go, god).run()
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
    sum_images_call(parts, out, *columns, accumulate=accumulate).run()


# The launches.


def _forward_call(o: Tensor, stats: Tensor, z: Tensor, g: Tensor, b: Tensor) -> Call:
    grid, options = _configuration(z.shape, z.dtype, maps=1)
    args = (o, stats, z, g, b, g.stride(0), b.stride(0), z.shape[1])
    return Call(forward_kernel, grid, args, moved(z, o, stats, flops=12 * z.numel()), {"EPS": EPS, **options})


def _tangent_call(
    o: Tensor, od: Tensor, stats: Tensor, z: Tensor, zd: Tensor, g: Tensor, b: Tensor, gd: Tensor, bd: Tensor
) -> Call:
    grid, options = _configuration(z.shape, z.dtype, maps=2)
    cost = moved(z, zd, o, od, stats, flops=25 * z.numel())
    strides = (g.stride(0), b.stride(0), gd.stride(0), bd.stride(0))
    args = (o, od, stats, z, zd, g, b, gd, bd, *strides, z.shape[1])
    return Call(tangent_kernel, grid, args, cost, {"EPS": EPS, **options})


def _backward_call(gzd: Tensor, sums: Tensor, z: Tensor, stats: Tensor, g: Tensor, b: Tensor, god: Tensor) -> Call:
    grid, options = _configuration(z.shape, z.dtype, maps=2)
    cost = moved(z, gzd, god, stats, sums, flops=12 * z.numel())
    args = (gzd, sums, z, stats, g, b, god, g.stride(0), b.stride(0), z.shape[1])
    return Call(backward_kernel, grid, args, cost, {"ROWS": stats.shape[2], **options})


def _adjoint_call(
    gz: Tensor,
    gzd: Tensor,
    sums: Tensor,
    z: Tensor,
    zd: Tensor,
    stats: Tensor,
    g: Tensor,
    b: Tensor,
    gd: Tensor,
    go: Tensor,
    god: Tensor,
) -> Call:
    grid, options = _configuration(z.shape, z.dtype, maps=4)
    cost = moved(z, zd, gz, gzd, go, god, stats, sums, flops=30 * z.numel())
    strides = (g.stride(0), b.stride(0), gd.stride(0))
    args = (gz, gzd, sums, z, zd, stats, g, b, gd, go, god, *strides, z.shape[1])
    return Call(adjoint_kernel, grid, args, cost, options)


def sum_images_call(parts: Tensor, out: Tensor, *columns: tuple[int, int], accumulate: bool = False) -> Call:
    """The launch of :func:`sum_images`."""
    K, B = parts.shape[:2]
    pieces = (*columns, (0, 0), (0, 0))[:3]
    offsets, lengths = zip(*pieces, strict=True)
    total = sum(lengths)
    written = K * total * parts.element_size() * (2 if accumulate else 1)
    grid, tiles = _sum_configuration(K, B, total)
    return Call(
        sum_images_kernel,
        grid,
        (out, parts, out.stride(0), *offsets, B),
        Cost(parts.nbytes + written, parts.numel()),
        {"N0": lengths[0], "N1": lengths[1], "N2": lengths[2], "ACCUMULATE": accumulate, **tiles},
    )


# Which tiles: a function of the shapes alone, so that what is compiled ahead of time is what runs.

_VALUES = {torch.float32: 8192, torch.float64: 4096}
"""Most values of one map in one program; two maps of 16x16 pixels and 32 channels are 64 registers of 256 threads."""


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
    while channels > 8 and K * B * triton.cdiv(C, channels) < PROGRAMS:
        channels //= 2
    warps = 4 * windows * channels * dtype.itemsize // (32 * 64)  # 64 bytes of each map per thread ...
    warps = min(8 if maps < 4 else 16, max(1, warps))  # ... or 128, where that takes too many threads
    constants = {"H": H, "W": W, "C": C, "BW": windows, "BC": channels, "num_warps": warps}
    return (K * B * triton.cdiv(C, channels),), constants


def _sum_configuration(K: int, B: int, total: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and constants of the second stage for B rows of `total` columns."""
    rows = min(128, triton.next_power_of_2(B))
    return (triton.cdiv(total, 32), K), {"BR": rows, "BL": 32, "num_warps": 4}


def production() -> list[Production]:
    """The published networks' blocks behind the first, 128 channels: 32 px at depth 3, 64 px at depth 4, 128 px."""
    blocks = [(f"{side}x{side}, batch {batch}", side, batch) for batch in (10, 100, 1000) for side in (16, 8)]
    blocks += [("32x32, batch 100", 32, 100), ("64x64, batch 10", 64, 10)]
    cases = [(*block, torch.float32) for block in blocks] + [("16x16, batch 10, float64", 16, 10, torch.float64)]
    listed: list[tuple[str, int, int, int, torch.dtype, int, tuple[int, ...] | None]]
    listed = [(name, 1, batch, side, dtype, 320010, None) for name, side, batch, dtype in cases]
    listed += [
        (f"{each.name}, {side}x{side}", each.trajectories, each.batch, side, torch.float32, each.parameters, NEWEST)
        for each in EVERY
        for side in each.maps
    ]
    found: list[Production] = []
    for name, trajectories, batch, side, dtype, parameters, targets in listed:
        z = torch.empty(trajectories, batch, side, side, 128, dtype=dtype, device="meta")
        o = z.new_empty(trajectories, batch, side // 2, side // 2, 128)
        out = z.new_empty(trajectories, parameters)
        g = out[:, :128]
        stats, sums = z.new_empty(trajectories, batch, 4, 128), z.new_empty(trajectories, batch, 2, 128)
        short = stats[:, :, :2].contiguous()
        calls = (
            _forward_call(o, short, z, g, g),
            _tangent_call(o, o, stats, z, z, g, g, g, g),
            _backward_call(z, sums, z, short, g, g, o),
            sum_images_call(sums, out, (0, 128), (128, 128)),
            _adjoint_call(z, z, sums, z, z, stats, g, g, g, o, o),
        )
        precision = "float64" if dtype == torch.float64 else "ieee"
        found += [call.production(name, precision=precision, targets=targets) for call in calls]
    return distinct(found)


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
