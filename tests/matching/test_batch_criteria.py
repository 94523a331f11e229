"""Gradient and distribution matching against direct float64 implementations, on every engine."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pad_fast import ConvNet, ParameterMask, network
from pad_fast.engines import Task, record_backends, registry, select
from pad_fast.engines import autograd as autograd_engine
from pad_fast.engines.autograd import AutogradEngine
from pad_fast.engines.triton.kernel_forms import KernelGradientDistance
from pad_fast.errors import InputError
from pad_fast.matching.distributions import blocks_kept, match_distributions
from pad_fast.matching.gradients import channels_of, gradient_distance, gradient_distance_and_direction, match_gradients
from pad_fast.models import FlatNetwork

from ..support.comparison import describe_difference, relative_error
from ..support.native import require_native

CPU = torch.device("cpu")
TOLERANCE = 1e-9  # relative L2 in float64; worst seen 2e-13
NETS = {
    "3 blocks": {"channels": 3, "width": 7, "depth": 3, "resolution": 16, "classes": 4},
    "gray": {"channels": 1, "width": 17, "depth": 2, "resolution": 8, "classes": 4},
    "odd side": {"channels": 2, "width": 5, "depth": 2, "resolution": 11, "classes": 4},
    "padded by 3": {"channels": 1, "width": 5, "depth": 2, "resolution": 28, "classes": 4},
    "1 block": {"channels": 3, "width": 4, "depth": 1, "resolution": 8, "classes": 4},
}
IPC = 3
REAL = (6, 1, 5, 9)  # real images per class


def problem(name: str, **changes: int | str) -> tuple[FlatNetwork, Tensor, list[Tensor], Tensor]:
    """A network with parameters away from zeros and ones, real images of four classes, and synthetic ones."""
    torch.manual_seed(3)
    settings = {**NETS[name], **changes}
    flat = FlatNetwork(ConvNet(**settings).double())
    theta = flat.initial()
    theta = theta + 0.5 * theta.abs().mean() * torch.randn_like(theta)
    shape = (settings["channels"], settings["resolution"], settings["resolution"])
    real = [0.3 + torch.randn(count, *shape, dtype=torch.float64) for count in REAL]
    return flat, theta, real, torch.randn(len(REAL), IPC, *shape, dtype=torch.float64)


def direct_gradients(flat: FlatNetwork, theta: Tensor, real: list[Tensor], synthetic: Tensor, first: int = 0):
    """DC as the papers write it: class by class and channel by channel, on a module of its own."""
    module = flat.load(theta)
    parameters = list(module.parameters())
    offsets = torch.tensor([0, *(p.numel() for p in parameters)]).cumsum(0).tolist()
    synthetic = synthetic.clone().requires_grad_()
    total = synthetic.new_zeros(())
    for label, images in enumerate(real):
        target = torch.full((len(images),), label)
        given = torch.autograd.grad(functional.cross_entropy(module(images), target), parameters)
        target = torch.full((IPC,), label)
        loss = functional.cross_entropy(module(synthetic[label]), target)
        made = torch.autograd.grad(loss, parameters, create_graph=True)
        for offset, a, b in zip(offsets, given, made, strict=False):
            for channel in range(len(a) if a.dim() > 1 else 0):
                if offset + channel * a[0].numel() >= first:
                    x, y = a[channel].flatten(), b[channel].flatten()
                    # A dead unit's gradient has no direction.
                    total = total + (1 - x @ y / (x.norm() * y.norm()) if x.any() and y.any() else 1)
    return total.detach(), torch.autograd.grad(total, synthetic)[0]


def direct_features(flat: FlatNetwork, theta: Tensor, real: list[Tensor], synthetic: Tensor, blocks: Sequence[int]):
    """DM, with the blocks taken apart layer by layer."""
    module = flat.load(theta)
    assert isinstance(module, ConvNet)
    layers, size = list(module.features), len(module.features) // module.config.depth

    def features(images: Tensor, depth: int) -> Tensor:
        return nn.Sequential(*layers[: size * depth])(images).flatten(1)

    synthetic = synthetic.clone().requires_grad_()
    total = synthetic.new_zeros(())
    for depth in blocks:
        for label, images in enumerate(real):
            apart = features(images, depth).mean(0) - features(synthetic[label], depth).mean(0)
            total = total + apart.square().sum()
    return total.detach(), torch.autograd.grad(total, synthetic)[0]


def task_on(backend: str, flat: FlatNetwork, cache: int = 0):
    if backend == "cpu":
        require_native()
    task = Task(flat, CPU, torch.float64, "exact", cache_bytes=cache)
    with record_backends() as used:
        engine = select(backend, task)
    assert used == [backend]
    return engine, task


def assert_same(mine: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> None:
    for name, actual, expected in zip(("loss", "gradient"), mine, truth, strict=True):
        assert relative_error(actual, expected) < TOLERANCE, f"{name}: " + describe_difference(actual, expected)


@pytest.mark.parametrize("backend", ["autograd", "cpu"])
@pytest.mark.parametrize("name", NETS)
def test_gradient_matching_is_the_papers(name: str, backend: str) -> None:
    flat, theta, real, synthetic = problem(name)
    engine, task = task_on(backend, flat, cache=10**7)
    channels = channels_of(flat, ParameterMask.none())
    mine = match_gradients(engine, task, theta, real, synthetic, channels)
    assert_same(mine, direct_gradients(flat, theta, real, synthetic))


@pytest.mark.parametrize("mask", [ParameterMask.depth(0.2), ParameterMask.depth(0.7), ParameterMask.layers(2)], ids=str)
@pytest.mark.parametrize("backend", ["autograd", "cpu"])
def test_masks_leave_the_first_channels_out(mask: ParameterMask, backend: str) -> None:
    flat, theta, real, synthetic = problem("3 blocks")
    first = mask.first_kept(flat)
    channels = channels_of(flat, mask)
    assert 0 < first <= channels[0].offset < first + 63
    engine, task = task_on(backend, flat)
    mine = match_gradients(engine, task, theta, real, synthetic, channels)
    truth = direct_gradients(flat, theta, real, synthetic, first)
    assert_same(mine, truth)
    assert relative_error(truth[0], direct_gradients(flat, theta, real, synthetic)[0]) > 0.05


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), REAL], ids=["equal", "unequal"])
def test_classes_in_one_pass_are_the_loop(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]) -> None:
    flat, theta, real, synthetic = problem("3 blocks")
    real = [real[0][:1].repeat(count, 1, 1, 1) + 0.5 * torch.randn(count, 3, 16, 16) for count in sizes]
    engine, task = task_on("autograd", flat)
    channels = channels_of(flat, ParameterMask.depth(0.1))
    monkeypatch.setattr(autograd_engine, "_FEW_IMAGES", 0)
    loop = match_gradients(engine, task, theta, real, synthetic, channels)
    monkeypatch.setattr(autograd_engine, "_FEW_IMAGES", 100)
    assert_same(match_gradients(engine, task, theta, real, synthetic, channels), loop)
    monkeypatch.setattr(autograd_engine, "_IMAGES_AT_ONCE", 2)  # several passes
    assert_same(match_gradients(engine, task, theta, real, synthetic, channels), loop)


def test_batch_norm_goes_group_by_group_and_other_networks_are_served() -> None:
    for name in ("ConvNetBN", "MLP"):
        flat = FlatNetwork(network(name, channels=3, classes=4, resolution=16).double().train())
        real = [torch.randn(4, 3, 16, 16, dtype=torch.float64) for _ in range(4)]
        synthetic = torch.randn(4, IPC, 3, 16, 16, dtype=torch.float64)
        engine, task = task_on("autograd", flat)
        channels = channels_of(flat, ParameterMask.none())
        mine = match_gradients(engine, task, flat.initial(), real, synthetic, channels)
        assert_same(mine, direct_gradients(flat, flat.initial(), real, synthetic))


def test_the_distance_and_its_direction() -> None:
    flat, *_ = problem("3 blocks")
    channels = channels_of(flat, ParameterMask.layers(1))
    draws = torch.randn(2, 5, flat.parameter_count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real, synthetic = draws[0], (0.4 * draws[0] + draws[1]).requires_grad_()
    real[2, channels[0].offset : channels[0].offset + channels[0].length] = 0  # a channel without direction
    truth = gradient_distance(real, synthetic, channels)
    truth.sum().backward()
    distance, v = gradient_distance_and_direction(real, synthetic.detach(), channels)
    assert synthetic.grad is not None
    assert_same((distance, v), (truth, synthetic.grad))
    assert bool((v[:, : channels[0].offset] == 0).all())
    assert float(distance[2].detach()) > 1  # which counts one
    twice, _ = gradient_distance_and_direction(3 * real, 0.1 * synthetic.detach(), channels)
    assert relative_error(twice, truth) < 1e-12  # only directions count


def test_the_distance_is_the_kernels_in_the_engine_that_was_checked_and_torchs_elsewhere() -> None:
    for name, form in (("autograd", NoneType), ("cpu", NoneType), ("triton", KernelGradientDistance)):
        assert type(registry._engines[name].gradient_distance) is form


def test_the_form_of_the_engine_is_taken_where_it_has_one() -> None:
    flat, theta, real, synthetic = problem("3 blocks")
    channels = channels_of(flat, ParameterMask.none())
    asked = []

    class Form:
        def value_and_direction(self, real: Tensor, synthetic: Tensor, channels: Any) -> tuple[Tensor, Tensor]:
            asked.append((real.shape, synthetic.shape, channels))
            distances, v = gradient_distance_and_direction(real, synthetic, channels)
            return 2 * distances, 2 * v

    class WithForm(AutogradEngine):
        gradient_distance = Form()

    engine, task = task_on("autograd", flat)
    plain = match_gradients(engine, task, theta, real, synthetic, channels)
    doubled = match_gradients(WithForm(), task, theta, real, synthetic, channels)
    assert_same(doubled, [2 * each for each in plain])
    assert asked == [(torch.Size([len(real), flat.parameter_count]),) * 2 + (channels,)]


@pytest.mark.parametrize("blocks", [None, "all", "last two"], ids=str)
@pytest.mark.parametrize("backend", ["autograd", "cpu"])
@pytest.mark.parametrize("name", NETS)
def test_distribution_matching_is_the_papers(name: str, backend: str, blocks: str | None) -> None:
    flat, theta, real, synthetic = problem(name)
    depth = NETS[name]["depth"]
    depths = {None: (depth,), "all": range(1, depth + 1), "last two": range(max(1, depth - 1), depth + 1)}[blocks]
    engine, task = task_on(backend, flat)
    asked = None if blocks is None else tuple(depths)
    mine = match_distributions(engine, task, theta, real, synthetic, asked)
    assert_same(mine, direct_features(flat, theta, real, synthetic, list(depths)))


@pytest.mark.parametrize("changes", [{"norm": "none", "pooling": "max"}, {"pooling": "none", "activation": "sigmoid"}])
def test_blocks_of_other_convnets(changes: dict[str, str]) -> None:
    flat, theta, real, synthetic = problem("3 blocks", **changes)
    engine, task = task_on("autograd", flat)
    mine = match_distributions(engine, task, theta, real, synthetic, (1, 3))
    assert_same(mine, direct_features(flat, theta, real, synthetic, (1, 3)))


def test_which_blocks_are_kept() -> None:
    flat, *_ = problem("3 blocks")
    kept = {ratio: blocks_kept(flat, ParameterMask.depth(ratio)) for ratio in (0.0, 0.25, 0.5, 2 / 3)}
    assert kept == {0.0: (1, 2, 3), 0.25: (2, 3), 0.5: (3,), 2 / 3: (3,)}
    assert blocks_kept(flat, ParameterMask.layers(1)) == (2, 3)
    assert blocks_kept(flat, ParameterMask.none()) is None
    with pytest.raises(InputError, match=r"leaves out all 3 blocks; leave out at most a ratio of 0\.667"):
        blocks_kept(flat, ParameterMask.depth(0.7))
    with pytest.raises(InputError, match="at most 2 of them"):
        blocks_kept(flat, ParameterMask.layers(3))


def test_masks_without_meaning_are_refused() -> None:
    flat, *_ = problem("3 blocks")
    other = FlatNetwork(network("MLP", channels=3, classes=4, resolution=16))
    for choose in (channels_of, blocks_kept):
        with pytest.raises(InputError, match="mask 'loss' orders parameters by their distance to an expert"):
            choose(flat, ParameterMask.loss(0.5))
    with pytest.raises(InputError, match="MLP is none; use mask none"):
        blocks_kept(other, ParameterMask.depth(0.5))
    with pytest.raises(InputError, match="leaves no weights"):
        channels_of(flat, ParameterMask.depth(0.9999))
