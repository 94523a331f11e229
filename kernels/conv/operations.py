"""Batched 3x3 convolutions with weights of their own for each trajectory: forward, tangent, data and weight gradients.

Padding 1, stride 1, no bias. Activations are channels-last, `[K, B, H, W, C]` with K trajectories of B images. All are
implicit matrix products on the matrix units: a tile of positions (or of weights) is one program, and the nine shifted
reads take the place of an unfolded copy. Weights are packed once a step so that both directions contract over their
last dimension, which is what the matrix units of sm_90 want of 32-bit operands:

    z[p, o] = sum_t sum_i h[p + s_t, i] forward[o, t, i],     gh[p, i] = sum_t sum_o gz[p + s_t, o] backward[i, t, o]

with s_t the nine shifts and `backward[i, t, o] = forward[o, 8 - t, i]`: a data gradient is a convolution, too.
Nothing here adds floats atomically: weight gradients are summed in a fixed order in two stages.

Each operation has a second implementation by cuDNN, see :mod:`.cudnn`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ...errors import InputError
from ..launch import PRECISIONS, Cost, interpreted, launch
from . import cudnn
from .layer import TAPS, Layer, Weights

if TYPE_CHECKING:
    from ..aot import Production

# Kernels ------------------------------------------------------------------------------------------------------------


INTERPRETED = tl.constexpr(interpreted())


# Run-time integers are not specialised on: another batch size or offset must not compile another kernel.
@triton.jit(do_not_specialize=["stride", "offset", "spacing"])
def pack_kernel(
    p_forward,
    p_backward,
    p_theta,
    stride,
    offset,
    spacing,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tap of BLOCK x BLOCK filters: read in torch's order, write both packed orders."""
    blocks_i: tl.constexpr = (INPUTS + BLOCK - 1) // BLOCK
    tile = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64)
    trajectory = tl.program_id(2).to(tl.int64)
    tap = tile % 9
    i = tile // 9 % blocks_i * BLOCK + tl.arange(0, BLOCK)
    o = tile // (9 * blocks_i) * BLOCK + tl.arange(0, BLOCK)
    mask = (o < OUTPUTS)[:, None] & (i < INPUTS)[None, :]
    source = p_theta + trajectory * stride + offset + layer * spacing
    block = tl.load(source + (o[:, None] * INPUTS + i[None, :]) * 9 + tap, mask=mask, other=0.0)  # [o, i]
    block = block.to(p_forward.dtype.element_ty)
    start = (layer * tl.num_programs(2) + trajectory) * (9 * INPUTS * OUTPUTS)
    tl.store(p_forward + start + (o[:, None] * 9 + tap) * INPUTS + i[None, :], block, mask=mask)
    tl.store(p_backward + start + (i[None, :] * 9 + 8 - tap) * OUTPUTS + o[:, None], block, mask=mask)


@triton.jit
def border(position, positions, H: tl.constexpr, W: tl.constexpr):
    """Nine bits per position: bit t tells whether the image goes on there, shifted by s_t."""
    x = position % W
    y = position // W % H
    # Columns as bits 0, 1, 2 of three rows of three.
    columns = 2 + (x > 0).to(tl.int32) + (x < W - 1).to(tl.int32) * 4
    bits = columns * 8 + tl.where(y > 0, columns, 0) + tl.where(y < H - 1, columns * 64, 0)
    return tl.where(position < positions, bits, 0)


@triton.jit
def below(index, size: tl.constexpr, block: tl.constexpr):
    """`index < size`, a constant where blocks fit exactly."""
    if size % block == 0:
        inside = tl.full(index.shape, True, dtype=tl.int1)
    else:
        inside = index < size
    return inside


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """`acc` plus the matrix product of the two."""
    if PRECISION == "bf16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if INTERPRETED:  # products of bfloat16 are those of the bits taken as integers there
            a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32" if PRECISION == "tf32" else "ieee", out_dtype=acc.dtype)


@triton.jit(do_not_specialize=["batch"])
def convolution_kernel(
    p_z,
    p_h,
    p_w,
    p_h2,
    p_w2,
    batch,
    H: tl.constexpr,
    W: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Correlate: z = w * h, or z = w * h + w2 * h2 with PAIRS = 2.

    With SPLITS = 3, z is [SPLITS, K, B, H, W, O], and each program takes a row of taps.
    """
    taps: tl.constexpr = 9 // SPLITS
    chunks: tl.constexpr = (INPUTS + BLOCK_I - 1) // BLOCK_I
    positions = batch * (H * W)
    trajectory = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1) % SPLITS
    first = tl.program_id(0) * BLOCK_P
    row = tl.arange(0, BLOCK_P)
    o = tl.program_id(1) // SPLITS * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.arange(0, BLOCK_I)
    inside = border(first + row, positions, H, W)
    start = (trajectory * positions + first) * INPUTS
    p_h += start
    p_w += trajectory * (OUTPUTS * 9 * INPUTS)
    p_h2 += start
    p_w2 += trajectory * (OUTPUTS * 9 * INPUTS)
    o_h = row[:, None] * INPUTS + i[None, :]
    o_w = o[None, :] * (9 * INPUTS) + i[:, None]
    m_o = below(o, OUTPUTS, BLOCK_O)[None, :]
    acc = tl.zeros([BLOCK_P, BLOCK_O], dtype=p_z.dtype.element_ty)
    # The taps run innermost: nine steps in a row read nearly the same rows of h, which stay in L1 where the compiler
    # heeds .ca (Triton 3.9; before, copies of 16 bytes go around L1, and those of 8 would take the filters through it).
    for step in range(PAIRS * chunks * taps):
        tap = split * taps + step % taps
        chunk = step // taps
        b_h = p_h
        b_w = p_w
        if PAIRS == 2:
            second = chunk >= chunks
            chunk = tl.where(second, chunk - chunks, chunk)
            b_h = tl.where(second, p_h2, p_h)
            b_w = tl.where(second, p_w2, p_w)
        c = chunk * BLOCK_I
        b_h += ((tap // 3 - 1) * W + tap % 3 - 1) * INPUTS + c
        b_w += tap * INPUTS + c
        m_h = (((inside >> tap) & 1) != 0)[:, None]
        m_w = m_o
        if INPUTS % BLOCK_I != 0:
            m_h = m_h & (c + i < INPUTS)[None, :]
            m_w = m_w & (c + i < INPUTS)[:, None]
        a = tl.load(b_h + o_h, mask=m_h, other=0.0, cache_modifier=".ca")  # [positions, i]
        b = tl.load(b_w + o_w, mask=m_w, other=0.0)  # [i, o]
        acc = product(a, b, acc, PRECISION)
    m_z = (first + row < positions)[:, None] & m_o
    start = ((split * tl.num_programs(2) + trajectory) * positions + first) * OUTPUTS
    tl.store(p_z + start + row[:, None] * OUTPUTS + o[None, :], acc, mask=m_z)


@triton.jit(do_not_specialize=["batch"])
def convolution_dual_kernel(
    p_z,
    p_zd,
    p_h,
    p_hd,
    p_w,
    p_v,
    batch,
    H: tl.constexpr,
    W: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Both of a tangent: z = w * h and zd = w * hd + v * h: three products for four loads.

    With SPLITS = 3, z and zd are the halves of [SPLITS, 2, K, B, H, W, O]; see `convolution_kernel`.
    """
    taps: tl.constexpr = 9 // SPLITS
    chunks: tl.constexpr = (INPUTS + BLOCK_I - 1) // BLOCK_I
    positions = batch * (H * W)
    trajectory = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1) % SPLITS
    first = tl.program_id(0) * BLOCK_P
    row = tl.arange(0, BLOCK_P)
    o = tl.program_id(1) // SPLITS * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.arange(0, BLOCK_I)
    inside = border(first + row, positions, H, W)
    start = (trajectory * positions + first) * INPUTS
    p_h += start
    p_hd += start
    p_w += trajectory * (OUTPUTS * 9 * INPUTS)
    p_v += trajectory * (OUTPUTS * 9 * INPUTS)
    o_h = row[:, None] * INPUTS + i[None, :]
    o_w = o[None, :] * (9 * INPUTS) + i[:, None]
    m_o = below(o, OUTPUTS, BLOCK_O)[None, :]
    z = tl.zeros([BLOCK_P, BLOCK_O], dtype=p_z.dtype.element_ty)
    zd = tl.zeros([BLOCK_P, BLOCK_O], dtype=p_z.dtype.element_ty)
    for step in range(chunks * taps):
        tap = split * taps + step % taps
        c = step // taps * BLOCK_I
        shift = ((tap // 3 - 1) * W + tap % 3 - 1) * INPUTS + c
        m_h = (((inside >> tap) & 1) != 0)[:, None]
        m_w = m_o
        if INPUTS % BLOCK_I != 0:
            m_h = m_h & (c + i < INPUTS)[None, :]
            m_w = m_w & (c + i < INPUTS)[:, None]
        h = tl.load(p_h + shift + o_h, mask=m_h, other=0.0, cache_modifier=".ca")
        hd = tl.load(p_hd + shift + o_h, mask=m_h, other=0.0, cache_modifier=".ca")
        w = tl.load(p_w + (tap * INPUTS + c) + o_w, mask=m_w, other=0.0)
        v = tl.load(p_v + (tap * INPUTS + c) + o_w, mask=m_w, other=0.0)
        z = product(h, w, z, PRECISION)
        zd = product(hd, w, zd, PRECISION)
        zd = product(h, v, zd, PRECISION)
    start = ((2 * split * tl.num_programs(2) + trajectory) * positions + first) * OUTPUTS
    o_z = row[:, None] * OUTPUTS + o[None, :]
    m_z = (first + row < positions)[:, None] & m_o
    tl.store(p_z + start + o_z, z, mask=m_z)
    tl.store(p_zd + start + o_z, zd, mask=m_z)


@triton.jit
def split_sum_kernel(p_z, p_part, entries, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """z[e] = sum over the splits of part[split, e], in order."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    total = tl.load(p_part + entry, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(p_part + split * entries + entry, mask=inside, other=0.0)
    tl.store(p_z + entry, total, mask=inside)


@triton.jit(do_not_specialize=["batch", "span"])
def weight_gradient_kernel(
    p_part,
    p_h,
    p_g,
    p_h2,
    p_g2,
    batch,
    span,
    H: tl.constexpr,
    W: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Three neighbouring taps' sums over `span` positions (a multiple of BLOCK_P; the last program may have fewer).

    part[k, split, t, o, i] = sum_p g[p, o] h[p + s_t, i], with PAIRS = 2 plus the same of g2 and h2.
    """
    blocks_i: tl.constexpr = (INPUTS + BLOCK_I - 1) // BLOCK_I
    positions = batch * (H * W)
    tile = tl.program_id(0)
    split = tl.program_id(1)
    trajectory = tl.program_id(2).to(tl.int64)
    dy = tile % 3 - 1
    i = tile // 3 % blocks_i * BLOCK_I + tl.arange(0, BLOCK_I)
    o = tile // (3 * blocks_i) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_i = below(i, INPUTS, BLOCK_I)
    m_o = below(o, OUTPUTS, BLOCK_O)
    first = split * span
    row = tl.arange(0, BLOCK_P)
    steps = tl.cdiv(tl.minimum(span, positions - first), BLOCK_P)
    o_g = row[:, None] * OUTPUTS + o[None, :]
    o_h = row[None, :] * INPUTS + tl.max_contiguous(i, 2)[:, None]
    left = tl.zeros([BLOCK_I, BLOCK_O], dtype=p_part.dtype.element_ty)
    middle = left
    right = left
    for step in range(PAIRS * steps):
        turn = step
        b_h = p_h
        b_g = p_g
        if PAIRS == 2:
            second = step >= steps
            turn = tl.where(second, step - steps, step)
            b_h = tl.where(second, p_h2, p_h)
            b_g = tl.where(second, p_g2, p_g)
        begin = first + turn * BLOCK_P
        b_h += (trajectory * positions + begin + dy * W) * INPUTS
        b_g += (trajectory * positions + begin) * OUTPUTS
        position = begin + row
        x = position % W
        y = position // W % H + dy
        m_g = position < positions
        m_h = m_g & (y >= 0) & (y < H)
        m_left = m_h & (x > 0)
        m_right = m_h & (x < W - 1)
        m_h = m_h[None, :] & m_i[:, None]
        m_left = m_left[None, :] & m_i[:, None]
        m_right = m_right[None, :] & m_i[:, None]
        g = tl.load(b_g + o_g, mask=m_g[:, None] & m_o[None, :], other=0.0)  # [positions, o]
        # Nearly the same rows three times: twice out of L1, which copies of 8 bytes pass and those of 16 go around.
        h = tl.load(b_h - INPUTS + o_h, mask=m_left, other=0.0, cache_modifier=".ca")  # [i, positions]
        left = product(h, g, left, PRECISION)
        h = tl.load(b_h + o_h, mask=m_h, other=0.0, cache_modifier=".ca")
        middle = product(h, g, middle, PRECISION)
        h = tl.load(b_h + INPUTS + o_h, mask=m_right, other=0.0, cache_modifier=".ca")
        right = product(h, g, right, PRECISION)
    p_part += ((trajectory * tl.num_programs(1) + split) * 9 + tile % 3 * 3) * (OUTPUTS * INPUTS)
    o_part = o[None, :] * INPUTS + i[:, None]
    m_part = m_o[None, :] & m_i[:, None]
    tl.store(p_part + o_part, left, mask=m_part)
    tl.store(p_part + OUTPUTS * INPUTS + o_part, middle, mask=m_part)
    tl.store(p_part + 2 * OUTPUTS * INPUTS + o_part, right, mask=m_part)


@triton.jit(do_not_specialize=["splits", "stride", "offset"])
def weight_gradient_sum_kernel(
    p_out,
    p_part,
    splits,
    stride,
    offset,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[k, offset + (o INPUTS + i) 9 + t] = sum over the splits of part[k, split, t, o, i], in a fixed order."""
    trajectory = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)
    m_e = element < OUTPUTS * INPUTS * 9
    source = p_part + trajectory * splits * (OUTPUTS * INPUTS * 9)
    o_part = split[:, None] * (OUTPUTS * INPUTS * 9) + (element % 9 * (OUTPUTS * INPUTS) + element // 9)[None, :]
    block = tl.load(source + o_part, mask=(split < splits)[:, None] & m_e[None, :], other=0.0)  # [splits, elements]
    total = tl.sum(block, 0)
    target = p_out + trajectory * stride + offset + element
    if ACCUMULATE:
        total += tl.load(target, mask=m_e, other=0.0)
    tl.store(target, total, mask=m_e)


# Layers and tiles ---------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """What one program computes: so many positions x outputs x inputs at a time."""

    positions: int
    outputs: int
    inputs: int
    warps: int
    stages: int


SMS = 132
"""Multiprocessors of an H200; the grids below are made to fill it. Other GPUs take the same tables."""

_RATES = {"tf32": 1024, "bf16": 2048, "ieee": 128, "float64": 128}
"""Multiply-adds per clock and multiprocessor (wgmma; other matrix instructions reach `_OLDER` of it)."""
_OLDER = 0.62
_SHARED = 128
"""Bytes per clock between a multiprocessor and its shared memory."""
_L2 = 4000
"""Bytes per clock from L2 to all multiprocessors."""

_START = 2500
"""Clocks until a launch's first products, or to its results."""

_TILES = {
    "tf32": (
        Tile(256, 128, 32, 8, 4),
        Tile(128, 128, 32, 8, 3),
        Tile(128, 64, 32, 4, 4),
        Tile(64, 64, 64, 4, 4),
        Tile(64, 32, 64, 4, 4),
        Tile(32, 32, 64, 4, 4),
    ),
    "bf16": (
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 4, 3),
        Tile(64, 64, 64, 4, 4),
        Tile(32, 64, 64, 4, 4),
        Tile(32, 32, 64, 4, 4),
    ),
    "ieee": (Tile(64, 64, 16, 8, 3), Tile(32, 32, 16, 4, 3)),
    "float64": (Tile(64, 64, 16, 8, 2), Tile(32, 32, 16, 4, 2)),
}
_DUAL_TILES = {
    "tf32": (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 4), Tile(64, 32, 32, 4, 4), Tile(32, 64, 32, 4, 4)),
    "bf16": (Tile(128, 128, 32, 8, 3), Tile(64, 64, 64, 4, 3), Tile(32, 64, 64, 4, 3)),
    "ieee": (Tile(64, 64, 16, 8, 2), Tile(32, 32, 16, 4, 3)),
    "float64": (Tile(32, 64, 16, 8, 2), Tile(32, 32, 16, 4, 2)),
}
# Products of 32-bit operands by wgmma would need both transposed on the way to shared memory; mma.sync reads them as
# they lie, and that is what the compiler takes for fewer than 64 inputs a tile. (A product in three dimensions would do
# for larger tiles, but Triton before 3.9 then gives every warp the whole of it.)
_GRADIENT_TILES = {
    "tf32": (Tile(32, 128, 32, 4, 3), Tile(16, 64, 32, 2, 4), Tile(32, 64, 32, 4, 3)),
    "bf16": (Tile(64, 128, 64, 8, 3), Tile(32, 64, 64, 4, 3)),
    "ieee": (Tile(16, 64, 32, 8, 3), Tile(16, 32, 32, 4, 3)),
    "float64": (Tile(16, 64, 32, 8, 3), Tile(16, 32, 32, 4, 3)),
}


def _block(size: int, most: int) -> int:
    """A power of two from 16 to `most` that covers `size` where it can."""
    return min(most, max(16, triton.next_power_of_2(size)))


@lru_cache(maxsize=4096)
def convolution_tile(layer: Layer, *, products: int = 1, dual: bool = False) -> tuple[Tile, int]:
    """The tile of least estimated time for a convolution, from a fixed list, and into how many parts the taps go.

    Args:
        products: matrix products per position: 1, 2 (`W * hd + V * h`) or 3 (dual).
        dual: both results in one kernel.
    """
    candidates = {
        (
            tile._replace(outputs=_block(layer.outputs, tile.outputs), inputs=_block(layer.inputs, tile.inputs)),
            splits,
        ): 0
        for tile in (_DUAL_TILES if dual else _TILES)[layer.kind]
        for splits in (1, 3)
    }
    loads = 2 if dual else products
    return min(candidates, key=lambda found: _clocks(layer, found[0], found[1], products, loads))


def _clocks(layer: Layer, tile: Tile, splits: int, products: int, loads: int) -> float:
    """Estimated clocks of a convolution: what takes longest of products, shared memory and L2, and latency."""
    size = layer.dtype.itemsize
    depth = TAPS // splits * layer.inputs
    programs = layer.trajectories * triton.cdiv(layer.positions, tile.positions)
    programs *= triton.cdiv(layer.outputs, tile.outputs) * splits
    steps = TAPS // splits * triton.cdiv(layer.inputs, tile.inputs) * (2 if products == 2 else 1)
    latency = _START + steps * 150.0
    block, rate = tile.positions * tile.outputs, float(_RATES[layer.kind])
    if layer.kind in ("tf32", "bf16") and tile.positions >= 64:
        reads = triton.cdiv(tile.positions, 64) * (64 + tile.outputs)  # a warp group takes 64 rows
    else:
        reads = block * 3 / 32  # warps of 16 x 32
        rate *= _OLDER if layer.kind in ("tf32", "bf16") else 1
        latency += min(products, 2) * depth / 8 * 33  # products wait for those before
    shared = (loads * (tile.positions + tile.outputs) + products * reads) * depth * size / _SHARED
    busy = max(products * block * depth / rate, shared)
    moved = programs * loads * (tile.positions + tile.outputs) * depth * size / _L2
    total = max(triton.cdiv(programs, SMS) * busy, busy + latency, moved)
    if splits > 1:
        results = layer.trajectories * layer.positions * layer.outputs * (2 if products == 3 else 1)
        total += _START + (2 * splits + 1) * results * size / _L2
        total *= 1.1  # only for a gain worth another launch
    return total


@lru_cache(maxsize=4096)
def gradient_tile(layer: Layer, *, products: int = 1) -> tuple[Tile, int]:
    """The tile of a weight gradient, and the positions that one program sums over (a multiple of the tile's)."""
    candidates: dict[tuple[Tile, int], None] = {}
    for tile in _GRADIENT_TILES[layer.kind]:
        tile = tile._replace(outputs=_block(layer.outputs, tile.outputs), inputs=_block(layer.inputs, tile.inputs))
        programs = _gradient_programs(layer, tile)
        for splits in range(1, max(1, min(64, 2 * SMS // programs, layer.positions // tile.positions)) + 1):
            span = triton.cdiv(triton.cdiv(layer.positions, splits), tile.positions) * tile.positions
            candidates[tile, span] = None
    return min(candidates, key=lambda found: _gradient_clocks(layer, found[0], found[1], products))


def _gradient_programs(layer: Layer, tile: Tile) -> int:
    """Programs that do not differ in their positions; each has three taps."""
    return 3 * layer.trajectories * triton.cdiv(layer.outputs, tile.outputs) * triton.cdiv(layer.inputs, tile.inputs)


def _gradient_clocks(layer: Layer, tile: Tile, span: int, products: int) -> float:
    """Estimated clocks of both stages of a weight gradient; partial sums are written and read once."""
    splits, size = triton.cdiv(layer.positions, span), layer.dtype.itemsize
    programs = _gradient_programs(layer, tile) * splits
    rate = _RATES[layer.kind] * (_OLDER if layer.kind == "tf32" else 1)
    reads = 3 * tile.inputs * tile.warps + tile.outputs  # warps stand side by side along the outputs
    shared = (tile.outputs + 6 * tile.inputs + reads) * size / _SHARED  # what passes L1 counts twice
    turns = triton.cdiv(programs, SMS)
    busy = products * span * max(3 * tile.outputs * tile.inputs / rate, shared)
    moved = programs * products * span * (tile.outputs + tile.inputs) * size / _L2
    latency = _START + products * triton.cdiv(span, tile.positions) * 300
    partial = 2 * splits * layer.trajectories * layer.parameters * size / _L2
    if turns * tile.warps < 8:
        busy *= 1.4  # one warp for each of the four schedulers leaves them idle whenever it waits
    return max(turns * busy, moved, latency) + _START + partial


# Launches -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A launch without its tensors; `numbers` are the run-time integers behind them."""

    kernel: Any
    grid: tuple[int, int, int]
    numbers: tuple[int, ...]
    options: dict[str, Any]
    cost: Cost

    def __call__(self, *tensors: Tensor) -> None:
        launch(self.kernel, self.grid, *tensors, *self.numbers, cost=self.cost, **self.options)


@lru_cache(maxsize=4096)
def plan_convolution(layer: Layer, *, pairs: int = 1) -> tuple[Plan, int]:
    """One convolution, or the sum of two (`pairs` = 2), and into how many parts it comes."""
    tile, splits = convolution_tile(layer, products=pairs)
    cost = Cost(layer.bytes(inputs=pairs, outputs=splits, weights=pairs), pairs * layer.flops)
    options = {**_options(layer, tile), "PAIRS": pairs, "SPLITS": splits}
    return Plan(convolution_kernel, _grid(layer, tile, splits), (layer.batch,), options, cost), splits


@lru_cache(maxsize=4096)
def plan_dual(layer: Layer) -> tuple[Plan, int]:
    """`w * h` and `w * hd + v * h`, and into how many parts they come."""
    tile, splits = convolution_tile(layer, products=3, dual=True)
    cost = Cost(layer.bytes(inputs=2, outputs=2 * splits, weights=2), 3 * layer.flops)
    options = {**_options(layer, tile), "SPLITS": splits}
    return Plan(convolution_dual_kernel, _grid(layer, tile, splits), (layer.batch,), options, cost), splits


def _grid(layer: Layer, tile: Tile, splits: int) -> tuple[int, int, int]:
    outputs = triton.cdiv(layer.outputs, tile.outputs)
    return triton.cdiv(layer.positions, tile.positions), outputs * splits, layer.trajectories


@lru_cache(maxsize=4096)
def plan_split_sum(layer: Layer, splits: int, maps: int) -> Plan:
    """The sum of the parts of `maps` outputs."""
    entries = maps * layer.trajectories * layer.positions * layer.outputs
    cost = Cost((splits + 1) * entries * layer.dtype.itemsize, (splits - 1) * entries)
    options = dict(SPLITS=splits, BLOCK=1024, num_warps=8)
    return Plan(split_sum_kernel, (triton.cdiv(entries, 1024), 1, 1), (entries,), options, cost)


@lru_cache(maxsize=4096)
def plan_weight_gradient(layer: Layer, *, pairs: int = 1) -> tuple[Plan, int]:
    """The first stage of a weight gradient, and into how many sums it splits the positions."""
    tile, span = gradient_tile(layer, products=pairs)
    splits = triton.cdiv(layer.positions, span)
    tiles = _gradient_programs(layer, tile) // layer.trajectories
    cost = Cost(layer.bytes(inputs=pairs, outputs=pairs, weights=splits), pairs * layer.flops)
    options = {**_options(layer, tile), "PAIRS": pairs}
    return Plan(weight_gradient_kernel, (tiles, splits, layer.trajectories), (layer.batch, span), options, cost), splits


@lru_cache(maxsize=4096)
def plan_weight_gradient_sum(layer: Layer, splits: int, stride: int, offset: int, accumulate: bool) -> Plan:
    """The second stage: adds the partial sums and writes torch's order."""
    # One element per thread: at 128 x 128 channels enough programs to fill the machine.
    options = dict(
        INPUTS=layer.inputs, OUTPUTS=layer.outputs, ACCUMULATE=accumulate, SPLITS=triton.next_power_of_2(splits)
    )
    options |= dict(BLOCK=128, num_warps=4)
    grid = (triton.cdiv(layer.parameters, 128), layer.trajectories, 1)
    cost = Cost(layer.bytes(weights=splits + 1 + accumulate), splits * layer.trajectories * layer.parameters)
    return Plan(weight_gradient_sum_kernel, grid, (splits, stride, offset), options, cost)


def _options(layer: Layer, tile: Tile) -> dict[str, Any]:
    """The compile-time arguments that the three large kernels share."""
    return dict(
        H=layer.height,
        W=layer.width,
        INPUTS=layer.inputs,
        OUTPUTS=layer.outputs,
        PRECISION=layer.precision,
        BLOCK_P=tile.positions,
        BLOCK_O=tile.outputs,
        BLOCK_I=tile.inputs,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


# Checks -------------------------------------------------------------------------------------------------------------


def _layer(maps: dict[str, Tensor], weights: dict[str, Weights], precision: str, *, transposed: bool = False) -> Layer:
    """The layer that these tensors belong to; `transposed`: the maps have the output channels.

    Raises:
        InputError: shapes, dtypes, devices or strides do not fit together.
    """
    (first, h), (name, w) = next(iter(maps.items())), next(iter(weights.items()))
    if h.dim() != 5:
        raise InputError(f"{first} must be [K, B, H, W, C]; got {list(h.shape)}")
    trajectories, batch, height, width, channels = h.shape
    outputs, inputs = w.forward.shape[1], w.forward.shape[3]
    for label, weight in weights.items():
        if weight.forward.shape != (trajectories, outputs, TAPS, inputs):
            raise InputError(
                f"{label} must be packed for {trajectories} trajectories, like {name} and {first}; "
                f"got {list(weight.forward.shape)}"
            )
    if channels != (outputs if transposed else inputs):
        wanted = outputs if transposed else inputs
        raise InputError(
            f"{first} has {channels} channels, but {name} wants {wanted}; pack the layer that it belongs to"
        )
    _same(maps)
    layer = _checked(Layer(trajectories, batch, height, width, inputs, outputs, precision, h.dtype, h.device))
    for label, weight in weights.items():
        fitting = (h.dtype, torch.bfloat16) if precision == "bf16" else (h.dtype,)
        if weight.forward.dtype not in fitting or weight.forward.device != h.device:
            raise InputError(
                f"{label} is packed as {weight.forward.dtype} on {weight.forward.device}, but {first} is {h.dtype} on "
                f"{h.device} and the precision {precision!r}; pack it for them"
            )
    return layer


def _gradient_layer(inputs: dict[str, Tensor], outputs: dict[str, Tensor], precision: str) -> Layer:
    """The layer of a weight gradient.

    Raises:
        InputError: as :func:`_layer`.
    """
    (name, h), (other, g) = next(iter(inputs.items())), next(iter(outputs.items()))
    if h.dim() != 5 or g.dim() != 5 or h.shape[:4] != g.shape[:4]:
        raise InputError(
            f"{name} and {other} must be [K, B, H, W, C] alike up to C; got {list(h.shape)}, {list(g.shape)}"
        )
    _same(inputs)
    _same(outputs)
    if g.dtype != h.dtype:
        raise InputError(f"{name} is {h.dtype}, {other} is {g.dtype}; give both in one dtype")
    trajectories, batch, height, width, channels = h.shape
    return _checked(Layer(trajectories, batch, height, width, channels, g.shape[4], precision, h.dtype, h.device))


def _same(maps: dict[str, Tensor]) -> None:
    name, h = next(iter(maps.items()))
    for label, tensor in maps.items():
        if tensor.shape != h.shape or tensor.dtype != h.dtype or tensor.device != h.device:
            raise InputError(
                f"{label} must be like {name}, {h.dtype} {list(h.shape)} on {h.device}; "
                f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise InputError(f"{label} must be contiguous [K, B, H, W, C]; got strides {tensor.stride()}")


def _checked(layer: Layer) -> Layer:
    if layer.precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}; got {layer.precision!r}")
    if layer.dtype not in (torch.float32, torch.float64):
        raise InputError(f"convolutions are in float32 or float64; got {layer.dtype}")
    if layer.dtype == torch.float64 and layer.precision != "ieee":
        raise InputError(f"float64 has precision 'ieee' only; got {layer.precision!r}")
    if layer.positions >= 2**31:
        raise InputError(
            f"{layer.batch} images of {layer.height} x {layer.width} are too many at once; split the batch"
        )
    return layer


def _check_out(layer: Layer, out: Tensor, offset: int) -> None:
    rows = out.dim() == 2 and out.shape[0] == layer.trajectories and out.stride(1) == 1
    if not rows or out.dtype != layer.dtype or not 0 <= offset <= out.shape[1] - layer.parameters:
        raise InputError(
            f"out must be {layer.dtype} [{layer.trajectories}, P] with {layer.parameters} entries from {offset} on; "
            f"got {out.dtype} {list(out.shape)} with strides {out.stride()}"
        )


# Operations ---------------------------------------------------------------------------------------------------------


def pack(theta: Tensor, offset: int, inputs: int, outputs: int, *, precision: str = "tf32") -> Weights:
    """One layer's filters from flat parameters.

    Args:
        theta: `[K, P]`, float32 or float64.
        offset: where in a row the layer's `[outputs, inputs, 3, 3]` begins.
        precision: "bf16" keeps them in bfloat16, which "bf16" products would round them to anyway.

    Example:
        >>> packed = naive_pack(torch.arange(36.0)[None], 0, 2, 2)
        >>> packed.forward[0, 1, :, 0]
        tensor([18., 19., 20., 21., 22., 23., 24., 25., 26.])
    """
    return pack_all(theta, [(offset, inputs, outputs)], precision=precision)[0]


def pack_all(theta: Tensor, layers: Sequence[tuple[int, int, int]], *, precision: str = "tf32") -> list[Weights]:
    """:func:`pack` of several layers (offset, inputs, outputs); equal layers evenly apart take one launch.

    Raises:
        InputError: theta is not `[K, P]`, or a layer does not lie inside it.
    """
    if theta.dim() != 2 or theta.stride(1) != 1 or theta.dtype not in (torch.float32, torch.float64):
        raise InputError(f"theta must be float32 or float64 [K, P]; got {theta.dtype} {list(theta.shape)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    for offset, inputs, outputs in layers:
        if not 0 <= offset <= theta.shape[1] - TAPS * inputs * outputs:
            raise InputError(
                f"a layer of {outputs} x {inputs} filters at {offset} does not lie in {theta.shape[1]} parameters"
            )
    packed: list[Weights] = []
    while len(packed) < len(layers):
        packed += _pack_run(theta, _evenly_spaced(layers[len(packed) :]), precision)
    return packed


def _evenly_spaced(layers: Sequence[tuple[int, int, int]]) -> Sequence[tuple[int, int, int]]:
    """The longest beginning whose layers have the same channels and stand equally far apart."""
    run = 1
    while (
        run < len(layers)
        and layers[run][1:] == layers[0][1:]
        and layers[run][0] - layers[run - 1][0] == layers[1][0] - layers[0][0] > 0
    ):
        run += 1
    return layers[:run]


def _pack_run(theta: Tensor, layers: Sequence[tuple[int, int, int]], precision: str) -> list[Weights]:
    offset, inputs, outputs = layers[0]
    spacing = layers[1][0] - offset if len(layers) > 1 else 0
    count, trajectories = len(layers), theta.shape[0]
    dtype = torch.bfloat16 if precision == "bf16" and theta.dtype == torch.float32 else theta.dtype
    forward = theta.new_empty((count, trajectories, outputs, TAPS, inputs), dtype=dtype)
    backward = theta.new_empty((count, trajectories, inputs, TAPS, outputs), dtype=dtype)
    plan_pack(count, trajectories, inputs, outputs, theta.stride(0), offset, spacing, theta.dtype, dtype)(
        forward, backward, theta
    )
    return [Weights(forward[index], backward[index]) for index in range(count)]


@lru_cache(maxsize=4096)
def plan_pack(
    count: int,
    trajectories: int,
    inputs: int,
    outputs: int,
    stride: int,
    offset: int,
    spacing: int,
    source: torch.dtype,
    target: torch.dtype,
) -> Plan:
    """Filters of `count` layers, `spacing` entries apart, for all trajectories."""
    block = 32
    grid = (TAPS * triton.cdiv(inputs, block) * triton.cdiv(outputs, block), count, trajectories)
    entries = count * trajectories * TAPS * inputs * outputs
    cost = Cost(entries * (source.itemsize + 2 * target.itemsize))
    options = dict(INPUTS=inputs, OUTPUTS=outputs, BLOCK=block, num_warps=4)
    return Plan(pack_kernel, grid, (stride, offset, spacing), options, cost)


def forward(h: Tensor, w: Weights, *, precision: str) -> Tensor:
    """`z = W * h`.

    Args:
        h: `[K, B, H, W, I]`, contiguous.
        precision: how float32 products are formed ("tf32", "ieee", "bf16"); "ieee" for float64.

    Returns:
        `[K, B, H, W, O]`.
    """
    layer = _layer({"h": h}, {"w": w}, precision)
    return _run("forward", layer, h, w)


def tangent(
    h: Tensor, hd: Tensor, w: Weights, v: Weights, *, precision: str, with_primal: bool = True
) -> tuple[Tensor | None, Tensor]:
    """`z = W * h` (None without `with_primal`) and its tangent `zd = W * hd + V * h` (8)."""
    layer = _layer({"h": h, "hd": hd}, {"w": w, "v": v}, precision)
    if with_primal:
        return _run("tangent", layer, h, hd, w, v)
    return None, _run("tangent_only", layer, h, hd, w, v)


def data_grad(gz: Tensor, w: Weights, *, precision: str) -> Tensor:
    """`gh = W^T gz` (7): `[K, B, H, W, O]` to `[K, B, H, W, I]`."""
    layer = _layer({"gz": gz}, {"w": w}, precision, transposed=True)
    return _run("data_grad", layer, gz, w)


def data_grad_dual(gz: Tensor, gzd: Tensor, w: Weights, v: Weights, *, precision: str) -> tuple[Tensor, Tensor]:
    """`gh = W^T gz + V^T gzd` and `ghd = W^T gzd` (18)."""
    layer = _layer({"gz": gz, "gzd": gzd}, {"w": w, "v": v}, precision, transposed=True)
    return _run("data_grad_dual", layer, gz, gzd, w, v)


def weight_grad(h: Tensor, gz: Tensor, out: Tensor, offset: int, *, precision: str, accumulate: bool = False) -> None:
    """`gz (x) h` (7) into `out[:, offset : offset + 9 O I]`, in torch's order `[O, I, 3, 3]`.

    Args:
        out: flat gradients `[K, P]`.
        accumulate: add to what is there.
    """
    layer = _gradient_layer({"h": h}, {"gz": gz}, precision)
    _check_out(layer, out, offset)
    _run("weight_grad", layer, h, gz, out, offset, accumulate)


def weight_grad_dual(
    h: Tensor,
    hd: Tensor,
    gz: Tensor,
    gzd: Tensor,
    out: Tensor,
    offset: int,
    *,
    precision: str,
    accumulate: bool = False,
) -> None:
    """`gz (x) h + gzd (x) hd` (19), written as by :func:`weight_grad`."""
    layer = _gradient_layer({"h": h, "hd": hd}, {"gz": gz, "gzd": gzd}, precision)
    _check_out(layer, out, offset)
    _run("weight_grad_dual", layer, h, hd, gz, gzd, out, offset, accumulate)


# By Triton ----------------------------------------------------------------------------------------------------------


def _convolve(layer: Layer, pairs: int, *operands: Tensor) -> Tensor:
    plan, splits = plan_convolution(layer, pairs=pairs)
    z = operands[0].new_empty((layer.trajectories, layer.batch, layer.height, layer.width, layer.outputs))
    if splits == 1:
        plan(z, *operands)
    else:
        part = z.new_empty((splits, *z.shape))
        plan(part, *operands)
        plan_split_sum(layer, splits, 1)(z, part)
    return z


def _convolve_dual(layer: Layer, *operands: Tensor) -> tuple[Tensor, Tensor]:
    plan, splits = plan_dual(layer)
    shape = (layer.trajectories, layer.batch, layer.height, layer.width, layer.outputs)
    both = operands[0].new_empty((2, *shape))
    if splits == 1:
        plan(both[0], both[1], *operands)
    else:
        part = both.new_empty((splits, *both.shape))
        plan(part[0, 0], part[0, 1], *operands)
        plan_split_sum(layer, splits, 2)(both, part)
    return both[0], both[1]


def _forward(layer: Layer, h: Tensor, w: Weights) -> Tensor:
    return _convolve(layer, 1, h, w.forward, h, w.forward)


def _tangent(layer: Layer, h: Tensor, hd: Tensor, w: Weights, v: Weights) -> tuple[Tensor, Tensor]:
    return _convolve_dual(layer, h, hd, w.forward, v.forward)


def _tangent_only(layer: Layer, h: Tensor, hd: Tensor, w: Weights, v: Weights) -> Tensor:
    return _convolve(layer, 2, hd, w.forward, h, v.forward)


def _data_grad(layer: Layer, gz: Tensor, w: Weights) -> Tensor:
    return _convolve(layer.transposed(), 1, gz, w.backward, gz, w.backward)


def _data_grad_dual(layer: Layer, gz: Tensor, gzd: Tensor, w: Weights, v: Weights) -> tuple[Tensor, Tensor]:
    # The tangent's kernel with gzd as the primal: w gzd, and w gz + v gzd.
    ghd, gh = _convolve_dual(layer.transposed(), gzd, gz, w.backward, v.backward)
    return gh, ghd


def _weight_grad(layer: Layer, h: Tensor, gz: Tensor, out: Tensor, offset: int, accumulate: bool) -> None:
    _weight_grad_sums(layer, 1, (h, gz, h, gz), out, offset, accumulate)


def _weight_grad_dual(
    layer: Layer, h: Tensor, hd: Tensor, gz: Tensor, gzd: Tensor, out: Tensor, offset: int, accumulate: bool
) -> None:
    _weight_grad_sums(layer, 2, (h, gz, hd, gzd), out, offset, accumulate)


def _weight_grad_sums(
    layer: Layer, pairs: int, maps: tuple[Tensor, ...], out: Tensor, offset: int, accumulate: bool
) -> None:
    plan, splits = plan_weight_gradient(layer, pairs=pairs)
    part = out.new_empty((layer.trajectories, splits, TAPS, layer.outputs, layer.inputs))
    plan(part, *maps)
    plan_weight_gradient_sum(layer, splits, out.stride(0), offset, accumulate)(out, part)


_KERNELS: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "tangent": _tangent,
    "tangent_only": _tangent_only,
    "data_grad": _data_grad,
    "data_grad_dual": _data_grad_dual,
    "weight_grad": _weight_grad,
    "weight_grad_dual": _weight_grad_dual,
}


def _run(op: str, layer: Layer, *operands: Any) -> Any:
    """By the kernel or by cuDNN, whichever is faster."""
    by = {"triton": _KERNELS[op], "cudnn": cudnn.CUDNN[op]}
    return by[cudnn.choose(op, layer, _KERNELS[op])](layer, *operands)


# Production configurations ------------------------------------------------------------------------------------------


def production() -> list[Production]:
    """Blocks 2 and 3 of the 32-pixel ConvNet (D3 W128) and block 2 of the 64-pixel one (D4), as real runs use them.

    Block 3 at batch 1000 is block 2's with other numbers, so it is left out.
    """
    from ..aot import production_of

    items: dict[tuple[Any, ...], Production] = {}

    def add(name: str, layer: Layer, plan: Plan, types: str) -> None:
        """`types`: a letter per tensor, m for maps and sums, w for packed filters."""
        wide = "*fp64" if layer.dtype == torch.float64 else "*fp32"
        filters = "*bf16" if layer.precision == "bf16" else wide
        pointers = [filters if letter == "w" else wide for letter in types]
        key = (plan.kernel.__name__, *pointers, *plan.options.items())
        if key not in items:
            items[key] = production_of(
                name,
                plan.kernel,
                *pointers,
                *plan.numbers,
                cost=plan.cost,
                precision=layer.kind,
                hot=layer.kind in ("tf32", "bf16"),
                **plan.options,
            )

    def add_layer(name: str, layer: Layer) -> None:
        for pairs in (1, 2):
            plan, splits = plan_convolution(layer, pairs=pairs)
            add(f"{name}, {pairs} product{'s' * (pairs - 1)}", layer, plan, "mmwmw")
            if splits > 1:
                add(name, layer, plan_split_sum(layer, splits, 1), "mm")
        plan, splits = plan_dual(layer)
        add(name, layer, plan, "mmmmww")
        if splits > 1:
            add(name, layer, plan_split_sum(layer, splits, 2), "mm")
        for pairs in (1, 2):
            plan, splits = plan_weight_gradient(layer, pairs=pairs)
            add(f"{name}, {pairs} product{'s' * (pairs - 1)}", layer, plan, "mmmmm")
            add(name, layer, plan_weight_gradient_sum(layer, splits, 320010, 3968, False), "mm")

    for batch, block, size in ((10, 2, 16), (10, 3, 8), (100, 2, 16), (100, 3, 8), (1000, 2, 16)):
        add_layer(f"32 px, block {block}, batch {batch}", Layer(1, batch, size, size, 128, 128))
    add_layer("64 px, block 2, batch 100", Layer(1, 100, 32, 32, 128, 128))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "bf16"))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "ieee"))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "ieee", torch.float64))
    layer = Layer(1, 100, 16, 16, 128, 128)
    plan = plan_pack(2, 1, 128, 128, 320010, 3968, 147840, torch.float32, torch.float32)
    add("both layers of 32 px", layer, plan, "wwm")
    return list(items.values())


# Naive twins --------------------------------------------------------------------------------------------------------


def naive_pack(theta: Tensor, offset: int, inputs: int, outputs: int, *, precision: str = "tf32") -> Weights:
    """:func:`pack` by reordering torch's `[K, O, I, 9]`."""
    filters = theta[:, offset : offset + TAPS * inputs * outputs].reshape(-1, outputs, inputs, TAPS)
    if precision == "bf16" and theta.dtype == torch.float32:
        filters = filters.bfloat16()
    return Weights(filters.permute(0, 1, 3, 2).contiguous(), filters.flip(3).permute(0, 2, 3, 1).contiguous())


def naive_pack_all(theta: Tensor, layers: Sequence[tuple[int, int, int]], *, precision: str = "tf32") -> list[Weights]:
    """:func:`pack_all`, layer by layer."""
    return [naive_pack(theta, *layer, precision=precision) for layer in layers]


def _operand(x: Tensor, precision: str) -> Tensor:
    """`x` as it enters a product: rounded to bfloat16 there, in its own dtype otherwise."""
    return x.bfloat16().to(x.dtype) if precision == "bf16" else x


def _patches(h: Tensor) -> Tensor:
    """The nine shifted copies of the maps, zero outside the image."""
    height, width = h.shape[2:4]
    padded = F.pad(h, (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(shifted, 4)  # [K, B, H, W, 9, C]


def _spread(g: Tensor) -> Tensor:
    """The transpose of :func:`_patches`."""
    trajectories, batch, height, width, _, channels = g.shape
    padded = g.new_zeros((trajectories, batch, height + 2, width + 2, channels))
    for tap in range(TAPS):
        y, x = divmod(tap, 3)
        padded[:, :, y : y + height, x : x + width] += g[:, :, :, :, tap]
    return padded[:, :, 1:-1, 1:-1].contiguous()


def naive_forward(h: Tensor, w: Weights, *, precision: str) -> Tensor:
    """:func:`forward` from unfolded patches."""
    filters = w.forward.to(h.dtype)
    return torch.einsum("kbyxti,koti->kbyxo", _patches(_operand(h, precision)), _operand(filters, precision))


def naive_tangent(
    h: Tensor, hd: Tensor, w: Weights, v: Weights, *, precision: str, with_primal: bool = True
) -> tuple[Tensor | None, Tensor]:
    """:func:`tangent` as three convolutions."""
    zd = naive_forward(hd, w, precision=precision) + naive_forward(h, v, precision=precision)
    return naive_forward(h, w, precision=precision) if with_primal else None, zd


def naive_data_grad(gz: Tensor, w: Weights, *, precision: str) -> Tensor:
    """:func:`data_grad`: every gradient goes back along the filters of :func:`naive_forward`."""
    filters = _operand(w.forward.to(gz.dtype), precision)
    return _spread(torch.einsum("kbyxo,koti->kbyxti", _operand(gz, precision), filters))


def naive_data_grad_dual(gz: Tensor, gzd: Tensor, w: Weights, v: Weights, *, precision: str) -> tuple[Tensor, Tensor]:
    """:func:`data_grad_dual` as three data gradients."""
    gh = naive_data_grad(gz, w, precision=precision) + naive_data_grad(gzd, v, precision=precision)
    return gh, naive_data_grad(gzd, w, precision=precision)


def naive_weight_grad(
    h: Tensor, gz: Tensor, out: Tensor, offset: int, *, precision: str, accumulate: bool = False
) -> None:
    """:func:`weight_grad` from unfolded patches."""
    patches = _patches(_operand(h, precision))
    gw = torch.einsum("kbyxo,kbyxti->koit", _operand(gz, precision), patches).flatten(1)
    target = out[:, offset : offset + gw.shape[1]]
    target.copy_(target + gw if accumulate else gw)


def naive_weight_grad_dual(
    h: Tensor,
    hd: Tensor,
    gz: Tensor,
    gzd: Tensor,
    out: Tensor,
    offset: int,
    *,
    precision: str,
    accumulate: bool = False,
) -> None:
    """:func:`weight_grad_dual` as two weight gradients."""
    naive_weight_grad(h, gz, out, offset, precision=precision, accumulate=accumulate)
    naive_weight_grad(hd, gzd, out, offset, precision=precision, accumulate=True)
