"""Tiles of the convolutions: the one of least estimated time, from a fixed list.

Functions of the layer and of the card's shared memory alone, so that what is compiled ahead of time is what runs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from .layer import TAPS, Layer


class Tile(NamedTuple):
    """Size of one program: so many positions x outputs x inputs at a time."""

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
def gradient_tile(layer: Layer, *, products: int = 1, shared: int) -> tuple[Tile, int]:
    """The tile of a weight gradient, and the positions that one program sums over (a multiple of the tile's).

    Args:
        shared: bytes of shared memory that one program may have. Where no tile of the list fits, it is the last one.
    """
    tiles = [
        tile._replace(outputs=_block(layer.outputs, tile.outputs), inputs=_block(layer.inputs, tile.inputs))
        for tile in _GRADIENT_TILES[layer.kind]
    ]
    candidates: dict[tuple[Tile, int], None] = {}
    for tile in [tile for tile in tiles if _gradient_bytes(layer, tile) <= shared] or tiles[-1:]:
        programs = gradient_programs(layer, tile)
        for splits in range(1, max(1, min(64, 2 * SMS // programs, layer.positions // tile.positions)) + 1):
            span = triton.cdiv(triton.cdiv(layer.positions, splits), tile.positions) * tile.positions
            candidates[tile, span] = None
    return min(candidates, key=lambda found: _gradient_clocks(layer, found[0], found[1], products))


def gradient_programs(layer: Layer, tile: Tile) -> int:
    """Programs that do not differ in their positions; each has three taps."""
    return 3 * layer.trajectories * triton.cdiv(layer.outputs, tile.outputs) * triton.cdiv(layer.inputs, tile.inputs)


def _gradient_bytes(layer: Layer, tile: Tile) -> int:
    """Shared memory of the compiled weight gradient: the most that a supported Triton takes (3.6 to 3.8).

    The last stage's operands go straight to registers. Those of the outputs are rounded to bfloat16 once for three
    products, and the rounded ones lie there too: for sm_90, and since Triton 3.8 also for sm_80.
    """
    outputs, inputs = tile.positions * tile.outputs, tile.positions * tile.inputs
    rounded = outputs * torch.bfloat16.itemsize if layer.kind == "bf16" else 0
    return (tile.stages - 1) * (3 * inputs + outputs) * layer.dtype.itemsize + rounded


def _gradient_clocks(layer: Layer, tile: Tile, span: int, products: int) -> float:
    """Estimated clocks of both stages of a weight gradient; partial sums are written and read once."""
    splits, size = triton.cdiv(layer.positions, span), layer.dtype.itemsize
    programs = gradient_programs(layer, tile) * splits
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
