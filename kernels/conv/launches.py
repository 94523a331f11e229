"""The launches of the convolutions, and the operations on checked tensors that are made of them.

A call depends on the layer alone and is made once; its tensors are given when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..calls import Call, shared_memory
from ..launch import Cost
from .kernels import (
    convolution_dual_kernel,
    convolution_kernel,
    pack_kernel,
    split_sum_kernel,
    weight_gradient_kernel,
    weight_gradient_sum_kernel,
)
from .layer import TAPS, Layer, Weights
from .tiles import Tile, convolution_tile, gradient_programs, gradient_tile


@lru_cache(maxsize=4096)
def plan_convolution(layer: Layer, *, pairs: int = 1) -> tuple[Call, int]:
    """One convolution, or the sum of two (`pairs` = 2), and into how many parts it comes."""
    tile, splits = convolution_tile(layer, products=pairs)
    cost = Cost(layer.bytes(inputs=pairs, outputs=splits, weights=pairs), pairs * layer.flops)
    options = {**_options(layer, tile), "PAIRS": pairs, "SPLITS": splits}
    return Call(convolution_kernel, _grid(layer, tile, splits), (layer.batch,), cost, options), splits


@lru_cache(maxsize=4096)
def plan_dual(layer: Layer) -> tuple[Call, int]:
    """`w * h` and `w * hd + v * h`, and into how many parts they come."""
    tile, splits = convolution_tile(layer, products=3, dual=True)
    cost = Cost(layer.bytes(inputs=2, outputs=2 * splits, weights=2), 3 * layer.flops)
    options = {**_options(layer, tile), "SPLITS": splits}
    return Call(convolution_dual_kernel, _grid(layer, tile, splits), (layer.batch,), cost, options), splits


def _grid(layer: Layer, tile: Tile, splits: int) -> tuple[int, int, int]:
    outputs = triton.cdiv(layer.outputs, tile.outputs)
    return triton.cdiv(layer.positions, tile.positions), outputs * splits, layer.trajectories


@lru_cache(maxsize=4096)
def plan_split_sum(layer: Layer, splits: int, maps: int) -> Call:
    """The sum of the parts of `maps` outputs."""
    entries = maps * layer.trajectories * layer.positions * layer.outputs
    cost = Cost((splits + 1) * entries * layer.dtype.itemsize, (splits - 1) * entries)
    options = dict(SPLITS=splits, BLOCK=1024, num_warps=8)
    return Call(split_sum_kernel, (triton.cdiv(entries, 1024), 1, 1), (entries,), cost, options)


@lru_cache(maxsize=4096)
def plan_weight_gradient(layer: Layer, *, pairs: int = 1, shared: int | None = None) -> tuple[Call, int]:
    """The first stage of a weight gradient, and into how many sums it splits the positions.

    Args:
        shared: bytes of shared memory that one program may have; None for what the layer's device has.
    """
    shared = shared_memory(layer.device) if shared is None else shared
    tile, span = gradient_tile(layer, products=pairs, shared=shared)
    splits = triton.cdiv(layer.positions, span)
    tiles = gradient_programs(layer, tile) // layer.trajectories
    cost = Cost(layer.bytes(inputs=pairs, outputs=pairs, weights=splits), pairs * layer.flops)
    options = {**_options(layer, tile), "PAIRS": pairs}
    return Call(weight_gradient_kernel, (tiles, splits, layer.trajectories), (layer.batch, span), cost, options), splits


@lru_cache(maxsize=4096)
def plan_weight_gradient_sum(layer: Layer, splits: int, stride: int, offset: int, accumulate: bool) -> Call:
    """The second stage: adds the partial sums and writes torch's order."""
    # One element per thread: at 128 x 128 channels enough programs to fill the machine.
    options = dict(
        INPUTS=layer.inputs, OUTPUTS=layer.outputs, ACCUMULATE=accumulate, SPLITS=triton.next_power_of_2(splits)
    )
    options |= dict(BLOCK=128, num_warps=4)
    grid = (triton.cdiv(layer.parameters, 128), layer.trajectories, 1)
    cost = Cost(layer.bytes(weights=splits + 1 + accumulate), splits * layer.trajectories * layer.parameters)
    return Call(weight_gradient_sum_kernel, grid, (splits, stride, offset), cost, options)


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
) -> Call:
    """Filters of `count` layers, `spacing` entries apart, for all trajectories."""
    block = 32
    grid = (TAPS * triton.cdiv(inputs, block) * triton.cdiv(outputs, block), count, trajectories)
    entries = count * trajectories * TAPS * inputs * outputs
    cost = Cost(entries * (source.itemsize + 2 * target.itemsize))
    options = dict(INPUTS=inputs, OUTPUTS=outputs, BLOCK=block, num_warps=4)
    return Call(pack_kernel, grid, (stride, offset, spacing), cost, options)


# Operations on checked tensors ----------------------------------------------------------------------------------------


def _convolve(layer: Layer, pairs: int, *operands: Tensor) -> Tensor:
    call, splits = plan_convolution(layer, pairs=pairs)
    z = operands[0].new_empty((layer.trajectories, layer.batch, layer.height, layer.width, layer.outputs))
    if splits == 1:
        call.run(z, *operands)
    else:
        part = z.new_empty((splits, *z.shape))
        call.run(part, *operands)
        plan_split_sum(layer, splits, 1).run(z, part)
    return z


def _convolve_dual(layer: Layer, *operands: Tensor) -> tuple[Tensor, Tensor]:
    call, splits = plan_dual(layer)
    shape = (layer.trajectories, layer.batch, layer.height, layer.width, layer.outputs)
    both = operands[0].new_empty((2, *shape))
    if splits == 1:
        call.run(both[0], both[1], *operands)
    else:
        part = both.new_empty((splits, *both.shape))
        call.run(part[0, 0], part[0, 1], *operands)
        plan_split_sum(layer, splits, 2).run(both, part)
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
    call, splits = plan_weight_gradient(layer, pairs=pairs)
    part = out.new_empty((layer.trajectories, splits, TAPS, layer.outputs, layer.inputs))
    call.run(part, *maps)
    plan_weight_gradient_sum(layer, splits, out.stride(0), offset, accumulate).run(out, part)


KERNELS: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "tangent": _tangent,
    "tangent_only": _tangent_only,
    "data_grad": _data_grad,
    "data_grad_dual": _data_grad_dual,
    "weight_grad": _weight_grad,
    "weight_grad_dual": _weight_grad_dual,
}
