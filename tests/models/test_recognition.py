"""ConvNets that others wrote are recognised where forward passes prove it, once for all objects of a kind."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pad_fast import ParameterMask, trajectory_matching_loss
from pad_fast.engines import record_backends
from pad_fast.errors import BackendError, InputError
from pad_fast.models import ConvNet, ConvNetConfig, FlatNetwork, recognition
from pad_fast.runtime import extension

from ..support.comparison import describe_difference, relative_error
from ..support.convnets import SHAPE, Blocks, Functional, Lists, Pair, Reparametrised, halved, perturbed, sequential
from ..support.native import require_native

NATIVE = "cpu" if extension.available() else "autograd"
CONFIG = ConvNet(channels=2, classes=4, width=6, depth=2, resolution=9).config


def clamped(x: Tensor) -> Tensor:
    return functional.relu(x).clamp(max=20.0)


def dropped(x: Tensor) -> Tensor:
    return functional.dropout(functional.relu(x), 1e-9)


class Bounded(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-5.0, 5.0))


SERVED = {
    "lists by kind": Lists,
    "functions, head first": Functional,
    "pooling by hand": lambda: Functional(pool=halved),
    "blocks, unused parts": Blocks,
    "sequential": sequential,
    "dropout that is off": lambda: Blocks(drop=nn.Dropout(0.3)).eval(),
    "lists in a wrapper": lambda: Reparametrised(Lists()),
    "functions in a wrapper": lambda: Reparametrised(Functional()),
    "blocks in a wrapper": lambda: Reparametrised(Blocks()),
    "ours in a wrapper": lambda: Reparametrised(ConvNet(channels=2, classes=4, width=6, depth=2, resolution=9)),
}


def network_of(module: nn.Module) -> FlatNetwork:
    return FlatNetwork(module, image_shape=SHAPE)


def problem(module: nn.Module) -> dict[str, Any]:
    draws = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    start = FlatNetwork(module).initial()
    return {
        "theta_start": torch.stack([start, start + 0.1 * normal(len(start))]),
        "theta_target": start + 0.1 * normal(2, len(start)),
        "images": normal(6, *SHAPE),
        "labels": normal(6, 4),
        "lr": torch.tensor(0.3, dtype=torch.float64),
        "batches": [torch.tensor([0, 2, 4]), torch.arange(6), torch.tensor([5, 1])],
    }


ALL = ("images", "labels", "lr", "theta_start", "theta_target")


def pulled(module: nn.Module, **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    given = problem(module)
    leaves = [given[name].requires_grad_() for name in ALL]
    losses = trajectory_matching_loss(module, **given, **options)
    return losses.detach(), torch.autograd.grad(losses, leaves, torch.tensor([0.7, -1.6], dtype=torch.float64))


@pytest.mark.parametrize("mask", [ParameterMask.none(), ParameterMask.loss(0.4)], ids=repr)
@pytest.mark.parametrize("make", SERVED.values(), ids=SERVED)
def test_it_is_recognised_and_its_gradient_is_that_of_the_oracle(make, mask):
    require_native()
    module = perturbed(make())
    found = network_of(module).recognised
    assert isinstance(found, recognition.Recognised), found
    assert found.config == CONFIG
    with record_backends() as used:
        losses, got = pulled(module, mask=mask)
    assert used == ["cpu"]
    with record_backends() as used:
        truth, expected = pulled(module, mask=mask, gradient="unroll")
    assert used == ["autograd"] and float((truth[0] - truth[1]).abs()) > 1e-3
    assert relative_error(losses, truth) < 1e-11
    for name, one, other in zip(ALL, got, expected, strict=True):
        assert float(other.norm()) > 1e-8, f"{name}: a zero gradient proves nothing"
        assert relative_error(one, other) < 1e-9, f"{name}: " + describe_difference(one, other)


REFUSED = {
    "relu6": (lambda: Blocks(act=nn.ReLU6()), "ReLU6"),
    "relu6 as a function": (lambda: Functional(act=functional.relu6), "something else"),
    "a high bound": (lambda: Functional(act=clamped), "something else"),
    "images cut off": (Bounded, "something else"),
    "dropout": (lambda: Blocks(drop=nn.Dropout(0.3)), "Dropout"),
    "dropout of next to nothing": (lambda: Functional(act=dropped), "draws random numbers"),
    "eps": (lambda: Functional(eps=1.1e-5), "something else"),
    "norms crossed": (lambda: Lists(crossed=True), "something else"),
    "pooling of other windows": (
        lambda: Functional(pool=lambda x: functional.adaptive_avg_pool2d(x, 2)),
        "something else",
    ),
    "a pair": (Pair, "returns a tuple"),
    "one parameter more": (lambda: Blocks(extra=True), "has 569 parameters, a ConvNet of its layers 568"),
    "gelu": (lambda: Functional(act=functional.gelu), "something else"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_computes_something_else_is_refused_with_the_reason(make, reason):
    found = network_of(perturbed(make())).convnet
    assert isinstance(found, str) and re.search(reason, found), found


@pytest.mark.parametrize("shape", [(2, 9, 8), (2, 9), (3, 9, 9), (2, 17, 17)], ids=str)
def test_other_images_are_refused_with_the_reason(shape):
    found = FlatNetwork(perturbed(Lists()), image_shape=shape).convnet
    assert isinstance(found, str) and re.search("square|in_channels|reads 24 features", found), found


@pytest.mark.parametrize("mask", [ParameterMask.depth(0.3), ParameterMask.layers(1)], ids=repr)
def test_masks_of_leading_parameters_mean_the_networks_own_order(mask):
    module = perturbed(Lists())
    with record_backends() as used:
        losses, got = pulled(module, mask=mask)
    truth, expected = pulled(module, mask=mask, gradient="unroll")
    assert used == ["autograd"]
    assert relative_error(losses, truth) < 1e-11 and relative_error(losses, pulled(module)[0]) > 1e-3
    assert all(relative_error(one, other) < 1e-9 for one, other in zip(got, expected, strict=True))
    with pytest.raises(BackendError, match="Lists has its parameters in another order; use backend='autograd'"):
        pulled(module, mask=mask, backend="cpu")


def test_classes_of_one_in_another_order_are_known():
    module = perturbed(Lists())
    with pytest.raises(InputError, match="hard labels run from 0 to 4; classes of the network are 0 to 3"):
        trajectory_matching_loss(module, **{**problem(module), "labels": torch.tensor([0, 1, 2, 3, 4, 0])})


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks whose forward passes were compared, with nothing known yet."""
    names: list[str] = []
    differs = FlatNetwork._differs

    def counted(self: FlatNetwork, found: recognition.Recognised) -> str | None:
        names.append(type(self.module).__name__)
        return differs(self, found)

    monkeypatch.setattr(FlatNetwork, "_differs", counted)
    monkeypatch.setattr(recognition, "_by_structure", {})
    return names


@pytest.mark.parametrize("make", SERVED.values(), ids=SERVED)
def test_a_network_built_anew_is_not_compared_again(make, compared):
    found = [network_of(perturbed(make())).recognised for _ in range(3)]
    assert found == [found[0]] * 3 and isinstance(found[0], recognition.Recognised)
    assert len(compared) == 1


class Doubled(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Switched(Blocks):
    doubled = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.doubled else 1)


@pytest.mark.parametrize("wrap", [lambda module: module, Reparametrised], ids=["plain", "wrapper"])
def test_networks_of_the_same_parts_do_not_share_an_answer(wrap, compared, monkeypatch):
    def is_ours(module: nn.Module) -> bool:
        return not isinstance(network_of(wrap(perturbed(module))).recognised, str)

    assert is_ours(Blocks()) and not is_ours(Doubled()) and is_ours(Blocks())
    switched = Switched()
    assert is_ours(switched)
    switched = Switched()
    switched.doubled = True
    assert not is_ours(switched)
    assert is_ours(Switched())
    monkeypatch.setattr(Switched, "doubled", True)
    assert not is_ours(Switched())
    assert len(compared) == 5
    own = Blocks()
    own.forward = lambda x: 3 * Blocks.forward(own, x)
    assert not is_ours(own) and is_ours(Blocks())


def test_what_cannot_be_compared_by_value_is_answered_for_itself_alone(compared):
    def opaque() -> nn.Module:
        module = perturbed(Blocks())
        module.draws = torch.Generator()
        return module

    one, other = opaque(), opaque()
    assert [network_of(module).convnet for module in (one, one, other)] == [CONFIG] * 3
    assert len(compared) == 2
    one.body.register_forward_hook(lambda module, given, result: 2 * result)
    assert isinstance(network_of(one).convnet, str)
    one.body[1].norm = nn.GroupNorm(2, 6).double()
    assert "GroupNorm(2, 6" in str(network_of(one).convnet)


def ours() -> ConvNet:
    return ConvNet(channels=2, classes=4, width=6, depth=2, resolution=9).double()


class Tripled(ConvNet):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Renamed(ConvNet):
    """Ours, with something more."""

    def count(self) -> int:
        return sum(p.numel() for p in self.parameters())


def exchanged() -> ConvNet:
    module = ours()
    module.features[2] = nn.LeakyReLU(0.3)
    return module


def hooked() -> ConvNet:
    module = ours()
    module.classifier.register_forward_hook(lambda module, given, result: 2 * result)
    return module


def overridden() -> ConvNet:
    module = ours()
    module.forward = lambda x: module.embed(x)[:, :4]
    return module


def test_a_convnet_of_ours_is_believed_as_far_as_it_is_one():
    settings = {"channels": 2, "classes": 4, "width": 6, "depth": 2, "resolution": 9}
    for module in (ours(), Renamed(**settings).double()):
        assert network_of(module).convnet == CONFIG == FlatNetwork(module).convnet
    for module in (Tripled(**settings).double(), exchanged(), overridden(), hooked()):
        found = network_of(module).convnet
        assert isinstance(found, str) and "something else" in found, found
        assert "is not a pad_fast.ConvNet" in str(FlatNetwork(module).convnet)


def test_configurations_of_all_norms_are_known_without_images():
    for norm in ("none", "batch", "layer", "group", "instance"):
        found = FlatNetwork(ConvNet(width=4, depth=1, resolution=8, norm=norm, pooling="max")).convnet
        assert isinstance(found, ConvNetConfig) and (found.norm, found.pooling) == (norm, "max")
