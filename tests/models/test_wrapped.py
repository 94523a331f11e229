"""Libraries that differentiate through training rebuild modules in ways of their own: networks of ours stand each."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import stateless

from pad_fast import ConvNet, network, trajectory_matching_loss
from pad_fast.models import FlatNetwork

from ..support.comparison import relative_error

NAMES = ("ConvNet", "ConvNetBN", "MLP", "LeNet", "AlexNet", "VGG11", "ResNet18", "ResNet18BN")
STEPS, RATE = 3, 0.2


class Stateless(ABC, nn.Module):
    """What `higher` mixes into every module that it rebuilds: an abstract class ahead of `nn.Module`."""

    @abstractmethod
    def __init__(self) -> None:
        self.given: list[Tensor] = []


class Placeholder:
    """Stands where a parameter was: it is no tensor."""


def rebuilt(module: nn.Module, box: list[Sequence[Tensor]], first: int = 0) -> tuple[nn.Module, int]:
    """The module as an object of a class made for it, that never ran the module's own `__init__`.

    Its parameters are put in place, as plain tensors out of `box`, whenever it is called; `first` is the number of the
    first of them. So does `higher`.

    Returns:
        It, and the number of the first parameter behind its own.
    """
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    kind = type(module)

    class Patched(kind, Stateless):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            Stateless.__init__(self)
            self._parameters = OrderedDict((name, Placeholder()) for name in names)

        def __setattr__(self, name: str, value: Any) -> None:
            parameters = self.__dict__.get("_parameters", {})
            if name in parameters and not isinstance(value, Placeholder):
                assert isinstance(value, Tensor)
                parameters[name] = value
            elif isinstance(value, nn.Module):
                self._modules[name] = value
            else:
                object.__setattr__(self, name, value)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            for name, tensor in zip(names, box[0][first : first + len(names)], strict=True):
                setattr(self, name, tensor)
            return kind.forward(self, *args, **kwargs)

    Patched.__name__ = Patched.__qualname__ = "Patched" + kind.__name__
    made = Patched()
    for name, value in vars(module).items():
        if name not in ("_parameters", "_modules", "_buffers"):
            setattr(made, name, value)
    for name in module._parameters.keys() - set(names):  # a bias that there is none of
        setattr(made, name, None)
    made._buffers = {name: None if each is None else each.clone() for name, each in module._buffers.items()}
    last = first + len(names)
    for name, child in module._modules.items():
        inner, last = rebuilt(child, box, last)
        setattr(made, name, inner)
    return made, last


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return network(name, channels=3, classes=4, resolution=16).double()


def small() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(channels=2, classes=4, width=6, depth=2, resolution=9).double()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def in_turn(module: nn.Module, box: list[Sequence[Tensor]], x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
    """Where differentiable steps on the parameters in `box` end: one flat vector."""
    for _ in range(STEPS):
        loss = functional.cross_entropy(module(x), y.softmax(-1))
        gradients = torch.autograd.grad(loss, box[0], create_graph=True)
        box[0] = [p - lr * g for p, g in zip(box[0], gradients, strict=True)]
    return torch.cat([p.flatten() for p in box[0]])


def meta_gradients(end: Tensor, start: Tensor, target: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((end - target).square().sum() / (start - target).square().sum(), leaves)


@pytest.mark.parametrize("name", NAMES)
def test_rebuilt_as_another_class_it_computes_the_same(name):
    module = made(name).eval()
    expected = module(images(2, 3, 16, 16))
    box: list[Sequence[Tensor]] = [[p.detach().clone().requires_grad_() for p in module.parameters()]]
    other, count = rebuilt(module, box)
    assert count == len(box[0]) and isinstance(other, type(module))
    got = other(images(2, 3, 16, 16))
    assert torch.equal(got, expected)
    grads = torch.autograd.grad(got.square().sum(), box[0])
    assert all(bool(grad.ne(0).any()) for grad in grads)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_gradient_through_a_rebuilt_network_is_that_of_the_loss():
    module, x, y = small(), images(5, 2, 9, 9).requires_grad_(), images(5, 4).requires_grad_()
    lr = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    start = FlatNetwork(module).initial()
    target = start + 0.1 * images(len(start))
    box: list[Sequence[Tensor]] = [[p.detach().clone().requires_grad_() for p in module.parameters()]]
    patched, _ = rebuilt(module, box)
    expected = meta_gradients(in_turn(patched, box, x, y, lr), start, target, (x, y, lr))
    loss = trajectory_matching_loss(module, start, target, x, y, lr, batches=[torch.arange(5)] * STEPS)
    for one, other in zip(torch.autograd.grad(loss, (x, y, lr)), expected, strict=True):
        assert relative_error(one, other) < 1e-9


def test_parameters_replaced_where_they_are_registered():
    """As TorchOpt's meta-optimizers do: tensors with a history in `_parameters`, one step after the other."""
    module, x, y = small(), images(5, 2, 9, 9).requires_grad_(), images(5, 4).requires_grad_()
    lr = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    start = FlatNetwork(module).initial()
    target = start + 0.1 * images(len(start))
    expected = trajectory_matching_loss(
        module, start, target, x, y, lr, batches=[torch.arange(5)] * STEPS, gradient="unroll"
    )
    owners = [(part, name) for part in module.modules() for name in part._parameters]
    for _ in range(STEPS):
        loss = functional.cross_entropy(module(x), y.softmax(-1))
        now = [owner._parameters[name] for owner, name in owners]
        gradients = torch.autograd.grad(loss, now, create_graph=True)
        for (owner, name), parameter, gradient in zip(owners, now, gradients, strict=True):
            owner._parameters[name] = parameter - lr * gradient
    end = torch.cat([p.flatten() for p in module.parameters()])
    got = meta_gradients(end, start, target, (x, y, lr))
    for one, other in zip(got, torch.autograd.grad(expected, (x, y, lr)), strict=True):
        assert relative_error(one, other) < 1e-9
    # What is registered are no parameters any more; the loss asks for names and shapes alone.
    again = trajectory_matching_loss(module, start, target, x, y, lr, batches=[torch.arange(5)] * STEPS)
    assert relative_error(torch.autograd.grad(again, x)[0], got[0]) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles_are_networks_of_their_own(name):
    module = made(name).eval()
    x = images(2, 3, 16, 16)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert torch.equal(other(x), module(x))
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert not torch.equal(other(x), module(x))


@pytest.mark.parametrize("name", NAMES)
def test_called_with_parameters_of_ones_own(name):
    module = made(name).eval()
    x = images(2, 3, 16, 16)
    theirs = {key: p.detach() * 1.1 for key, p in module.named_parameters()}
    got = torch.func.functional_call(module, theirs, (x,))
    with pytest.warns(FutureWarning, match="deprecated"):
        assert torch.equal(got, stateless.functional_call(module, theirs, (x,)))
    stacked = {key: torch.stack([p, 0.9 * p]) for key, p in theirs.items()}
    both = torch.func.vmap(lambda p: torch.func.functional_call(module, p, (x,)))(stacked)
    assert relative_error(both[0], got) < 1e-12 and relative_error(both[1], got) > 1e-3
    gradient = torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,)).square().sum())(theirs)
    assert gradient.keys() == theirs.keys() and all(bool(each.ne(0).any()) for each in gradient.values())


@pytest.mark.parametrize(
    "bases", [(ABC, ConvNet), (ConvNet, ABC), (ConvNet, nn.Module, ABC)], ids=["ahead", "between", "behind"]
)
def test_it_mixes_with_abstract_classes_in_any_order(bases):
    torch.manual_seed(0)
    kind = type("Mixed", bases, {"__init__": lambda self, **settings: ConvNet.__init__(self, **settings)})
    module = kind(channels=2, classes=4, width=6, depth=2, resolution=9).double()
    assert torch.equal(module(images(3, 2, 9, 9)), small()(images(3, 2, 9, 9)))


def test_a_rebuilt_network_is_not_taken_for_what_it_was():
    """Whatever parameters it is called with, it computes with those in its box."""
    module = small()
    box: list[Sequence[Tensor]] = [[p.detach() for p in module.parameters()]]
    patched, _ = rebuilt(module, box)
    patched(images(2, 2, 9, 9))  # puts tensors in place of the placeholders
    assert not isinstance(FlatNetwork(module, image_shape=(2, 9, 9)).convnet, str)
    found = FlatNetwork(patched, image_shape=(2, 9, 9)).convnet
    assert isinstance(found, str) and "something else" in found, found
