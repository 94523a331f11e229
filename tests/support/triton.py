"""The Triton engine with the kernels' naive twins, in float64 on the CPU: networks, problems, and emulated graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pad_fast import ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import Task, Wants, registry, select
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.models import FlatNetwork

from .comparison import describe_difference, relative_error
from .small import NETS

CPU = torch.device("cpu")

STEP = 1e-9  # relative L2 in float64; worst seen 6e-14

BATCHES = [torch.tensor([0, 1, 4]), torch.tensor([8]), torch.arange(9), torch.tensor([3, 3])]

ALL = ("images", "labels", "lr", "theta_start", "theta_target")

SOME = ("images", "labels", "lr")

WEIGHT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


class Emulated:
    """A recorder for the CPU that behaves like CUDA graphs: fixed tensors in, fixed tensors out, Python only once."""

    def __init__(self, device: torch.device) -> None:
        assert device == CPU

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        tape = _Tape()
        with tape:
            result = work()
        # What a graph leaves in its tensors while it is being captured is nobody's business.
        for _, _, _, made in tape.calls:
            for tensor in made:
                if tensor.is_floating_point() and not tensor.requires_grad:
                    tensor.fill_(float("nan"))
        return tape.replay, result


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [_memory(value) for value in _tensors((args, kwargs))]
        result = function(*args, **(kwargs or {}))
        made = [value for value in _tensors(result) if _memory(value) not in given]
        self.calls.append((function, args, kwargs or {}, made))
        return result

    def replay(self) -> None:
        for function, args, kwargs, made in self.calls:
            given = [_memory(value) for value in _tensors((args, kwargs))]
            again = [value for value in _tensors(function(*args, **kwargs)) if _memory(value) not in given]
            for old, new in zip(made, again, strict=True):
                old.copy_(new)


def _memory(tensor: Tensor) -> int:
    """The same for views of each other."""
    return tensor.untyped_storage().data_ptr()


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)


def register(monkeypatch: pytest.MonkeyPatch, engine: TritonEngine) -> TritonEngine:
    monkeypatch.setitem(registry._engines, "triton", engine)
    return engine


def make(name: str, *, stacked: int = 1, seed: int = 0) -> tuple[FlatNetwork, Tensor]:
    """A network with parameters `[K, P]` away from their initial zeros and ones."""
    torch.manual_seed(seed)
    network = FlatNetwork(ConvNet(**NETS[name]).double())
    theta = network.initial()
    return network, theta + 0.5 * theta.abs().mean() * torch.randn(stacked, len(theta), dtype=theta.dtype)


def batch_of(name: str, count: int, *, hard: bool = False, seed: int = 1) -> tuple[Tensor, Tensor]:
    net, draws = NETS[name], torch.Generator().manual_seed(seed)
    shape = (count, net["channels"], net["resolution"], net["resolution"])
    images = torch.randn(shape, generator=draws, dtype=torch.float64) + 0.3
    if hard:
        return images, torch.randint(0, net["classes"], (count,), generator=draws)
    return images, 1.5 * torch.randn(count, net["classes"], generator=draws, dtype=torch.float64)


def step_of(backend: str, network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, **task: Any):
    problem = Task(network, CPU, theta.dtype, "exact", **task)
    student = select(backend, problem).student(problem)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(theta.dtype)
    gradient = student.gradient(0, theta, images, labels)
    wants = Wants(theta=True, images=True, labels=labels.is_floating_point())
    pulled = student.adjoint(0, theta, v, images, labels, wants)
    named = {"gradient": gradient, "phi": pulled.phi, "theta": pulled.theta, "images": pulled.images}
    return named if pulled.labels is None else {**named, "labels": pulled.labels}


def problem_of(*, stacked: int = 3, seed: int = 8, hard: bool = False, **changes: Any) -> dict[str, Any]:
    """Arguments with everything off its default."""
    network, theta = make("digits", stacked=stacked)
    draws = torch.Generator().manual_seed(seed)
    theta = theta + 0.02 * torch.randn(theta.shape, generator=draws, dtype=theta.dtype)
    images, labels = batch_of("digits", 9, hard=hard, seed=seed)
    target = theta + 0.1 * torch.randn(theta.shape, generator=draws, dtype=theta.dtype)
    lr = torch.tensor(0.2 + 0.01 * seed, dtype=torch.float64)
    given = {"theta_start": theta, "theta_target": target, "images": images, "labels": labels, "lr": lr}
    return {"model": network, **given, "batches": BATCHES, "mask": ParameterMask.layers(1), **changes}


def gradients(problem: dict[str, Any], wanted: tuple[str, ...] = SOME, **options: Any) -> list[Tensor]:
    problem = {**problem, **options}
    for name in wanted:
        problem[name] = problem[name].detach().clone().requires_grad_()
    loss = trajectory_matching_loss(problem.pop("model"), **problem)
    return [loss.detach(), *torch.autograd.grad(loss, [problem[name] for name in wanted], WEIGHT[: len(loss)])]


def assert_same(ours: list[Tensor], truth: list[Tensor], tolerance: float = STEP) -> None:
    for got, expected in zip(ours, truth, strict=True):
        assert float(expected.norm()) > 1e-8, "a zero gradient proves nothing"
        assert relative_error(got, expected) < tolerance, describe_difference(got, expected)
