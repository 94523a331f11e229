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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..launch import PRECISIONS
from . import cudnn
from .launches import KERNELS, plan_pack
from .layer import TAPS, Layer, Weights

# Checks ---------------------------------------------------------------------------------------------------------------


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


# Operations -----------------------------------------------------------------------------------------------------------


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
    call = plan_pack(count, trajectories, inputs, outputs, theta.stride(0), offset, spacing, theta.dtype, dtype)
    call.run(forward, backward, theta)
    return [Weights(forward[index], backward[index]) for index in range(count)]


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


def _run(op: str, layer: Layer, *operands: Any) -> Any:
    """By the kernel or by cuDNN, whichever is faster."""
    by = {"triton": KERNELS[op], "cudnn": cudnn.CUDNN[op]}
    return by[cudnn.choose(op, layer, KERNELS[op])](layer, *operands)
