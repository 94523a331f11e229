"""Networks of every kind, what becomes of each (exact or refused), and the usual loop they are compared with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

STRIDED = 4 * 4 * 4  # features behind the convolution of `body`


def flat(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def usual_loop(
    network: nn.Module,
    theta_start: Tensor,
    theta_target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    *,
    batches: Sequence[Tensor],
    augment: Callable[[Tensor, int], Tensor] | None = None,
    labels_are: str = "logits",
) -> Tensor:
    """The loss of published scripts by autograd through all steps; attention by the kernel with a second derivative."""
    named = list(network.named_parameters())
    theta = theta_start.detach().clone().requires_grad_()
    for step, batch in enumerate(batches):
        x = images[batch] if augment is None else augment(images[batch], step)
        pieces = theta.split([parameter.numel() for _, parameter in named])
        parameters = {name: piece.view(p.shape) for (name, p), piece in zip(named, pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            logits = torch.func.functional_call(network, parameters, (x,))
            y = labels[batch]
            soft = y.is_floating_point() and labels_are == "logits"
            loss = functional.cross_entropy(logits, y.softmax(-1) if soft else y)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * gradient
    return (theta - theta_target).square().sum() / (theta_start - theta_target).square().sum()


def problem(network: nn.Module, *, seed: int = 0, steps: int = 4, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Arguments of the loss for a network of 1x8x8 images and three classes; every one of them off its default."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64).to(dtype)

    start = flat(network)
    return {
        "theta_start": start,
        "theta_target": start + 0.02 * normal(len(start)),
        "images": normal(6, 1, 8, 8).requires_grad_(),
        "labels": normal(6, 3).requires_grad_(),
        "lr": torch.tensor(0.05, dtype=dtype, requires_grad=True),
        "batches": [torch.randperm(6, generator=draws)[:5] for _ in range(steps)],
    }


def body(*middle: nn.Module) -> nn.Sequential:
    """A convolution, whatever is given, and a linear classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), *middle, nn.Tanh(), nn.Flatten(), nn.Linear(STRIDED, 3)
    )


class Layer(nn.Module):
    """A layer out of a function of (the layer, x)."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **attributes: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.requires_grad:
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Once(torch.autograd.Function):
    """Twice its argument, with a derivative that has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def _checkpointed(x: Tensor, reentrant: bool) -> Tensor:
    found: Tensor = checkpoint(lambda part: (part * part).sin(), x, use_reentrant=reentrant)
    return found


def _moving_average(layer: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.mean.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
    return x - layer.mean[None, :, None, None]


def _counting(layer: Any, x: Tensor) -> Tensor:
    layer.count += 1
    return x * (1 + 0.1 * layer.count)


class Tokens(nn.Module):
    """Four tokens of sixteen pixels through a layer, then a classifier."""

    def __init__(self, layer: Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.reshape(len(x), 4, 16)).flatten(1))


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class Recurrent(nn.GRU):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).tanh()).tanh())


def _hooked() -> nn.Module:
    network = body()
    network[0].register_forward_hook(lambda module, given, output: 1.5 * output)
    return network


def _frozen() -> nn.Module:
    network = body()
    network[0].weight.requires_grad_(False)
    return network


def _parametrized(index: int, parametrize: Callable[[nn.Module], nn.Module]) -> nn.Module:
    network = body()
    network[index] = parametrize(network[index])
    return network


def _mixed_buffers() -> nn.Module:
    network = body(nn.BatchNorm2d(4)).double()
    network[1].running_mean = network[1].running_mean.float()
    return network


def _complex() -> nn.Module:
    return Layer(lambda layer, x: (x.flatten(1) + 0j) @ layer.w, w=nn.Parameter(torch.randn(64, 3, dtype=torch.cfloat)))


@dataclass(frozen=True)
class Kind:
    """Networks or scripts of one kind.

    Attributes:
        says: what it is, as a row of the table in docs/gradient.md.
        make: a network of it.
        refused: what the error says; None where the gradient is exact.
        note: what the table adds.
    """

    says: str
    make: Callable[[], nn.Module]
    refused: str | None = None
    note: str = ""


_STATE = "computed another gradient when step"
_generator = torch.Generator()

KINDS: tuple[Kind, ...] = (
    Kind("any modules whose result depends on parameters and images", body),
    Kind("instance norm with statistics", lambda: body(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))),
    Kind("batch norm", lambda: body(nn.BatchNorm2d(4)), note="statistics move once per step, as in the usual loop"),
    Kind("dropout, stochastic depth", lambda: body(nn.BatchNorm2d(4), nn.Dropout2d(0.3), nn.Dropout(0.2))),
    Kind("moving averages in buffers", lambda: body(Layer(_moving_average, mean=torch.zeros(4)))),
    Kind("buffers that count calls", lambda: body(Layer(_counting, count=torch.zeros(())))),
    Kind("spectral norm (parametrizations)", lambda: _parametrized(0, parametrizations.spectral_norm)),
    Kind("spectral norm (hooks)", lambda: _parametrized(0, nn.utils.spectral_norm)),
    Kind("weight norm, orthogonal weights", lambda: _parametrized(4 - 1, parametrizations.weight_norm)),
    Kind("tied weights", Tied),
    Kind("frozen parameters", _frozen, note="they are part of the flat vector and trained like the others"),
    Kind("hooks", _hooked),
    Kind("attention", lambda: Tokens(Attention(16, 2, batch_first=True)), note="never by fused kernels"),
    Kind("a transformer layer", lambda: Tokens(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True))),
    Kind("recurrent layers", lambda: Tokens(Recurrent(16, 8, batch_first=True), 8)),
    Kind("operations in place", lambda: body(nn.ReLU(inplace=True))),
    Kind("`torch.utils.checkpoint` without reentrance", lambda: body(Layer(lambda layer, x: _checkpointed(x, False)))),
    Kind("`nn.DataParallel`", lambda: nn.DataParallel(body()), note="the network inside is taken"),
    Kind("`torch.compile`", lambda: torch.compile(body(), backend="aot_eager"), note="runs as written, not compiled"),
    Kind("scripted or traced modules", lambda: torch.jit.script(body()), "pass the nn.Module it was made of"),
    Kind("calls counted in a Python attribute", lambda: body(Layer(_counting, count=0)), _STATE),
    Kind("draws from Python's `random`", lambda: body(Layer(lambda layer, x: x * (1 + random.random()))), _STATE),
    Kind("draws from numpy", lambda: body(Layer(lambda layer, x: x * (1 + float(np.random.rand())))), _STATE),
    Kind("draws from a generator of its own",
         lambda: body(Layer(lambda layer, x: x * (1 + torch.rand((), generator=_generator, dtype=x.dtype)))), _STATE),
    Kind("a learned tensor that is no parameter (a temperature in a list)",
         lambda: body(Layer(lambda layer, x: x / layer.tau[0], tau=[torch.tensor(2.0, requires_grad=True)])),
         "requires a gradient and would get none"),
    Kind("tuples or dictionaries returned", lambda: nn.Sequential(body(), Layer(lambda layer, x: {"logits": x})),
         "the network returned a dict; wrap it"),
    Kind("reentrant `torch.utils.checkpoint`", lambda: body(Layer(lambda layer, x: _checkpointed(x, True))),
         "set use_reentrant=False"),
    Kind("operations that are differentiable once",
         lambda: body(Layer(lambda layer, x: Once.apply(x))), "replace it by operations that can"),
    Kind("lazy modules", lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "call the network once on a batch"),
    Kind("complex or sparse parameters", _complex, "real floating numbers only"),
    Kind("buffers of another dtype", _mixed_buffers, "check shapes and dtypes, its buffers' too"),
)  # fmt: skip


def kinds_table() -> str:
    """The table of docs/gradient.md, to be printed from here when a kind is added."""
    lines = ["| networks with | gradient |", "| --- | --- |"]
    for kind in KINDS:
        outcome = "exact" if kind.refused is None else f'refused ("{kind.refused}")'
        lines.append(f"| {kind.says} | {outcome}{f'; {kind.note}' if kind.note else ''} |")
    return "\n".join(lines) + "\n"
