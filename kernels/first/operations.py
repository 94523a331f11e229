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
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ...errors import InputError
from ..block import operations as block
from ..launch import PRECISIONS, Cost, interpreted

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
    """What :func:`forward` and :func:`tangent` leave for the backward passes; X is 1 where trajectories share images.

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
    return _pooled(x, theta, None, where, precision)[::2]


def tangent(
    x: Tensor, theta: Tensor, v: Tensor, where: FirstBlock, *, precision: str
) -> tuple[Tensor, Tensor, Statistics]:
    """The forward pass and its tangent along `v` `[K, P]`: o, od and what the adjoint needs.

    Raises:
        InputError: as in :func:`forward`.
    """
    return _pooled(x, theta, v, where, precision)


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
    sums = _patch_sums(x, theta, stats, (god,), where, precision)
    _gradients(theta, None, stats, sums, where, out, precision, accumulate=accumulate, wants_images=False)


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
    sums = _patch_sums(x, theta, stats, (go, god), where, precision)
    quadratic = _gradients(
        theta, v, stats, sums, where, out, precision, accumulate=accumulate, wants_images=wants_images
    )
    if quadratic is None:
        return None
    return _image_gradient(x, theta, v, stats, go, god, quadratic, where, precision)


# The launches.


def _pooled(
    x: Tensor, theta: Tensor, v: Tensor | None, where: FirstBlock, precision: str
) -> tuple[Tensor, Tensor, Statistics]:
    """o, od (o again without v) and the statistics."""
    x = _checked(x, where, precision, *(theta,) if v is None else (theta, v))
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
    distinct, pixels = x[:images], rows * columns
    tiles, grid = _moments_tiles(sizes, images * B, pixels)
    gram = x.new_empty(images, B, grid[1], T, T, dtype=torch.float64)
    cost = Cost(block._bytes(distinct, stats.images, gram), 2 * T * T * images * B * pixels)
    strides = (theta.stride(0), direction.stride(0))
    block._launch(
        _moments_kernel, grid, gram, stats.images, x, x.stride(0), x.stride(1), B, cost=cost, **tiles, **_exact(sizes)
    )
    filters = K * N * where.taps * x.element_size() * (1 + dual)
    cost = Cost(block._bytes(stats.planes, *stats[2:], gram) + filters, 2 * T * T * K * B * N)
    tiles, grid = _planes_tiles(sizes, K * B)
    block._launch(
        _planes_kernel, grid, stats.planes, *stats[2:], gram, theta, direction, where.w, *strides, B, cost=cost,
        SHARED=images == 1, CHUNKS=gram.shape[2], DUAL=dual, EPS=block.EPS, **tiles, **_exact(sizes),
    )  # fmt: skip
    o = x.new_empty(K, B, rows // 2, columns // 2, N)
    od = torch.empty_like(o) if dual else o
    windows = (rows // 2) * (columns // 2)
    tiles, grid = _window_tiles(sizes, K * B, windows, 64 if dual else 128, x.device)
    outputs = (o, od) if dual else (o,)
    cost = Cost(
        block._bytes(*outputs, *stats[:3]),
        2 * T * N * K * B * 4 * windows * (1 + dual),
    )
    block._launch(
        _pooled_kernel, grid, o, od, *stats[:3], theta, direction, where.w, where.g, where.b, *strides, B, cost=cost,
        SHARED=images == 1, DUAL=dual, **tiles, **sizes,
    )  # fmt: skip
    return o, od, stats


def _patch_sums(
    x: Tensor, theta: Tensor, stats: Statistics, gradients: tuple[Tensor, ...], where: FirstBlock, precision: str
) -> Tensor:
    """Per image and share of its windows, sum Ad p, or sum A p and sum Ad p: `[K * B, shares, 1 or 2, outputs, T]`."""
    K, B = x.shape[:2]
    sizes, dual = _sizes(where, precision), len(gradients) == 2
    windows = (where.map[0] // 2) * (where.map[1] // 2)
    tiles, grid = _window_tiles(sizes, K * B, windows, 64, x.device)
    sums = x.new_empty(K * B, tiles["SHARES"], len(gradients), where.outputs, sizes["T"])
    cost = Cost(
        block._bytes(*stats[:3], sums, *gradients),
        2 * sizes["T"] * where.outputs * K * B * 4 * windows * (1 + len(gradients)),
    )
    block._launch(
        _patch_sums_kernel, grid, sums, *stats[:3], theta, gradients[0], gradients[-1], where.w, where.g, where.b,
        theta.stride(0), B, cost=cost,
        SHARED=len(stats.mean) == 1, PLANES=stats.planes.shape[2], DUAL=dual, **tiles, **sizes,
    )  # fmt: skip
    return sums


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
) -> Tensor | None:
    """W', g' and b' into `out`; returns Q with q0 behind it, in shares `[K * B, shares, T, T]`."""
    K, B, planes, N = stats.planes.shape
    direction = theta if v is None else v
    sizes = _sizes(where, precision)
    parts = theta.new_empty(K, B, where.taps * N + 2 * N)
    tiles, grid = _gradient_tiles(sizes, K * B)
    quadratic = theta.new_empty(K * B, grid[1], sizes["T"], sizes["T"]) if wants_images else None
    written = (parts,) if quadratic is None else (parts, quadratic)
    products = 1 if v is None else 4 if wants_images else 2
    second = parts if quadratic is None else quadratic
    block._launch(
        _gradients_kernel, grid, parts, second, stats.planes, *stats[2:], sums, theta, direction, where.w, where.g,
        theta.stride(0), direction.stride(0), B,
        cost=Cost(
            block._bytes(*written, stats.planes, *stats[2:], sums), 2 * sizes["T"] ** 2 * N * K * B * products
        ),
        SHARED=len(stats.mean) == 1, PLANES=planes, SHARES=sums.shape[1], DUAL=v is not None, IMAGES=wants_images,
        **tiles, **_exact(sizes),
    )  # fmt: skip
    columns = ((where.w, where.taps * N), (where.g, N), (where.b, N))
    block.sum_images(parts, out, *columns, accumulate=accumulate)
    return quadratic


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
) -> Tensor:
    """x', by way of the patches' gradient (eq. 35) `[K * B, 4 pixels of a window, taps, windows]`."""
    K, B = x.shape[:2]
    sizes, (rows, columns) = _sizes(where, precision), where.map
    windows = ((rows + 1) // 2) * ((columns + 1) // 2)
    tiles, grid = _patch_tiles(sizes, K * B, windows, x.device)
    patches = x.new_empty(K * B, 4, where.taps, windows)
    pixels = K * B * 4 * windows
    block._launch(
        _patch_gradient_kernel, grid, patches, *stats[:3], quadratic, theta, v, go, god, where.w, where.g, where.b,
        theta.stride(0), v.stride(0), B,
        cost=Cost(
            block._bytes(patches, *stats[:3], go, god, quadratic),
            2 * sizes["T"] * pixels * (3 * where.outputs + sizes["T"]),
        ),
        SHARED=len(stats.mean) == 1, SHARES=quadratic.shape[1], **tiles, **sizes,
    )  # fmt: skip
    gx = x.new_empty(x.shape)
    tiles, grid = _fold_tiles(sizes, K * B)
    cost = Cost(block._bytes(patches, gx), 9 * gx.numel())
    block._launch(_fold_kernel, grid, gx, patches, cost=cost, **tiles)
    return gx


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


_PROGRAMS = 256
"""Programs that occupy a large GPU, about two for each of its processors."""


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
    chunk = triton.cdiv(tiles, min(8, tiles, triton.cdiv(_PROGRAMS, images)))  # tiles of a program
    constants = {"CHUNK": chunk * tile, "BP": 1024, "BM": tile, "num_warps": 8, "num_stages": 1}
    return constants, (images, triton.cdiv(tiles, chunk))


def _planes_tiles(sizes: dict[str, Any], images: int) -> tuple[dict[str, Any], tuple[int, int]]:
    outputs = min(32, max(16, triton.next_power_of_2(sizes["N"])))
    return {"BN": outputs, "num_warps": 8, "num_stages": 1}, (images, triton.cdiv(sizes["N"], outputs))


def _outputs(sizes: dict[str, Any], most: int, device: torch.device) -> int:
    """Outputs in a tile; half as many where tensor cores take both operands from registers (before Hopper)."""
    if _small(sizes):
        most = 32
    elif block.capability(device) < 90:
        most = max(16, most // 2)
    return int(min(most, max(16, triton.next_power_of_2(sizes["N"]))))


def _warps(sizes: dict[str, Any]) -> int:
    """Four, for the 64 rows of a tile; without tensor cores operands fill registers, and more threads have more."""
    return 8 if _small(sizes) else 4


def _window_tiles(
    sizes: dict[str, Any], images: int, windows: int, most: int, device: torch.device
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Constants and grid of the kernels over pooled windows: a program has a share of an image's windows."""
    tile = min(32 if _small(sizes) else 64, max(16, triton.next_power_of_2(windows)))
    outputs = _outputs(sizes, most, device)
    blocks, chunks = triton.cdiv(sizes["N"], outputs), triton.cdiv(windows, tile)
    shares = min(chunks, triton.cdiv(_PROGRAMS, images * blocks))
    shares = triton.cdiv(chunks, triton.cdiv(chunks, shares))  # no share without windows
    constants = {"SHARES": shares, "BW": tile, "BN": outputs, "num_warps": _warps(sizes), "num_stages": 1}
    return constants, (images * shares, blocks)


def _gradient_tiles(sizes: dict[str, Any], images: int) -> tuple[dict[str, Any], tuple[int, int]]:
    outputs = 16
    return {"BN": outputs, "num_warps": 8, "num_stages": 1}, (images, triton.cdiv(sizes["N"], outputs))


def _patch_tiles(
    sizes: dict[str, Any], images: int, windows: int, device: torch.device
) -> tuple[dict[str, Any], tuple[int, ...]]:
    tile = min(32 if _small(sizes) else 64, max(16, triton.next_power_of_2(windows)))
    constants = {"BW": tile, "BN": _outputs(sizes, 32, device), "num_warps": _warps(sizes), "num_stages": 1}
    return constants, (images * triton.cdiv(windows, tile),)


def _fold_tiles(sizes: dict[str, Any], images: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    pixels = sizes["H"] * sizes["W"]
    tile = min(256, max(32, triton.next_power_of_2(pixels)))
    constants = {"C": sizes["C"], "H": sizes["H"], "W": sizes["W"], "PAD": sizes["PAD"], "BM": tile, "num_warps": 4}
    return constants, (triton.cdiv(pixels, tile), images)


def production() -> list[Production]:
    """First blocks of the published networks (3 channels, 128 outputs, 32 and 64 px), and one of a grey 28 px image."""
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
        with block.recorded(name, precision, target) as calls:
            _, stats = forward(x, theta, where, precision=precision)
            backward(x, theta, stats, go, where, theta, precision=precision)
            _, _, stats = tangent(x, theta, theta, where, precision=precision)
            adjoint(x, theta, theta, stats, go, go, where, theta, precision=precision)
        found += calls
    return block._distinct(found)


# The kernels. Tiles: taps x pixels [T, BW], pixels x outputs [BW, BN], taps x outputs [T, BN].


INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def _product(a, b, PRECISION: tl.constexpr):
    """The matrix product of the two."""
    if PRECISION == "bf16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if INTERPRETED:  # its products of bfloat16 are those of the bits taken as integers
            a, b = a.to(tl.float32), b.to(tl.float32)
        c = tl.dot(a, b)
    elif a.dtype == tl.float64:
        c = tl.dot(a, b, input_precision="ieee", out_dtype=tl.float64)
    else:
        c = tl.dot(a, b, input_precision=PRECISION)
    return c


@triton.jit
def _patches(
    p_image, y, x, exists, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr
):
    """Patches [T, BW] of pixels [1, BW] of the map, a 1 behind them; 0 where there is no such pixel."""
    # Taps are the rows: neighbouring threads then read neighbouring pixels.
    HP: tl.constexpr = H + 2 * PAD
    WP: tl.constexpr = W + 2 * PAD
    tap = tl.arange(0, T)[:, None]
    offset = (tap // 9) * (HP * WP) + (tap % 9 // 3) * WP + tap % 3
    p = tl.load(p_image + (y * WP + x) + offset, mask=(tap < 9 * C) & exists, other=0.0)
    return tl.where(tap == 9 * C, exists.to(p.dtype), p)


@triton.jit
def _filters(p_theta, at, o, C: tl.constexpr, N: tl.constexpr, T: tl.constexpr):
    """Filters [T, BN] of outputs [1, BN]."""
    tap = tl.arange(0, T)[:, None]
    return tl.load(p_theta + at + o * (9 * C) + tap, mask=(tap < 9 * C) & (o < N), other=0.0)


@triton.jit(do_not_specialize=["x_stride_k", "x_stride_b", "B"])
def _moments_kernel(
    p_gram, p_images, p_x, x_stride_k, x_stride_b, B, CHUNK: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A shifted image with its border, and the sum of p p^T over one chunk of the map's pixels (eq. 28)."""
    image = tl.program_id(0).to(tl.int64)
    ROWS: tl.constexpr = H + 2 * PAD - 2
    COLUMNS: tl.constexpr = W + 2 * PAD - 2
    HP: tl.constexpr = H + 2 * PAD
    WP: tl.constexpr = W + 2 * PAD
    p_x += (image // B) * x_stride_k + (image % B) * x_stride_b
    p_images += image * (C * HP * WP)
    first = tl.program_id(1) * CHUNK
    last = tl.minimum(first + CHUNK, ROWS * COLUMNS)
    # The rows under the chunk's patches. Two chunks may both write a row, with the same values.
    begin, end = first // COLUMNS * WP, ((last - 1) // COLUMNS + 3) * WP
    for c in tl.static_range(C):
        total = tl.zeros([BP], tl.float64)
        for m0 in range(0, H * W, BP):
            pixel = m0 + tl.arange(0, BP)
            total += tl.load(p_x + c * (H * W) + pixel, mask=pixel < H * W, other=0.0).to(tl.float64)
        mean = (tl.sum(total, axis=0) / (H * W)).to(p_x.dtype.element_ty)
        for m0 in range(begin, end, BP):
            pixel = m0 + tl.arange(0, BP)
            y, x = pixel // WP - PAD, pixel % WP - PAD
            inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
            value = tl.load(p_x + c * (H * W) + y * W + x, mask=inside, other=0.0) - mean
            tl.store(p_images + c * (HP * WP) + pixel, value, mask=pixel < end)
    tl.debug_barrier()  # the program now reads what its other threads have written

    gram = tl.zeros([T, T], tl.float64)
    for m0 in range(first, last, BM):
        pixel = m0 + tl.arange(0, BM)[None, :]
        p = _patches(p_images, pixel // COLUMNS, pixel % COLUMNS, pixel < last, C, H, W, PAD, T)
        gram += _product(p, tl.trans(p), PRECISION).to(tl.float64)
    p_gram += (image * tl.num_programs(1) + tl.program_id(1)) * (T * T)
    tl.store(p_gram + tl.arange(0, T)[:, None] * T + tl.arange(0, T)[None, :], gram)


@triton.jit(do_not_specialize=["w_offset", "theta_stride", "v_stride", "B"])
def _planes_kernel(
    p_planes, p_mean, p_cov, p_gram, p_theta, p_v, w_offset, theta_stride, v_stride, B,
    SHARED: tl.constexpr, CHUNKS: tl.constexpr, DUAL: tl.constexpr, EPS: tl.constexpr, BN: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Mean and covariance of an image's patches (eq. 28), r and s of a few of its planes (eq. 29-30)."""
    image = tl.program_id(0).to(tl.int64)
    k = image // B
    source = image % B if SHARED else image
    tap, column = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    p_gram += source * (CHUNKS * T * T) + tap * T + column
    gram = tl.load(p_gram)
    for chunk in range(1, CHUNKS):
        gram += tl.load(p_gram + chunk * (T * T))
    gram = gram / ((H + 2 * PAD - 2) * (W + 2 * PAD - 2))
    # The 1 behind the taps has left their sums in its row and column.
    mean_rows = tl.sum(tl.where(column == 9 * C, gram, 0.0), axis=1)[:, None]
    mean_columns = tl.sum(tl.where(tap == 9 * C, gram, 0.0), axis=0)[None, :]
    cov = tl.where((tap < 9 * C) & (column < 9 * C), gram - mean_rows * mean_columns, 0.0)
    if tl.program_id(1) == 0 and source == image:
        mean_columns = tl.where(column < 9 * C, mean_columns, 0.0)
        tl.store(p_mean + image * T + column, mean_columns.to(p_mean.dtype.element_ty))
        tl.store(p_cov + image * (T * T) + tap * T + column, cov.to(p_cov.dtype.element_ty))

    # Quadratic forms cancel where a filter is a derivative and the image smooth: in double precision.
    o = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    w = _filters(p_theta, k * theta_stride + w_offset, o, C, N, T).to(tl.float64)
    cw = _product(cov, w, "ieee")
    var = tl.sum(w * cw, axis=0, keep_dims=True)
    r = 1.0 / tl.sqrt(tl.where(var < 0.0, 0.0, var) + EPS)
    p_planes += image * ((1 + DUAL) * N) + o
    tl.store(p_planes, r.to(p_planes.dtype.element_ty), mask=o < N)
    if DUAL:
        v = _filters(p_v, k * v_stride + w_offset, o, C, N, T).to(tl.float64)
        s = r * tl.sum(v * cw, axis=0, keep_dims=True)
        tl.store(p_planes + N, s.to(p_planes.dtype.element_ty), mask=o < N)


@triton.jit
def _source(p_mean, image, B, SHARED: tl.constexpr, T: tl.constexpr):
    """Which image has the patches, and their mean [T, 1]."""
    source = image % B if SHARED else image
    return source, tl.load(p_mean + source * T + tl.arange(0, T)[:, None])


@triton.jit
def _vector(p, at, o, N: tl.constexpr):
    return tl.load(p + at + o, mask=o < N, other=0.0)


@triton.jit
def _rectified(
    p_theta, w_offset, g_offset, b_offset, p_plane, mean, o, C: tl.constexpr, N: tl.constexpr, T: tl.constexpr
):
    """Eq. 31: w1 [T, BN] and c1 [1, BN] with a / 4 = w1 . p + c1; p_theta is the trajectory's, p_plane the image's."""
    scale = _vector(p_theta, g_offset, o, N) * _vector(p_plane, 0, o, N) * 0.25
    w = _filters(p_theta, w_offset, o, C, N, T) * scale
    return w, _vector(p_theta, b_offset, o, N) * 0.25 - tl.sum(w * mean, axis=0, keep_dims=True)


@triton.jit
def _rectified_dual(
    p_theta, p_v, w_offset, g_offset, b_offset, p_plane, mean, o, C: tl.constexpr, N: tl.constexpr, T: tl.constexpr
):
    """Eq. 31: w2 [T, BN] and c2 [1, BN] with ad / 4 = w2 . p + c2."""
    r = _vector(p_plane, 0, o, N) * 0.25
    scale = _vector(p_theta, g_offset, o, N) * r
    h_scale = _vector(p_v, g_offset, o, N) * r - _vector(p_plane, N, o, N) * scale * (4.0 * r)
    w = _filters(p_v, w_offset, o, C, N, T) * scale + _filters(p_theta, w_offset, o, C, N, T) * h_scale
    return w, _vector(p_v, b_offset, o, N) * 0.25 - tl.sum(w * mean, axis=0, keep_dims=True)


@triton.jit(
    do_not_specialize=[
        "w_offset", "g_offset", "b_offset", "theta_stride", "v_stride", "B",
    ]
)  # fmt: skip
def _pooled_kernel(
    p_o, p_od, p_planes, p_images, p_mean, p_theta, p_v, w_offset, g_offset, b_offset,
    theta_stride, v_stride, B,
    SHARED: tl.constexpr, DUAL: tl.constexpr, SHARES: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """O and od are sums of relu(a) / 4 and [a > 0] ad / 4, both affine in a patch."""
    image = (tl.program_id(0) // SHARES).to(tl.int64)
    k = image // B
    o = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    WW: tl.constexpr = (W + 2 * PAD - 2) // 2
    WINDOWS: tl.constexpr = ((H + 2 * PAD - 2) // 2) * WW
    SHARE: tl.constexpr = tl.cdiv(tl.cdiv(WINDOWS, BW), SHARES) * BW
    source, mean = _source(p_mean, image, B, SHARED, T)
    p_images += source * (C * (H + 2 * PAD) * (W + 2 * PAD))
    p_theta += k * theta_stride
    p_v += k * v_stride
    p_planes += image * ((1 + DUAL) * N)
    w, c = _rectified(p_theta, w_offset, g_offset, b_offset, p_planes, mean, o, C, N, T)
    if DUAL:
        wd, cd = _rectified_dual(p_theta, p_v, w_offset, g_offset, b_offset, p_planes, mean, o, C, N, T)
    first = (tl.program_id(0) % SHARES) * SHARE
    for w0 in range(first, tl.minimum(first + SHARE, WINDOWS), BW):
        window = w0 + tl.arange(0, BW)[None, :]
        total = tl.zeros([BW, BN], w.dtype)
        total_d = tl.zeros([BW, BN], w.dtype)
        for q in range(4):
            y, x = 2 * (window // WW) + q // 2, 2 * (window % WW) + q % 2
            p = tl.trans(_patches(p_images, y, x, window < WINDOWS, C, H, W, PAD, T))
            a = _product(p, w, PRECISION) + c
            total += block._kept(a, a)
            if DUAL:
                total_d += block._kept(a, _product(p, wd, PRECISION) + cd)
        row = w0 + tl.arange(0, BW)[:, None]
        at = image * (WINDOWS * N) + row * N + o
        tl.store(p_o + at, total, mask=(row < WINDOWS) & (o < N))
        if DUAL:
            tl.store(p_od + at, total_d, mask=(row < WINDOWS) & (o < N))


@triton.jit(do_not_specialize=["w_offset", "g_offset", "b_offset", "theta_stride", "B"])
def _patch_sums_kernel(
    p_sums, p_planes, p_images, p_mean, p_theta, p_go, p_god, w_offset, g_offset, b_offset,
    theta_stride, B,
    SHARED: tl.constexpr, PLANES: tl.constexpr, DUAL: tl.constexpr,
    SHARES: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Eq. 32: sums of A p and Ad p, or of Ad p alone, over a share of the windows; behind the taps the plain sum."""
    image = (tl.program_id(0) // SHARES).to(tl.int64)
    k = image // B
    o = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    WW: tl.constexpr = (W + 2 * PAD - 2) // 2
    WINDOWS: tl.constexpr = ((H + 2 * PAD - 2) // 2) * WW
    SHARE: tl.constexpr = tl.cdiv(tl.cdiv(WINDOWS, BW), SHARES) * BW
    source, mean = _source(p_mean, image, B, SHARED, T)
    p_images += source * (C * (H + 2 * PAD) * (W + 2 * PAD))
    p_theta += k * theta_stride
    w, c = _rectified(p_theta, w_offset, g_offset, b_offset, p_planes + image * (PLANES * N), mean, o, C, N, T)
    sum_a = tl.zeros([BN, T], w.dtype)
    sum_d = tl.zeros([BN, T], w.dtype)
    first = (tl.program_id(0) % SHARES) * SHARE
    for w0 in range(first, tl.minimum(first + SHARE, WINDOWS), BW):
        window = w0 + tl.arange(0, BW)[None, :]
        row = w0 + tl.arange(0, BW)[:, None]
        at = image * (WINDOWS * N) + row * N + o
        up_d = tl.load(p_god + at, mask=(row < WINDOWS) & (o < N), other=0.0)
        if DUAL:
            up = tl.load(p_go + at, mask=(row < WINDOWS) & (o < N), other=0.0)
        for q in range(4):
            y, x = 2 * (window // WW) + q // 2, 2 * (window % WW) + q % 2
            p = _patches(p_images, y, x, window < WINDOWS, C, H, W, PAD, T)
            a = _product(tl.trans(p), w, PRECISION) + c
            sum_d += _product(tl.trans(block._kept(a, up_d)), tl.trans(p), PRECISION)
            if DUAL:
                sum_a += _product(tl.trans(block._kept(a, up)), tl.trans(p), PRECISION)
    rows, tap = tl.program_id(1) * BN + tl.arange(0, BN)[:, None], tl.arange(0, T)[None, :]
    p_sums += tl.program_id(0).to(tl.int64) * ((1 + DUAL) * N * T)
    if DUAL:
        tl.store(p_sums + rows * T + tap, sum_a * 0.25, mask=rows < N)
        p_sums += N * T
    tl.store(p_sums + rows * T + tap, sum_d * 0.25, mask=rows < N)


@triton.jit
def _total(p_sums, o, C: tl.constexpr, N: tl.constexpr, T: tl.constexpr, SHARES: tl.constexpr, STRIDE: tl.constexpr):
    """A sum over patches [T, BN] from its shares, and the plain sum behind it [1, BN]."""
    tap = tl.arange(0, T)[:, None]
    total = tl.load(p_sums + o * T + tap, mask=o < N, other=0.0)
    for share in range(1, SHARES):
        total += tl.load(p_sums + share * STRIDE + o * T + tap, mask=o < N, other=0.0)
    plain = tl.sum(tl.where(tap == 9 * C, total, 0.0), axis=0, keep_dims=True)
    return tl.where(tap < 9 * C, total, 0.0), plain


@triton.jit(do_not_specialize=["w_offset", "g_offset", "theta_stride", "v_stride", "B"])
def _gradients_kernel(
    p_parts, p_quadratic, p_planes, p_mean, p_cov, p_sums, p_theta, p_v, w_offset, g_offset,
    theta_stride, v_stride, B,
    SHARED: tl.constexpr, PLANES: tl.constexpr, SHARES: tl.constexpr, DUAL: tl.constexpr, IMAGES: tl.constexpr,
    BN: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr,
    T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """An image's W', g' and b' (eq. 33-34, 16 or 6), and a few outputs' share of Q with q0 as its last row (eq. 36)."""
    image = tl.program_id(0).to(tl.int64)
    k = image // B
    M: tl.constexpr = (H + 2 * PAD - 2) * (W + 2 * PAD - 2)
    source, mean = _source(p_mean, image, B, SHARED, T)
    tap, column = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    cov = tl.load(p_cov + source * (T * T) + tap * T + column)
    p_theta += k * theta_stride
    p_v += k * v_stride
    p_parts += image * ((9 * C + 2) * N)
    p_planes += image * (PLANES * N)
    STRIDE: tl.constexpr = (1 + DUAL) * T * N
    p_sums += image * (SHARES * STRIDE)
    o = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    w = _filters(p_theta, w_offset, o, C, N, T)
    g = _vector(p_theta, g_offset, o, N)
    r = _vector(p_planes, 0, o, N)
    cw = _product(cov, w, PRECISION)
    if DUAL:
        v = _filters(p_v, w_offset, o, C, N, T)
        s = _vector(p_planes, N, o, N)
        h = _vector(p_v, g_offset, o, N) - r * s * g
        Ap, sum_a = _total(p_sums, o, C, N, T, SHARES, STRIDE)
        Adp, sum_d = _total(p_sums + N * T, o, C, N, T, SHARES, STRIDE)
        Ap -= mean * sum_a
        Adp -= mean * sum_d
        sum_an = r * tl.sum(w * Ap, axis=0, keep_dims=True)
        sum_dn = r * tl.sum(w * Adp, axis=0, keep_dims=True)
        sum_dnd = r * (tl.sum(v * Adp, axis=0, keep_dims=True) - s * sum_dn)  # eq. 13
        q = g * sum_dn / M
        k3 = -r * r * q
        k4 = -r * r * ((g * (sum_an + sum_dnd) + h * sum_dn) / M - r * q * s)
        gw = (r * g) * Ap + (r * h) * Adp + M * (k3 * _product(cov, v, PRECISION) + k4 * cw)
        gg, gb = sum_an + sum_dnd, sum_a
        if IMAGES:
            # Q is symmetric, so that its rows are its columns.
            quadratic = _product(w, tl.trans(k3 * v + k4 * w), PRECISION)
            quadratic += _product(v, tl.trans(k3 * w), PRECISION)
            linear = tl.sum(-r * (g * sum_a + h * sum_d) / M * w - r * g * sum_d / M * v, axis=1, keep_dims=True)
            constant = linear - tl.sum(quadratic * tl.trans(mean), axis=1, keep_dims=True)
            p_quadratic += (image * tl.num_programs(1) + tl.program_id(1)) * (T * T)
            tl.store(p_quadratic + tap * T + column, quadratic, mask=tap != 9 * C)
            tl.store(p_quadratic + 9 * C * T + tap, constant)
    else:
        Adp, gb = _total(p_sums, o, C, N, T, SHARES, STRIDE)
        Adp -= mean * gb
        gg = r * tl.sum(w * Adp, axis=0, keep_dims=True)
        gw = (r * g) * (Adp - (r * gg) * cw)
    tl.store(p_parts + o * (9 * C) + tap, gw, mask=(tap < 9 * C) & (o < N))
    tl.store(p_parts + 9 * C * N + o, gg, mask=o < N)
    tl.store(p_parts + (9 * C + 1) * N + o, gb, mask=o < N)


@triton.jit
def _pulled(p, w, wd, c, up, up_d, PRECISION: tl.constexpr):
    """A w1 + Ad w2 for patches p [BW, T] (eq. 35), a few outputs' share."""
    a = _product(p, w, PRECISION) + c
    share = _product(block._kept(a, up), tl.trans(w), PRECISION)
    return share + _product(block._kept(a, up_d), tl.trans(wd), PRECISION)


@triton.jit(
    do_not_specialize=[
        "w_offset", "g_offset", "b_offset", "theta_stride", "v_stride", "B",
    ]
)  # fmt: skip
def _patch_gradient_kernel(
    p_patches, p_planes, p_images, p_mean, p_quadratic, p_theta, p_v, p_go, p_god, w_offset, g_offset, b_offset,
    theta_stride, v_stride, B,
    SHARED: tl.constexpr, SHARES: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Eq. 35 for every pixel of the map, windows that are not pooled included."""
    ROWS: tl.constexpr = H + 2 * PAD - 2
    COLUMNS: tl.constexpr = W + 2 * PAD - 2
    WW: tl.constexpr = (COLUMNS + 1) // 2
    WINDOWS: tl.constexpr = ((ROWS + 1) // 2) * WW
    CHUNKS: tl.constexpr = tl.cdiv(WINDOWS, BW)
    image = (tl.program_id(0) // CHUNKS).to(tl.int64)
    w0 = (tl.program_id(0) % CHUNKS) * BW
    k = image // B
    source, mean = _source(p_mean, image, B, SHARED, T)
    p_images += source * (C * (H + 2 * PAD) * (W + 2 * PAD))
    p_theta += k * theta_stride
    p_v += k * v_stride
    p_planes += image * (2 * N)
    p_patches += image * (4 * 9 * C * WINDOWS)
    tap, column = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    p_quadratic += image * (SHARES * T * T) + tap * T + column
    quadratic = tl.load(p_quadratic)
    for share in range(1, SHARES):
        quadratic += tl.load(p_quadratic + share * (T * T))

    window = w0 + tl.arange(0, BW)[None, :]
    row = w0 + tl.arange(0, BW)[:, None]
    pooled = (row // WW < ROWS // 2) & (row % WW < COLUMNS // 2)
    at = image * ((ROWS // 2) * (COLUMNS // 2) * N) + ((row // WW) * (COLUMNS // 2) + row % WW) * N
    # A pixel of the windows at a time: four patches and their gradients would not fit into registers.
    for q in range(4):
        y, x = 2 * (window // WW) + q // 2, 2 * (window % WW) + q % 2
        exists = (window < WINDOWS) & (y < ROWS) & (x < COLUMNS)
        p = tl.trans(_patches(p_images, y, x, exists, C, H, W, PAD, T))
        gp = _product(p, quadratic, PRECISION)
        for o0 in range(0, N, BN):
            o = o0 + tl.arange(0, BN)[None, :]
            w, c = _rectified(p_theta, w_offset, g_offset, b_offset, p_planes, mean, o, C, N, T)
            wd, _ = _rectified_dual(p_theta, p_v, w_offset, g_offset, b_offset, p_planes, mean, o, C, N, T)
            up = tl.load(p_go + at + o, mask=pooled & (o < N), other=0.0)
            up_d = tl.load(p_god + at + o, mask=pooled & (o < N), other=0.0)
            a = _product(p, w, PRECISION) + c
            gp += _product(block._kept(a, up), tl.trans(w), PRECISION)
            gp += _product(block._kept(a, up_d), tl.trans(wd), PRECISION)
        # Windows innermost: the next kernel reads neighbouring pixels.
        place = (q * 9 * C + column) * WINDOWS + row
        tl.store(p_patches + place, gp, mask=(column < 9 * C) & (row < WINDOWS))


@triton.jit
def _fold_kernel(
    p_gx, p_patches,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The transpose of taking patches: a pixel's gradient is the sum over the patches that it is in."""
    ROWS: tl.constexpr = H + 2 * PAD - 2
    COLUMNS: tl.constexpr = W + 2 * PAD - 2
    WW: tl.constexpr = (COLUMNS + 1) // 2
    WINDOWS: tl.constexpr = ((ROWS + 1) // 2) * WW
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    p_patches += image * (4 * 9 * C * WINDOWS)
    for c in tl.static_range(C):
        total = tl.zeros([BM], p_gx.dtype.element_ty)
        for tap in tl.static_range(9):
            y, x = pixel // W + (PAD - tap // 3), pixel % W + (PAD - tap % 3)
            inside = (y >= 0) & (y < ROWS) & (x >= 0) & (x < COLUMNS) & (pixel < H * W)
            place = ((y % 2 * 2 + x % 2) * (9 * C) + c * 9 + tap) * WINDOWS + (y // 2) * WW + x // 2
            total += tl.load(p_patches + place, mask=inside, other=0.0)
        tl.store(p_gx + image * (C * H * W) + c * (H * W) + pixel, total, mask=pixel < H * W)


# The same in plain torch, any floating dtype: what the kernels are compared with.


def naive_forward(x: Tensor, theta: Tensor, where: FirstBlock, *, precision: str) -> tuple[Tensor, Tensor]:
    """Twin of :func:`forward`; `precision` is that of the dtype."""
    z = _filtered(_unfolded(x, where), theta, where)
    return block.naive_forward(z, *_affine(theta, where))


def naive_tangent(
    x: Tensor, theta: Tensor, v: Tensor, where: FirstBlock, *, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of :func:`tangent` (eq. 8 with hd = 0)."""
    p = _unfolded(x, where)
    z, zd = _filtered(p, theta, where), _filtered(p, v, where)
    return block.naive_tangent(z, zd, *_affine(theta, where), *_affine(v, where))


def naive_backward(
    x: Tensor,
    theta: Tensor,
    stats: Tensor,
    god: Tensor,
    where: FirstBlock,
    out: Tensor,
    *,
    precision: str,
    accumulate: bool = False,
) -> None:
    """Twin of :func:`backward` (eq. 5-7)."""
    p = _unfolded(x, where)
    z = _filtered(p, theta, where)
    gzd = block.naive_backward(z, stats, *_affine(theta, where), god, out, where.g, where.b, accumulate=accumulate)
    _filter_gradient(gzd, p, where, out, accumulate)


def naive_adjoint(
    x: Tensor,
    theta: Tensor,
    v: Tensor,
    stats: Tensor,
    go: Tensor,
    god: Tensor,
    where: FirstBlock,
    out: Tensor,
    *,
    precision: str,
    accumulate: bool = False,
    wants_images: bool = True,
) -> Tensor | None:
    """Twin of :func:`adjoint` (eq. 15-16, and 18-19 with hd = 0)."""
    p = _unfolded(x, where)
    z, zd = _filtered(p, theta, where), _filtered(p, v, where)
    norms = (*_affine(theta, where), *_affine(v, where))
    gz, gzd = block.naive_adjoint(z, zd, stats, *norms, go, god, out, where.g, where.b, accumulate=accumulate)
    _filter_gradient(gz, p, where, out, accumulate)
    if not wants_images:
        return None
    gp = torch.einsum("kbyxo,kot->kbtyx", gz, _filter_rows(theta, where))
    gp += torch.einsum("kbyxo,kot->kbtyx", gzd, _filter_rows(v, where))
    size = (where.height, where.width)
    gx = F.fold(gp.flatten(0, 1).flatten(2), size, kernel_size=3, padding=where.padding)
    return gx.unflatten(0, gp.shape[:2])


def _filter_rows(theta: Tensor, where: FirstBlock) -> Tensor:
    """The filters as rows of taps, `[K, outputs, 9 channels]`."""
    return theta[:, where.w : where.w + where.outputs * where.taps].unflatten(1, (where.outputs, where.taps))


def _affine(theta: Tensor, where: FirstBlock) -> tuple[Tensor, Tensor]:
    """The norm's weight and bias, `[K, outputs]` each."""
    return theta[:, where.g : where.g + where.outputs], theta[:, where.b : where.b + where.outputs]


def _unfolded(x: Tensor, where: FirstBlock) -> Tensor:
    """The image values under the filter at every pixel of the map, `[K, B, 9 channels, rows, columns]`."""
    p = F.unfold(x.flatten(0, 1), kernel_size=3, padding=where.padding)
    return p.unflatten(0, x.shape[:2]).unflatten(3, where.map)


def _filtered(p: Tensor, theta: Tensor, where: FirstBlock) -> Tensor:
    return torch.einsum("kbtyx,kot->kbyxo", p, _filter_rows(theta, where)).contiguous()


def _filter_gradient(gz: Tensor, p: Tensor, where: FirstBlock, out: Tensor, accumulate: bool) -> None:
    gradient = torch.einsum("kbyxo,kbtyx->kot", gz, p).flatten(1)
    columns = out[:, where.w : where.w + gradient.shape[1]]
    columns.copy_(columns + gradient if accumulate else gradient)
