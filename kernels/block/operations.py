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
from torch import Tensor

from ...errors import InputError
from ..launch import Cost, launch
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
    grid, options = _configuration(z.shape, z.dtype, maps=1)
    cost = Cost(_bytes(z, o, stats), 12 * z.numel())
    _launch(forward_kernel, grid, o, stats, z, g, b, g.stride(0), b.stride(0), B, cost=cost, EPS=EPS, **options)
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
    _launch(tangent_kernel, grid, o, od, stats, z, zd, g, b, gd, bd, *strides, B, cost=cost, EPS=EPS, **options)
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
        backward_kernel, grid, gzd, sums, z, stats, g, b, god, *strides, B, cost=cost, ROWS=stats.shape[2], **options
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
    _launch(adjoint_kernel, grid, gz, gzd, sums, z, zd, stats, g, b, gd, go, god, *strides, B, cost=cost, **options)
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
    _launch(sum_images_kernel, grid, out, parts, out.stride(0), *offsets, B, cost=cost, **options, **tiles)


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
