"""Networks by name, and networks of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pad_fast import ConvNet, ParameterMask, network, score
from pad_fast.models.flat import FlatNetwork
from pad_fast.models.sources import model_name

from ..exactness import flat
from ..small import QUIET, small_data
from .entry import Entry, in_turn, pixels


class Complex(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 64, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.real.T


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


class Embeds(nn.Module):
    """A network that says what its classifier reads."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(64, 3)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.embed(x))


def behind(module: nn.Module, blocks: list[int] | None) -> list[torch.Tensor]:
    return FlatNetwork(module).features(flat(module), pixels(2, 1, 8, 8), blocks)


def called(module: nn.Module) -> nn.Module:
    module(pixels(2, 1, 8, 8))
    return module


def two_layers(channels: int, classes: int, resolution: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * resolution**2, 4), nn.Linear(4, classes))


def made(model: Any) -> nn.Module:
    return network(model, channels=1, classes=3, resolution=8)


def scored(method: str) -> object:
    return score(small_data(), method=method, model=two_layers, networks=1, epochs=1, progress=QUIET)


MODELS = (
    Entry(
        "an unknown network of torchvision",
        lambda _: made("torchvision:resnet19"),
        r"Did you mean 'resnet18'.*list_models\(\) has their names",
        lambda _: made("torchvision:resnet18"),
    ),
    Entry(
        "a network for larger images",
        lambda _: made("torchvision:alexnet"),
        "use a network for this size, or another resolution=",
        lambda _: in_turn(
            lambda: made("torchvision:resnet18"), lambda: network("torchvision:alexnet", channels=1, resolution=64)
        ),
    ),
    Entry(
        "a network that is made already",
        lambda _: made(linear()),
        "pass its class, or a function",
        lambda _: in_turn(lambda: made(lambda channels, classes, resolution: linear()), lambda: made(two_layers)),
    ),
    Entry(
        "no network at all",
        lambda _: made(3),
        "pass a network's name, its class, or a function",
        lambda _: in_turn(lambda: made("MLP"), lambda: made(ConvNet), lambda: made(two_layers)),
    ),
    Entry(
        "a function of another process",
        lambda _: made("local:anything"),
        "pass the same function as model= again, or define it at the top of a module",
        lambda _: in_turn(lambda: made(model_name(lambda a, b, c: two_layers(a, b, c))), lambda: made(two_layers)),
    ),
    Entry(
        "an import path without a network",
        lambda _: made("python:torch.nn:Lineal"),
        "write python:MODULE:NAME",
        lambda _: made("python:tests.support.advice.of_models:two_layers"),
    ),
    Entry(
        "a class with arguments of its own",
        lambda _: made(nn.Linear),
        "pass a function of these three that makes the network",
        lambda _: made(two_layers),
    ),
    Entry(
        "logits of other classes",
        lambda _: made(lambda channels, classes, resolution: nn.Flatten()),
        r"make one whose forward returns logits \[2, 3\]",
        lambda _: made(two_layers),
    ),
    Entry(
        "arguments for a network of others",
        lambda _: network(two_layers, width=3),
        "leave them out",
        lambda _: network(two_layers),
    ),
    Entry("GraNd of a network without features", lambda _: scored("grand"), "use el2n", lambda _: scored("el2n")),
    Entry("an unknown network", lambda _: network("ConvNett"), "Did you mean 'ConvNet'", lambda _: network("ConvNet")),
    Entry(
        "an unknown argument",
        lambda _: network("ConvNet", widht=8),
        "Did you mean 'width'",
        lambda _: network("ConvNet", width=8),
    ),
    Entry(
        "an argument twice",
        lambda _: network("ConvNetW8", width=16),
        "drop the argument width=16 or the suffix",
        lambda _: in_turn(lambda: network("ConvNetW8"), lambda: network("ConvNet", width=16)),
    ),
    Entry("a suffix twice", lambda _: network("ConvNetW8W16"), "gives its width twice", lambda _: network("ConvNetW8")),
    Entry("no width", lambda _: network("ConvNetW0"), "must be at least 1", lambda _: network("ConvNetW1")),
    Entry(
        "too deep",
        lambda _: ConvNet(depth=5, resolution=8),
        "the largest possible depth is 3",
        lambda _: ConvNet(depth=3, resolution=8),
    ),
    Entry(
        "too small",
        lambda _: network("LeNet", resolution=4),
        "use ConvNet, MLP or larger images",
        lambda _: in_turn(
            lambda: network("ConvNet", resolution=4),
            lambda: network("MLP", resolution=4),
            lambda: network("LeNet", resolution=32),
        ),
    ),
    Entry(
        "a group norm's width",
        lambda _: ConvNet(width=6, norm="group"),
        "use a multiple of 4 or another norm",
        lambda _: in_turn(lambda: ConvNet(width=8, norm="group"), lambda: ConvNet(width=6, norm="instance")),
    ),
    Entry("a norm", lambda _: ConvNet(norm="instanec"), "Did you mean 'instance'", lambda _: ConvNet(norm="instance")),
    Entry(
        "a fraction of a class",
        lambda _: ConvNet(classes=2.5),
        "must be a positive integer",
        lambda _: ConvNet(classes=2),
    ),
    Entry(
        "images of another size",
        lambda _: ConvNet(resolution=16)(pixels(2, 3, 8, 8)),
        "build it for these images or resize them",
        lambda _: in_turn(
            lambda: ConvNet(resolution=8)(pixels(2, 3, 8, 8)), lambda: ConvNet(resolution=16)(pixels(2, 3, 16, 16))
        ),
    ),
    Entry("no parameters", lambda _: FlatNetwork(nn.Flatten()), "no parameters", lambda _: FlatNetwork(linear())),
    Entry(
        "a scripted network",
        lambda _: FlatNetwork(torch.jit.script(linear())),
        "pass the nn.Module it was made of",
        lambda _: FlatNetwork(linear()),
    ),
    Entry(
        "a lazy network",
        lambda _: FlatNetwork(lazy()),
        "call the network once on a batch of images",
        lambda _: FlatNetwork(called(lazy())),
    ),
    Entry(
        "a complex network",
        lambda _: FlatNetwork(Complex(torch.complex64)),
        "parameters are dense and floating",
        lambda _: FlatNetwork(Complex(torch.float32)),
    ),
    Entry(
        "blocks of a network that is none of ours",
        lambda _: behind(linear(), [1]),
        "use a ConvNet",
        lambda _: behind(ConvNet(channels=1, classes=3, resolution=8), [1]),
    ),
    Entry(
        "features of a network that hides them",
        lambda _: behind(linear(), None),
        "use a network from pad_fast.network, or add one",
        lambda _: in_turn(
            lambda: behind(network("MLP", channels=1, classes=3, resolution=8), None), lambda: behind(Embeds(), None)
        ),
    ),
    Entry(
        "layers behind a flat wrapper",
        lambda _: ParameterMask.layers(1).first_kept(FlatNetwork(Wrapped())),
        r"use ParameterMask.depth\(ratio\), or pass the network without",
        lambda _: in_turn(
            lambda: ParameterMask.depth(0.5).first_kept(FlatNetwork(Wrapped())),
            lambda: ParameterMask.layers(1).first_kept(FlatNetwork(ConvNet())),
        ),
    ),
)


class Wrapped(nn.Module):
    """A wrapper of the kind that published scripts use."""

    def __init__(self) -> None:
        super().__init__()
        self.flat_param = nn.Parameter(torch.zeros(64 * 3 + 3))

    def forward(self, x: torch.Tensor, flat_param: torch.Tensor | None = None) -> torch.Tensor:
        theta = self.flat_param if flat_param is None else flat_param
        return x.flatten(1) @ theta[: 64 * 3].view(64, 3) + theta[64 * 3 :]
