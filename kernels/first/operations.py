"""The first block with its convolution: few input channels, and a full-size map that is never stored.

A pixel of the map is `z = w . p`, with `p` the patch of 9 C image values under the filter; C is at most 7. What the
block needs of a plane follows from a mean and a covariance of the image's patches (eq. 28-30), its backward passes need
two sums over patches besides (eq. 32-36), so that z is recomputed, tile by tile, and never written.

Patches are taken from the image less its channel means, border included, which instance norm cancels. Behind the last
tap of a patch stands a 1: a row of the sums over patches is then a plain sum. Equation numbers are those of
docs/cpu_engine.md. Taps are padded to a power of two, `T` below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...errors import InputError
from ..block.kernels import EPS
from ..block.operations import sum_images_call
from ..calls import PROGRAMS, Call, capability, distinct, moved, run_all
from ..launch import PRECISIONS, Cost
from ..published import EVERY, WIDTH
from .kernels import (
    fold_kernel,
    gradients_kernel,
    moments_kernel,
    patch_gradient_kernel,
    patch_sums_kernel,
    planes_kernel,
    pooled_kernel,
)

if TYPE_CHECKING:
    from ..aot import Production

MOST_CHANNELS = 7
"""Of the images: 63 taps and the 1 behind them are 64."""


@dataclass(frozen=True)
class FirstBlock:
    """Sizes of the first block, and where its parameters lie in the flat vector.

    Attributes:
        channels: of the images, at most 7.
        outputs: of the convolution.
        height, width: of the images. The map has `height + 2 padding - 2` rows.
        padding: of the convolution, 1 or 3.
        w, g, b: offsets of the filters (`[outputs, channels, 3, 3]`) and of the norm's weight and bias.
    """

    channels: int
    outputs: int
    height: int
    width: int
    padding: int
    w: int
    g: int
    b: int

    @property
    def map(self) -> tuple[int, int]:
        """Rows and columns of the map before pooling."""
        grown = 2 * self.padding - 2
        return self.height + grown, self.width + grown

    @property
    def taps(self) -> int:
        """Image values under a filter."""
        return 9 * self.channels


class Statistics(NamedTuple):
    """Results of :func:`forward` and :func:`tangent` for the backward passes; X is 1 where trajectories share images.

    Attributes:
        planes: r, and for a tangent s, of every plane, `[K, B, 1 or 2, outputs]`.
        images: less their channel means, with the border that the convolution pads, `[X, B, C, H + .., W + ..]`.
        mean: mean patch of these images, `[X, B, T]`.
        cov: covariance of the patches, `[X, B, T, T]`.
    """

    planes: Tensor
    images: Tensor
    mean: Tensor
    cov: Tensor


def forward(x: Tensor, theta: Tensor, where: FirstBlock, *, precision: str) -> tuple[Tensor, Statistics]:
    """Convolve, normalise, rectify and pool.

    Args:
        x: images `[K, B, C, H, W]`, float32 or float64; a stride of 0 over K says that the trajectories share them.
        theta: flat parameters `[K, P]`.
        precision: of the products: "tf32", "bf16" or "ieee" (float64: "ieee").

    Returns:
        o `[K, B, rows // 2, columns // 2, outputs]`, and what the backward pass needs.

    Raises:
        InputError: a tensor's shape, dtype or layout is not as said, or the block has more than 7 image channels.
    """
    x = _checked(x, where, precision, theta)
    (o, _, stats), calls = _pooled(x, theta, None, where, precision, capability(x.device))
    run_all(calls)
    return o, stats


def tangent(
    x: Tensor, theta: Tensor, v: Tensor, where: FirstBlock, *, precision: str
) -> tuple[Tensor, Tensor, Statistics]:
    """The forward pass and its tangent along `v` `[K, P]`: o, od and what the adjoint needs.

    Raises:
        InputError: as in :func:`forward`.
    """
    x = _checked(x, where, precision, theta, v)
    results, calls = _pooled(x, theta, v, where, precision, capability(x.device))
    run_all(calls)
    return results


def backward(
    x: Tensor,
    theta: Tensor,
    stats: Statistics,
    god: Tensor,
    where: FirstBlock,
    out: Tensor,
    *,
    precision: str,
    accumulate: bool = False,
) -> None:
    """Pull the gradient of o back to the filters and the norm's parameters (eq. 33, 6).

    Args:
        stats: of :func:`forward` or :func:`tangent`.
        god: gradient of o, contiguous.
        out: flat gradients `[K, P]`; those of w, g and b are written at the block's offsets, summed over the images.
        accumulate: add to `out` instead.

    Raises:
        InputError: a tensor's shape, dtype or layout is not as said here and for :func:`forward`.
    """
    x = _checked(x, where, precision, theta, pooled=(god,), out=out)
    run_all(_backward(x, theta, stats, god, where, out, precision, capability(x.device), accumulate=accumulate))


def adjoint(
    x: Tensor,
    theta: Tensor,
    v: Tensor,
    stats: Statistics,
    go: Tensor,
    god: Tensor,
    where: FirstBlock,
    out: Tensor,
    *,
    precision: str,
    accumulate: bool = False,
    wants_images: bool = True,
) -> Tensor | None:
    """Pull gradients of (o, od) of :func:`tangent` back to the parameters and the images (eq. 34-36, 16).

    Args:
        stats: of :func:`tangent`.
        go, god: gradients of o and od, contiguous.
        out: flat gradients `[K, P]`; those of w, g and b are written at the block's offsets, summed over the images.
        accumulate: add to `out` instead.
        wants_images: whether to compute the images' gradient, about half of the work.

    Returns:
        The gradient of x `[K, B, C, H, W]`, or None.

    Raises:
        InputError: a tensor's shape, dtype or layout is not as said here and for :func:`forward`.
    """
    x = _checked(x, where, precision, theta, v, pooled=(go, god), out=out)
    gx, calls = _adjoint(
        x, theta, v, stats, go, god, where, out, precision, capability(x.device),
        accumulate=accumulate, wants_images=wants_images,
    )  # fmt: skip
    run_all(calls)
    return gx


# The launches of each operation: results that they will have written, and the calls in order. `target` is the compute
# capability that tiles are chosen for.


def _pooled(
    x: Tensor, theta: Tensor, v: Tensor | None, where: FirstBlock, precision: str, target: int
) -> tuple[tuple[Tensor, Tensor, Statistics], list[Call]]:
    """Results o, od (o again without v) and the statistics."""
    K, B = x.shape[:2]
    direction = theta if v is None else v
    sizes, dual = _sizes(where, precision), v is not None
    images = 1 if x.stride(0) == 0 else K
    T, N, (rows, columns) = sizes["T"], where.outputs, where.map
    stats = Statistics(
        x.new_empty(K, B, 2 if dual else 1, N),
        x.new_empty(images, B, where.channels, where.height + 2 * where.padding, where.width + 2 * where.padding),
        x.new_empty(images, B, T),
        x.new_empty(images, B, T, T),
    )
    pixels, windows = rows * columns, (rows // 2) * (columns // 2)
    strides = (theta.stride(0), direction.stride(0))

    tiles, grid = _moments_tiles(sizes, images * B, pixels)
    gram = x.new_empty(images, B, grid[1], T, T, dtype=torch.float64)
    moments = Call(
        moments_kernel,
        grid,
        (gram, stats.images, x, x.stride(0), x.stride(1), B),
        moved(x[:images], stats.images, gram, flops=2 * T * T * images * B * pixels),
        {**tiles, **_exact(sizes)},
    )

    tiles, grid = _planes_tiles(sizes, K * B)
    filters = K * N * where.taps * x.element_size() * (1 + dual)
    planes = Call(
        planes_kernel,
        grid,
        (stats.planes, *stats[2:], gram, theta, direction, where.w, *strides, B),
        Cost(moved(stats.planes, *stats[2:], gram).bytes + filters, 2 * T * T * K * B * N),
        {"SHARED": images == 1, "CHUNKS": gram.shape[2], "DUAL": dual, "EPS": EPS, **tiles, **_exact(sizes)},
    )

    o = x.new_empty(K, B, rows // 2, columns // 2, N)
    od = torch.empty_like(o) if dual else o
    outputs = (o, od) if dual else (o,)
    tiles, grid = _window_tiles(sizes, K * B, windows, 64 if dual else 128, target)
    pooled = Call(
        pooled_kernel,
        grid,
        (o, od, *stats[:3], theta, direction, where.w, where.g, where.b, *strides, B),
        moved(*outputs, *stats[:3], flops=2 * T * N * K * B * 4 * windows * (1 + dual)),
        {"SHARED": images == 1, "DUAL": dual, **tiles, **sizes},
    )
    return (o, od, stats), [moments, planes, pooled]


def _backward(
    x: Tensor,
    theta: Tensor,
    stats: Statistics,
    god: Tensor,
    where: FirstBlock,
    out: Tensor,
    precision: str,
    target: int,
    *,
    accumulate: bool = False,
) -> list[Call]:
    sums, patch_sums = _patch_sums(x, theta, stats, (god,), where, precision, target)
    _, calls = _gradients(theta, None, stats, sums, where, out, precision, accumulate=accumulate, wants_images=False)
    return [patch_sums, *calls]


def _adjoint(
    x: Tensor,
    theta: Tensor,
    v: Tensor,
    stats: Statistics,
    go: Tensor,
    god: Tensor,
    where: FirstBlock,
    out: Tensor,
    precision: str,
    target: int,
    *,
    accumulate: bool = False,
    wants_images: bool = True,
) -> tuple[Tensor | None, list[Call]]:
    sums, patch_sums = _patch_sums(x, theta, stats, (go, god), where, precision, target)
    quadratic, calls = _gradients(
        theta, v, stats, sums, where, out, precision, accumulate=accumulate, wants_images=wants_images
    )
    if quadratic is None:
        return None, [patch_sums, *calls]
    gx, image_calls = _image_gradient(x, theta, v, stats, go, god, quadratic, where, precision, target)
    return gx, [patch_sums, *calls, *image_calls]


def _patch_sums(
    x: Tensor,
    theta: Tensor,
    stats: Statistics,
    gradients: tuple[Tensor, ...],
    where: FirstBlock,
    precision: str,
    target: int,
) -> tuple[Tensor, Call]:
    """Per image and share of its windows, sum Ad p, or sum A p and sum Ad p: `[K * B, shares, 1 or 2, outputs, T]`."""
    K, B = x.shape[:2]
    sizes, dual = _sizes(where, precision), len(gradients) == 2
    windows = (where.map[0] // 2) * (where.map[1] // 2)
    tiles, grid = _window_tiles(sizes, K * B, windows, 64, target)
    sums = x.new_empty(K * B, tiles["SHARES"], len(gradients), where.outputs, sizes["T"])
    flops = 2 * sizes["T"] * where.outputs * K * B * 4 * windows * (1 + len(gradients))
    return sums, Call(
        patch_sums_kernel,
        grid,
        (sums, *stats[:3], theta, gradients[0], gradients[-1], where.w, where.g, where.b, theta.stride(0), B),
        moved(*stats[:3], sums, *gradients, flops=flops),
        {"SHARED": len(stats.mean) == 1, "PLANES": stats.planes.shape[2], "DUAL": dual, **tiles, **sizes},
    )


def _gradients(
    theta: Tensor,
    v: Tensor | None,
    stats: Statistics,
    sums: Tensor,
    where: FirstBlock,
    out: Tensor,
    precision: str,
    *,
    accumulate: bool,
    wants_images: bool,
) -> tuple[Tensor | None, list[Call]]:
    """W', g' and b' into `out`; Q with q0 behind it, in shares `[K * B, shares, T, T]`."""
    K, B, planes, N = stats.planes.shape
    direction = theta if v is None else v
    sizes = _sizes(where, precision)
    parts = theta.new_empty(K, B, where.taps * N + 2 * N)
    tiles, grid = _gradient_tiles(sizes, K * B)
    quadratic = theta.new_empty(K * B, grid[1], sizes["T"], sizes["T"]) if wants_images else None
    written = (parts,) if quadratic is None else (parts, quadratic)
    products = 1 if v is None else 4 if wants_images else 2
    strides = (theta.stride(0), direction.stride(0))
    gradients = Call(
        gradients_kernel,
        grid,
        (parts, written[-1], stats.planes, *stats[2:], sums, theta, direction, where.w, where.g, *strides, B),
        moved(*written, stats.planes, *stats[2:], sums, flops=2 * sizes["T"] ** 2 * N * K * B * products),
        {
            "SHARED": len(stats.mean) == 1,
            "PLANES": planes,
            "SHARES": sums.shape[1],
            "DUAL": v is not None,
            "IMAGES": wants_images,
            **tiles,
            **_exact(sizes),
        },
    )
    columns = ((where.w, where.taps * N), (where.g, N), (where.b, N))
    return quadratic, [gradients, sum_images_call(parts, out, *columns, accumulate=accumulate)]


def _image_gradient(
    x: Tensor,
    theta: Tensor,
    v: Tensor,
    stats: Statistics,
    go: Tensor,
    god: Tensor,
    quadratic: Tensor,
    where: FirstBlock,
    precision: str,
    target: int,
) -> tuple[Tensor, list[Call]]:
    """x', by way of the patches' gradient (eq. 35) `[K * B, 4 pixels of a window, taps, windows]`."""
    K, B = x.shape[:2]
    sizes, (rows, columns) = _sizes(where, precision), where.map
    windows = ((rows + 1) // 2) * ((columns + 1) // 2)
    tiles, grid = _patch_tiles(sizes, K * B, windows, target)
    patches = x.new_empty(K * B, 4, where.taps, windows)
    pixels = K * B * 4 * windows
    strides = (theta.stride(0), v.stride(0))
    patch_gradient = Call(
        patch_gradient_kernel,
        grid,
        (patches, *stats[:3], quadratic, theta, v, go, god, where.w, where.g, where.b, *strides, B),
        moved(
            patches, *stats[:3], go, god, quadratic,
            flops=2 * sizes["T"] * pixels * (3 * where.outputs + sizes["T"]),
        ),
        {"SHARED": len(stats.mean) == 1, "SHARES": quadratic.shape[1], **tiles, **sizes},
    )  # fmt: skip
    gx = x.new_empty(x.shape)
    tiles, grid = _fold_tiles(sizes, K * B)
    return gx, [patch_gradient, Call(fold_kernel, grid, (gx, patches), moved(patches, gx, flops=9 * gx.numel()), tiles)]


# Checks, and which tiles: functions of the shapes alone, so that what is compiled ahead of time is what runs.


def _checked(
    x: Tensor,
    where: FirstBlock,
    precision: str,
    *flat: Tensor,
    pooled: tuple[Tensor, ...] = (),
    out: Tensor | None = None,
) -> Tensor:
    """The images with whole planes in memory; kernels read raw memory, so everything about it is checked here."""
    if x.dtype not in (torch.float32, torch.float64) or precision not in PRECISIONS:
        raise InputError(
            f"images are float32 or float64, precision is one of {PRECISIONS}; got {x.dtype}, {precision!r}"
        )
    if x.dtype == torch.float64 and precision != "ieee":
        raise InputError(f"float64 is computed in precision 'ieee', not {precision!r}")
    if not 1 <= where.channels <= MOST_CHANNELS or min(where.map) < 2:
        raise InputError(
            f"the fused first block takes 1 to {MOST_CHANNELS} image channels and maps of at least 2x2 pixels, "
            f"not {where.channels} channels and {where.map}; run its convolution by itself"
        )
    size = (where.channels, where.height, where.width)
    if x.ndim != 5 or x.shape[2:] != size:
        raise InputError(f"images of this block are [K, B, {', '.join(map(str, size))}]; got {list(x.shape)}")
    K, B = x.shape[:2]
    wanted = (K, B, where.map[0] // 2, where.map[1] // 2, where.outputs)
    for gradient in pooled:
        if gradient.shape != wanted or gradient.dtype != x.dtype or not gradient.is_contiguous():
            raise InputError(
                f"gradients of the pooled map are {list(wanted)}, contiguous, {x.dtype}; got {list(gradient.shape)} "
                f"with strides {gradient.stride()}, {gradient.dtype}"
            )
    least = max(where.w + where.outputs * where.taps, where.g + where.outputs, where.b + where.outputs)
    for vector in (*flat, *(() if out is None else (out,))):
        fits = vector.ndim == 2 and len(vector) == K and vector.shape[1] >= least and vector.stride(1) == 1
        if not fits or vector.dtype != x.dtype or vector.device != x.device:
            raise InputError(
                f"flat vectors of this block are [{K}, at least {least}] of {x.dtype} on {x.device} with adjacent "
                f"columns; got {list(vector.shape)} of {vector.dtype} on {vector.device}"
            )
    if x.stride()[2:] == (where.height * where.width, where.width, 1):
        return x
    return x[:1].contiguous().expand(x.shape) if x.stride(0) == 0 else x.contiguous()


def _sizes(where: FirstBlock, precision: str) -> dict[str, Any]:
    """The constants that kernels take."""
    taps = max(16, triton.next_power_of_2(where.taps + 1))
    return {
        "C": where.channels, "H": where.height, "W": where.width, "N": where.outputs, "PAD": where.padding, "T": taps,
        "PRECISION": precision,
    }  # fmt: skip


def _exact(sizes: dict[str, Any]) -> dict[str, Any]:
    """The same for the few products that statistics are made of, where tensor cores take float32 in three parts."""
    return {**sizes, "PRECISION": "ieee" if _small(sizes) else "tf32x3"}


def _small(sizes: dict[str, Any]) -> bool:
    """Whether products run outside the float32 matrix units, where operands take many registers."""
    return bool(sizes["PRECISION"] == "ieee")


def _moments_tiles(sizes: dict[str, Any], images: int, pixels: int) -> tuple[dict[str, Any], tuple[int, int]]:
    tile = 32 if _small(sizes) else 64
    tiles = triton.cdiv(pixels, tile)
    chunk = triton.cdiv(tiles, min(8, tiles, triton.cdiv(PROGRAMS, images)))  # tiles of a program
    constants = {"CHUNK": chunk * tile, "BP": 1024, "BM": tile, "num_warps": 8, "num_stages": 1}
    return constants, (images, triton.cdiv(tiles, chunk))


def _planes_tiles(sizes: dict[str, Any], images: int) -> tuple[dict[str, Any], tuple[int, int]]:
    outputs = min(32, max(16, triton.next_power_of_2(sizes["N"])))
    return {"BN": outputs, "num_warps": 8, "num_stages": 1}, (images, triton.cdiv(sizes["N"], outputs))


def _outputs(sizes: dict[str, Any], most: int, target: int) -> int:
    """Outputs in a tile; half as many where tensor cores take both operands from registers (before Hopper)."""
    if _small(sizes):
        most = 32
    elif target < 90:
        most = max(16, most // 2)
    return int(min(most, max(16, triton.next_power_of_2(sizes["N"]))))


def _warps(sizes: dict[str, Any]) -> int:
    """Four, for the 64 rows of a tile; without tensor cores operands fill registers, and more threads have more."""
    return 8 if _small(sizes) else 4


def _window_tiles(
    sizes: dict[str, Any], images: int, windows: int, most: int, target: int
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Constants and grid of the kernels over pooled windows: a program has a share of an image's windows."""
    tile = min(32 if _small(sizes) else 64, max(16, triton.next_power_of_2(windows)))
    outputs = _outputs(sizes, most, target)
    blocks, chunks = triton.cdiv(sizes["N"], outputs), triton.cdiv(windows, tile)
    shares = min(chunks, triton.cdiv(PROGRAMS, images * blocks))
    shares = triton.cdiv(chunks, triton.cdiv(chunks, shares))  # no share without windows
    constants = {"SHARES": shares, "BW": tile, "BN": outputs, "num_warps": _warps(sizes), "num_stages": 1}
    return constants, (images * shares, blocks)


def _gradient_tiles(sizes: dict[str, Any], images: int) -> tuple[dict[str, Any], tuple[int, int]]:
    outputs = 16
    return {"BN": outputs, "num_warps": 8, "num_stages": 1}, (images, triton.cdiv(sizes["N"], outputs))


def _patch_tiles(
    sizes: dict[str, Any], images: int, windows: int, target: int
) -> tuple[dict[str, Any], tuple[int, ...]]:
    tile = min(32 if _small(sizes) else 64, max(16, triton.next_power_of_2(windows)))
    constants = {"BW": tile, "BN": _outputs(sizes, 32, target), "num_warps": _warps(sizes), "num_stages": 1}
    return constants, (images * triton.cdiv(windows, tile),)


def _fold_tiles(sizes: dict[str, Any], images: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    pixels = sizes["H"] * sizes["W"]
    tile = min(256, max(32, triton.next_power_of_2(pixels)))
    constants = {"C": sizes["C"], "H": sizes["H"], "W": sizes["W"], "PAD": sizes["PAD"], "BM": tile, "num_warps": 4}
    return constants, (triton.cdiv(pixels, tile), images)


def production() -> list[Production]:
    """First blocks of the published networks (3 channels, 128 outputs, 32 and 64 px), and one of a grey 28 px image.

    Those of published sizes are for Hopper alone, whose tiles others do not take.
    """
    common = [("32 px, batch 100", 100, 3, 32, 1, precision) for precision in ("tf32", "bf16", "ieee")]
    cases = [(80, *case) for case in common] + [(90, *case) for case in common]
    cases += [(90, f"32 px, batch {batch}", batch, 3, 32, 1, "tf32") for batch in (10, 1000)]
    cases += [(90, "64 px, batch 100", 100, 3, 64, 1, "tf32"), (90, "grey 28 px, batch 10", 10, 1, 28, 3, "tf32")]
    found: list[Production] = []
    for target, name, batch, channels, side, padding, precision in cases:
        where = FirstBlock(channels, 128, side, side, padding, 0, 3600, 3728)
        x = torch.empty(1, batch, channels, side, side, device="meta")
        theta = x.new_empty(1, 320010)
        go = x.new_empty(1, batch, where.map[0] // 2, where.map[1] // 2, 128)
        (_, _, stats), calls = _pooled(x, theta, None, where, precision, target)
        calls += _backward(x, theta, stats, go, where, theta, precision, target)
        (_, _, stats), more = _pooled(x, theta, theta, where, precision, target)
        calls += more + _adjoint(x, theta, theta, stats, go, go, where, theta, precision, target)[1]
        found += _named(name, calls, precision, target)
    for sizes in EVERY:
        where = FirstBlock(3, WIDTH, sizes.side, sizes.side, 1, 0, 3600, 3728)
        x = torch.empty(sizes.trajectories, sizes.batch, 3, sizes.side, sizes.side, device="meta")
        if not sizes.training:
            x = x[:1].expand(x.shape)  # trajectories share their images
        theta = x.new_empty(sizes.trajectories, sizes.parameters)
        go = x.new_empty(*x.shape[:2], sizes.side // 2, sizes.side // 2, WIDTH)
        (_, _, stats), calls = _pooled(x, theta, None, where, sizes.precision, 90)
        calls += _backward(x, theta, stats, go, where, theta, sizes.precision, 90)
        if not sizes.training:
            (_, _, stats), more = _pooled(x, theta, theta, where, sizes.precision, 90)
            calls += more + _adjoint(x, theta, theta, stats, go, go, where, theta, sizes.precision, 90)[1]
        found += _named(sizes.name, calls, sizes.precision, 90)
    return distinct(found)


def _named(name: str, calls: list[Call], precision: str, target: int) -> list[Production]:
    units = [precision if "PRECISION" in call.options else "ieee" for call in calls]
    return [call.production(name, precision=unit, targets=(target,)) for call, unit in zip(calls, units, strict=True)]
