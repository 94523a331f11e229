"""The convolutions by cuDNN, and the choice between the two routes: the one measured to be faster."""

from __future__ import annotations

import math
import os
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from ...errors import InputError
from ..launch import Cost, note
from .choices import Choice, Choices
from .layer import TAPS, Layer, Weights


def _channels_first(x: Tensor) -> Tensor:
    """`[K, B, H, W, C]` as `[B, K C, H, W]` in channels-last memory: a view where K is 1."""
    trajectories, batch, height, width, channels = x.shape
    return x.permute(1, 2, 3, 0, 4).reshape(batch, height, width, trajectories * channels).permute(0, 3, 1, 2)


def _channels_last(x: Tensor, trajectories: int) -> Tensor:
    """The inverse of :func:`_channels_first`."""
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(batch, height, width, trajectories, channels // trajectories)
    return x.permute(3, 0, 1, 2, 4).contiguous()


def _filters(w: Weights) -> Tensor:
    """`[K O, I, 3, 3]`, a view in channels-last memory."""
    trajectories, outputs, _, inputs = w.forward.shape
    return w.forward.view(trajectories * outputs, 3, 3, inputs).permute(0, 3, 1, 2)


class _Cudnn:
    """Inside, cuDNN works in the layer's precision and picks the fastest of its deterministic algorithms."""

    def __init__(self, layer: Layer) -> None:
        self.precision = "tf32" if layer.precision == "tf32" else "ieee"

    def __enter__(self) -> None:
        settings = torch.backends.cudnn
        precision: str = settings.conv.fp32_precision  # type: ignore[attr-defined]
        self.before = (precision, settings.benchmark, settings.deterministic)
        self._set(self.precision, True, True)

    def __exit__(self, *_: object) -> None:
        self._set(*self.before)

    @staticmethod
    def _set(precision: str, benchmark: bool, deterministic: bool) -> None:
        settings = torch.backends.cudnn
        settings.conv.fp32_precision = precision  # type: ignore[attr-defined]
        settings.benchmark, settings.deterministic = benchmark, deterministic


def _once(layer: Layer) -> Cost:
    return Cost(layer.bytes(inputs=1, outputs=1, weights=1), layer.flops)


def _forward(layer: Layer, h: Tensor, w: Weights) -> Tensor:
    note("cudnn_forward", _once(layer))
    with _Cudnn(layer):
        z = F.conv2d(_channels_first(h), _filters(w), padding=1, groups=layer.trajectories)
    return _channels_last(z, layer.trajectories)


def _tangent(layer: Layer, h: Tensor, hd: Tensor, w: Weights, v: Weights) -> tuple[Tensor, Tensor]:
    return _forward(layer, h, w), _tangent_only(layer, h, hd, w, v)


def _tangent_only(layer: Layer, h: Tensor, hd: Tensor, w: Weights, v: Weights) -> Tensor:
    return _forward(layer, hd, w).add_(_forward(layer, h, v))


def _data_grad(layer: Layer, gz: Tensor, w: Weights) -> Tensor:
    note("cudnn_data_grad", _once(layer))
    g, trajectories = _channels_first(gz), layer.trajectories
    size = (layer.batch, trajectories * layer.inputs, layer.height, layer.width)
    with _Cudnn(layer):
        gh = conv2d_input(size, _filters(w), g, padding=1, groups=trajectories)
    return _channels_last(gh, trajectories)


def _data_grad_dual(layer: Layer, gz: Tensor, gzd: Tensor, w: Weights, v: Weights) -> tuple[Tensor, Tensor]:
    gh = _data_grad(layer, gz, w).add_(_data_grad(layer, gzd, v))
    return gh, _data_grad(layer, gzd, w)


def _weight_grad(layer: Layer, h: Tensor, gz: Tensor, out: Tensor, offset: int, accumulate: bool) -> None:
    note("cudnn_weight_grad", _once(layer))
    trajectories = layer.trajectories
    size = (trajectories * layer.outputs, layer.inputs, 3, 3)
    with _Cudnn(layer):
        gw = conv2d_weight(_channels_first(h), size, _channels_first(gz), padding=1, groups=trajectories)
    shape = (trajectories, layer.outputs, layer.inputs, 3, 3)
    target = out[:, offset : offset + layer.parameters].view(shape)
    if accumulate:
        target.add_(gw.view(shape))
    else:
        target.copy_(gw.view(shape))


def _weight_grad_dual(
    layer: Layer, h: Tensor, hd: Tensor, gz: Tensor, gzd: Tensor, out: Tensor, offset: int, accumulate: bool
) -> None:
    _weight_grad(layer, h, gz, out, offset, accumulate)
    _weight_grad(layer, hd, gzd, out, offset, True)


CUDNN: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "tangent": _tangent,
    "tangent_only": _tangent_only,
    "data_grad": _data_grad,
    "data_grad_dual": _data_grad_dual,
    "weight_grad": _weight_grad,
    "weight_grad_dual": _weight_grad_dual,
}
"""By operation: functions of a layer and its operands."""


# The choice ---------------------------------------------------------------------------------------------------------

DISAGREEMENT = {"tf32": 1e-2, "ieee": 1e-4, "float64": 1e-10}
"""Largest relative difference of the two implementations, by what the products run on."""

MARGIN = 1.1
"""How much slower a kernel may be than cuDNN and still be used."""


_choices = Choices()


def choices() -> dict[tuple[str, Layer], Choice]:
    """Everything that was chosen by measurement in this process, or in one before and used here."""
    return _choices.used()


def choose(op: str, layer: Layer, kernel: Callable[..., Any]) -> str:
    """The faster one for this operation, shape, precision and device: "triton" (also when close) or "cudnn".

    Measured on the first call on this card and kept (:mod:`.choices`). It is Triton without measuring while a CUDA
    graph is captured (so run once before), without a GPU, and in bf16, where cuDNN would round its results, too. The
    environment variable PAD_FAST_CONV=triton or cudnn settles it; bf16 stays with Triton.

    Args:
        op: a key of :data:`CUDNN`.
        kernel: the other route, a function of the same operands.

    Raises:
        InputError: PAD_FAST_CONV is something else.
    """
    forced = os.environ.get("PAD_FAST_CONV", "")
    if forced not in ("", "triton", "cudnn"):
        raise InputError(f"PAD_FAST_CONV must be triton, cudnn or unset; got {forced!r}")
    if layer.precision == "bf16":
        return "triton"
    if forced:
        return forced
    if layer.device.type != "cuda" or not torch.backends.cudnn.is_available():
        return "triton"
    known = _choices.get(op, layer)
    if known is not None:
        return known.route
    if torch.cuda.is_current_stream_capturing():
        return "triton"
    try:
        choice, measured = _measure(op, layer, kernel), True
    except torch.OutOfMemoryError:
        choice, measured = Choice("triton", math.nan, math.nan, math.nan), False
    return _choices.put(op, layer, choice, keep=measured).route


def _measure(op: str, layer: Layer, kernel: Callable[..., Any]) -> Choice:
    """Both implementations on random operands as graphs of a few calls, replayed in turns; medians."""
    by = {"triton": kernel, "cudnn": CUDNN[op]}
    seeded = torch.Generator(layer.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=layer.dtype, device=layer.device, generator=seeded)

    def maps(channels: int) -> Tensor:
        return random(layer.trajectories, layer.batch, layer.height, layer.width, channels)

    def weights() -> Weights:
        filters = random(layer.trajectories, layer.outputs, TAPS, layer.inputs)
        return Weights(filters, filters.flip(2).transpose(1, 3).contiguous())

    operands: tuple[Any, ...]
    outs: dict[str, Tensor] = {}
    if op in ("weight_grad", "weight_grad_dual"):
        count = 2 if op == "weight_grad_dual" else 1
        operands = tuple(maps(layer.inputs) for _ in range(count)) + tuple(maps(layer.outputs) for _ in range(count))
        outs = {route: random(layer.trajectories, layer.parameters) for route in by}
    else:
        channels = layer.outputs if op.startswith("data_grad") else layer.inputs
        count = 1 if op in ("forward", "data_grad") else 2
        operands = tuple(maps(channels) for _ in range(count)) + tuple(weights() for _ in range(count))

    def run(route: str) -> Any:
        extra = (outs[route], 0, False) if outs else ()
        return by[route](layer, *operands, *extra)

    difference = _difference(*(_parts(run(route), outs.get(route)) for route in ("triton", "cudnn")))
    calls = 5
    graphs = {}
    for route in by:
        # Replayed, because single calls of small layers would measure Python.
        graphs[route] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[route], capture_error_mode="thread_local"):
            for _ in range(calls):
                run(route)
    times: dict[str, list[float]] = {route: [] for route in graphs}
    for repeat in range(13):
        for route, graph in graphs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if repeat >= 3:
                times[route].append(begin.elapsed_time(end) / calls)
    return _decide(op, layer, {route: statistics.median(taken) for route, taken in times.items()}, difference)


def _decide(op: str, layer: Layer, milliseconds: dict[str, float], difference: float) -> Choice:
    """The faster one, except that a kernel which does not compute what cuDNN does is never used.

    Near ties go to Triton, so that two runs on one machine hardly ever choose differently (and round differently).
    """
    route = "triton" if milliseconds["triton"] <= MARGIN * milliseconds["cudnn"] else "cudnn"
    if not difference <= DISAGREEMENT[layer.kind]:
        route = "cudnn"
        warnings.warn(
            f"{op} of {layer}: the kernel differs from cuDNN by {difference:.1e}; cuDNN is used. Please report this.",
            RuntimeWarning,
            stacklevel=2,
        )
    return Choice(route, milliseconds["triton"], milliseconds["cudnn"], difference)


def _parts(results: Any, out: Tensor | None) -> tuple[Tensor, ...]:
    if out is not None:
        return (out,)
    return results if isinstance(results, tuple) else (results,)


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest relative L2 difference; NaN where there is one."""
    differences = [float((f - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True)]
    return math.nan if any(math.isnan(value) for value in differences) else max(differences)
