"""Keys of what modules compute: equal for a network that is built anew, different wherever a forward could differ."""

from __future__ import annotations

import gc
import sys
import weakref
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pad_fast.models.structure import structure_of

FACTOR, DOUBLED, HALVED = 1, 2, 0.5
OPTIONS = {"factor": 1}
settings = ModuleType("settings")
settings.__dict__.update(FACTOR=1, SHIFT=0.0)


def helper(x: Tensor) -> Tensor:
    return FACTOR * x


@dataclass(frozen=True)
class Config:
    width: int = 4


class Net(nn.Module):
    """Reads a number in each way that a forward can."""

    of_class = 1

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = 1.0
        self.names, self.options, self.args, self.config = ("a", "b"), {"a": [1, {2}]}, Namespace(a=1), Config()
        self.function: Callable[[Tensor], Tensor] = functional.relu
        self.constant = torch.ones(3)
        self.register_buffer("mean", torch.zeros(3))
        for name, value in attributes.items():
            setattr(self, name, value)

    def scaled(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return x * self.scale * factor

    @contextmanager
    def doubled(self) -> Iterator[int]:
        yield DOUBLED

    @torch.no_grad()
    def halved(self) -> float:
        return HALVED

    @property
    def shift(self) -> float:
        return settings.SHIFT

    def forward(self, x: Tensor) -> Tensor:
        x = helper(self.scaled(self.function(self.layer(x)))) * settings.FACTOR + self.shift
        return (OPTIONS["factor"] * x - self.mean.sum()) * (lambda y: self.of_class * y)(self.constant.sum())


class Other(Net):
    """The same parts, and another function."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Flat(nn.Module):
    """A wrapper that keeps one vector and, in the network inside, views of it."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.flat_param = nn.Parameter(torch.cat([p.detach().flatten() for p in self.inner.parameters()]))
        del self.inner.weight, self.inner.bias
        self.inner.weight, self.inner.bias = self.flat_param[:16].view(4, 4), self.flat_param[16 - shift : 20 - shift]


def test_a_network_built_anew_has_the_same_key():
    key = structure_of(Net())
    assert key is not None
    assert structure_of(Net()) == key and hash(structure_of(Net())) == hash(key)
    assert structure_of(Net(scale=0.0)) == structure_of(Net(scale=0.0)) != structure_of(Net(scale=-0.0))
    assert structure_of(Flat()) == structure_of(Flat()) is not None
    assert structure_of(Flat()) != structure_of(Flat(shift=1))


def instance_forward(net: Net) -> None:
    net.forward = lambda x: 2 * x  # type: ignore[method-assign]


def shared(net: Net) -> None:
    net.function = net.layer


CHANGES: dict[str, Callable[[Net], object]] = {
    "a number": lambda net: setattr(net, "scale", 2.0),
    "a flag for a number": lambda net: setattr(net, "scale", True),
    "a new attribute": lambda net: setattr(net, "another", 1),
    "training": lambda net: net.layer.eval(),
    "a list inside": lambda net: net.options["a"].append(3),
    "a set inside": lambda net: net.options["a"][1].add(3),
    "a namespace": lambda net: setattr(net.args, "a", 2),
    "a dataclass": lambda net: setattr(net, "config", Config(width=5)),
    "another function": lambda net: setattr(net, "function", functional.relu6),
    "a lambda": lambda net: setattr(net, "function", lambda x: 2 * x),
    "a partial": lambda net: setattr(net, "function", partial(functional.leaky_relu, negative_slope=0.1)),
    "a constant": lambda net: net.constant.add_(1),
    "a buffer": lambda net: net.mean.add_(1),
    "a layer": lambda net: setattr(net, "layer", nn.Linear(4, 4, bias=False)),
    "a layer of another class": lambda net: setattr(net, "layer", type("Mine", (nn.Linear,), {})(4, 4)),
    "one layer twice": shared,
    "its dtype": lambda net: net.double(),
    "its own forward": instance_forward,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_one_object_has_of_its_own_changes_its_key(change):
    key, net = structure_of(Net()), Net()
    change(net)
    assert structure_of(net) != key


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (Net, "of_class", 2),
        (Net, "scaled", lambda self, x: 2 * x),
        (Net, "shift", property(lambda self: 1.0)),
        (sys.modules[__name__], "FACTOR", 2),
        (sys.modules[__name__], "helper", lambda x: 2 * x),
        (sys.modules[__name__], "DOUBLED", 3),
        (sys.modules[__name__], "HALVED", 0.6),
        (settings, "FACTOR", 2),
        (settings, "SHIFT", 1.0),
        (nn.Linear, "forward", lambda self, x: x),
    ],
    ids=[
        "class",
        "method",
        "property",
        "global",
        "helper",
        "decorated",
        "torch's decorator",
        "module",
        "elsewhere",
        "torch",
    ],
)
def test_what_all_objects_read_changes_every_key(place, name, value, monkeypatch):
    keys = {kind: structure_of(kind()) for kind in (Net, Other)}
    assert all(structure_of(kind()) == key for kind, key in keys.items())
    monkeypatch.setattr(place, name, value)
    assert all(structure_of(kind()) not in (key, None) for kind, key in keys.items())


def test_a_dictionary_that_a_function_names_is_part_of_the_key(monkeypatch):
    key = structure_of(Net())
    monkeypatch.setitem(OPTIONS, "factor", 2)
    assert structure_of(Net()) not in (key, None)


def test_defaults_are_part_of_the_key(monkeypatch):
    key = structure_of(Net())
    monkeypatch.setattr(Net.scaled, "__defaults__", (2.0,))
    assert structure_of(Net()) not in (key, None)


def test_classes_with_the_same_parts_differ():
    def made(factor: int) -> type[nn.Module]:
        class Inner(Net):
            def forward(self, x: Tensor) -> Tensor:
                return factor * x

        return Inner

    keys = [structure_of(kind()) for kind in (Net, Other, made(1), made(2))]
    assert None not in keys and len(set(keys)) == 4


def closures(factor: float) -> Net:
    return Net(function=lambda x: factor * x)


def test_closures_are_compared_by_what_they_hold():
    assert structure_of(closures(2.0)) == structure_of(closures(2.0)) != structure_of(closures(3.0))


def counting() -> Iterator[int]:
    yield 1


def empty_cell() -> Net:
    net = Net(function=lambda x: later * x)
    if FACTOR == 0:
        later = 1
    return net


def importing() -> Net:
    def function(x: Tensor) -> Tensor:
        import tests

        return x * len(tests.__name__)

    return Net(function=function)


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layer.register_forward_hook(lambda module, given, result: 2 * result)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(draws=torch.Generator()),
        lambda: Net(log=sys.stdout),
        lambda: Net(values=counting()),
        lambda: Net(table=torch.zeros(100_000)),
        lambda: Net(rows=list(range(30_000))),
        lambda: Net(hidden=[nn.Linear(2, 2)]),
        Hooked,
        empty_cell,
        importing,
    ],
    ids=["generator", "file", "iterator", "large tensor", "long list", "hidden layer", "hook", "empty cell", "import"],
)
def test_what_cannot_be_compared_makes_it_opaque(make):
    assert structure_of(make()) is None


def test_an_attribute_that_holds_itself_makes_it_opaque():
    net = Net()
    net.options["self"] = net.options
    assert structure_of(net) is None


def test_a_key_keeps_no_network_and_no_tensor_alive():
    net = Net()
    key, gone = structure_of(net), (weakref.ref(net), weakref.ref(net.layer.weight), weakref.ref(net.constant))
    del net
    gc.collect()
    assert key is not None and [ref() for ref in gone] == [None] * 3
