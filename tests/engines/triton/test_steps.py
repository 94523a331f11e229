"""Student steps of the Triton engine with the kernels' naive twins, in float64 on the CPU, one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pad_fast import ConvNet
from pad_fast.engines import Task, Wants, record_backends
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.engines.triton.steps import Steps
from pad_fast.models import FlatNetwork

from ...support.comparison import describe_difference, relative_error
from ...support.small import NETS
from ...support.triton import (
    CPU,
    STEP,
    batch_of,
    make,
    register,
    step_of,
)

pytest.importorskip("triton", reason="the kernels' modules import Triton")


def compare(name: str, count: int, *, hard: bool = False, stacked: int = 1, **task: Any) -> None:
    network, theta = make(name, stacked=stacked)
    images, labels = batch_of(name, count, hard=hard)
    truth = step_of("autograd", network, theta, images, labels)
    with record_backends() as used:
        ours = step_of("triton", network, theta, images, labels, **task)
    assert used == ["triton"]
    assert set(ours) == set(truth)
    for key, expected in truth.items():
        assert expected is not None and float(expected.norm()) > 1e-8, key
        assert relative_error(ours[key], expected) < STEP, f"{key}: " + describe_difference(ours[key], expected)


@pytest.mark.parametrize("name", NETS)
def test_a_step_and_its_adjoint(engine, name):
    compare(name, 3)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_batch_sizes(engine, count, hard):
    compare("digits", count, hard=hard)
    compare("odd33", count, hard=hard)


@pytest.mark.parametrize("stacked", [2, 3])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_several_trajectories_keeping_activations_or_not(engine, stacked, cache_bytes, hard):
    compare("digits", 5, stacked=stacked, cache_bytes=cache_bytes, hard=hard)
    compare("depth1", 4, stacked=stacked, cache_bytes=cache_bytes, hard=hard)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_batches_in_parts(engine, monkeypatch, cache_bytes):
    monkeypatch.setattr("pad_fast.engines.triton.engine._WORKING_BYTES", 2 * 3 * 8 * 2_000)
    network, _ = make("digits")
    task = Task(network, CPU, torch.float64)
    assert engine._part(task, torch.empty(2, 7, 1, dtype=torch.float64)) < 7
    compare("digits", 7, stacked=2, cache_bytes=cache_bytes)
    compare("digits", 7, hard=True, cache_bytes=cache_bytes)


def test_biases_of_convolutions_have_no_gradient(engine):
    network, theta = make("digits")
    images, labels = batch_of("digits", 3)
    ours = step_of("triton", network, theta, images, labels)
    for key in ("gradient", "theta"):
        for name, piece in network.unflatten(ours[key][0]).items():
            is_bias = name.startswith("features") and name.endswith("bias") and "0.bias" in name
            assert bool((piece == 0).all()) == (name in ("features.0.bias", "features.4.bias")), (name, is_bias)


def test_what_is_not_wanted_is_not_returned(engine):
    network, theta = make("digits")
    images, labels = batch_of("digits", 3)
    task = Task(network, CPU, torch.float64, "exact")
    student = engine.student(task)
    full = step_of("triton", network, theta, images, labels)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), dtype=theta.dtype)
    for wanted in ("theta", "images", "labels"):
        pulled = student.adjoint(0, theta, v, images, labels, Wants(**{wanted: True}))
        got = {name: getattr(pulled, name) for name in ("theta", "images", "labels")}
        for name, value in got.items():
            if name == wanted:
                assert torch.equal(value, full[name])
            else:
                assert value is None


def test_strided_inputs_are_understood(engine):
    network, theta = make("odd33")
    images, labels = batch_of("odd33", 4)
    task = Task(network, CPU, torch.float64)
    expected = engine.loss_and_grad(task, theta[0], images, labels)[1]
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    every_other = torch.stack([theta[0], theta[0]], 1)[:, 0]
    assert not strided.is_contiguous() and not every_other.is_contiguous()
    assert torch.equal(engine.loss_and_grad(task, every_other, strided, labels)[1], expected)


def test_nan_is_not_hidden(engine):
    network, theta = make("digits")
    images, labels = batch_of("digits", 4)
    theta[0, 5] = float("nan")
    task = Task(network, CPU, torch.float64)
    loss, gradient = engine.loss_and_grad(task, theta[0], images, labels)
    assert bool(loss.isnan()) and not bool(gradient.isfinite().all())


def test_sizes_of_what_is_kept_and_what_is_alive():
    steps = Steps(Operations(naive=True), ConvNet().config, "ieee")
    assert steps.kept_bytes(1, 1, 4) == 4 * 128 * (16 * 16 + 8 * 8)
    assert steps.kept_bytes(3, 10, 4) == 30 * steps.kept_bytes(1, 1, 4)
    assert steps.working_bytes(1, 1, 4) > 4 * steps.kept_bytes(1, 1, 4)


class Rounding:
    """Operations whose convolutions round what they multiply, as the matrix units do, in otherwise exact arithmetic."""

    def __init__(self, precision: str) -> None:
        self.naive, self.bits = Operations(naive=True), {"tf32": 10, "bf16": 7}[precision]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.naive, name)

    @property
    def conv(self) -> Any:
        return _RoundingConv(self)


class _RoundingConv:
    def __init__(self, owner: Rounding) -> None:
        self.owner = owner

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.owner.naive.conv, name)
        return lambda *args, **options: operation(*(self._round(value) for value in args), **options)

    def _round(self, value: Any) -> Any:
        if isinstance(value, tuple):  # packed weights
            return type(value)(*(self._round(part) for part in value))
        if not isinstance(value, Tensor) or value.dim() < 4:  # flat parameters and gradients are kept
            return value
        mantissa, exponent = torch.frexp(value)
        scale = 2.0 ** (self.owner.bits + 1)  # and the leading bit
        return torch.ldexp((mantissa * scale).round() / scale, exponent)


@pytest.mark.parametrize(
    ("precision", "least", "bound"), [("ieee", 1e-8, 1e-2), ("tf32", 1e-4, 5e-2), ("bf16", 1e-4, 0.2)]
)
def test_how_much_a_precision_costs(monkeypatch, precision, least, bound):
    """One step of the 32-pixel ConvNet against float64: what docs/gpu_engine.md says of each precision."""
    torch.manual_seed(0)
    network = FlatNetwork(ConvNet(width=64).double())
    theta = network.initial()[None]
    theta = theta + 0.1 * theta.abs().mean() * torch.randn_like(theta)
    images, labels = torch.randn(4, 3, 32, 32).double(), 1.5 * torch.randn(4, 10).double()
    truth = step_of("autograd", network, theta, images, labels)
    if precision == "ieee":
        register(monkeypatch, TritonEngine(Operations(naive=True)))
        ours = step_of("triton", network, theta.float(), images.float(), labels.float(), precision="ieee")
    else:
        register(monkeypatch, TritonEngine(Rounding(precision)))
        ours = step_of("triton", network, theta, images, labels)
    errors = {key: relative_error(ours[key], truth[key]) for key in truth}
    print(precision, {key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < bound and min(errors.values()) > least, errors
