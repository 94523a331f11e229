"""Networks by name, as users of the field write them: ConvNetD4, ConvNetW256BN, ResNet18, VGG11BN."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import InputError, nearest
from .convnet import ConvNet, default_depth
from .layers import ImageNetwork
from .sources import Maker, build_foreign, is_foreign, model_name
from .zoo import MLP, VGG11, AlexNet, LeNet, ResNet18

_SUFFIXES: dict[str, tuple[str, str]] = {
    "NN": ("norm", "none"),
    "BN": ("norm", "batch"),
    "LN": ("norm", "layer"),
    "IN": ("norm", "instance"),
    "GN": ("norm", "group"),
    "AS": ("activation", "sigmoid"),
    "AR": ("activation", "relu"),
    "AL": ("activation", "leakyrelu"),
    "NP": ("pooling", "none"),
    "MP": ("pooling", "max"),
    "AP": ("pooling", "avg"),
}
_SIZES = {"D": "depth", "W": "width"}
_PART = re.compile(r"([DW])(\d+)|(" + "|".join(_SUFFIXES) + ")")

_FAMILIES: dict[str, tuple[Callable[..., ImageNetwork], dict[str, str]]] = {
    "MLP": (MLP, {}),
    "LeNet": (LeNet, {}),
    "AlexNet": (AlexNet, {}),
    "VGG11": (VGG11, {}),
    "VGG11BN": (VGG11, {"norm": "batch"}),
    "ResNet18": (ResNet18, {}),
    "ResNet18BN": (ResNet18, {"norm": "batch"}),
}


def network(
    name: str | Maker, *, channels: int = 3, classes: int = 10, resolution: int = 32, **variant: Any
) -> nn.Module:
    """Build a network by name for images [N, channels, resolution, resolution].

    ConvNet names take any number of suffixes in any order, each property once: D<depth>, W<width>; NN, BN,
    LN, IN, GN (norm none, batch, layer, instance, group); AS, AR, AL (sigmoid, relu, leakyrelu); NP, MP, AP
    (pooling none, max, average). Without D the depth follows the resolution: 2 up to 16 px, 3 at 28 and 32,
    4 at 64, 5 at 128. The other names are listed by :func:`network_names`. Every name takes every
    resolution its network can, so there are no separate names for 64 px images.

    Args:
        name: such as "ConvNet", "ConvNetD2W32", "ResNet18BN"; "torchvision:resnet18" or "timm:vit_tiny_patch16_224",
            untrained, where that package is installed; "python:MODULE:NAME", or the class or function itself, which is
            called with channels, classes and resolution.
        channels: channels of the images.
        classes: number of classes.
        resolution: side of the images in pixels.
        variant: further arguments of a class of ours (ConvNet: width, depth, norm, activation, pooling; VGG11 and
            ResNet18: norm). They may not contradict the name.

    Returns:
        A module with `forward(x)` -> logits [N, classes]; ours with `embed(x)` -> penultimate features [N, F] and
        `classifier`, its last linear layer, too. Weights are torch's defaults from the global generator.

    Raises:
        InputError: an unknown name or argument, an argument that contradicts the name, or a resolution too
            small for the network.

    Example:
        >>> from pad_fast.models import network
        >>> network("ConvNetD2W32", channels=1, resolution=8).config.depth
        2
        >>> network("ConvNet", resolution=64, classes=200).config.depth
        4
    """
    name = model_name(name)
    if is_foreign(name):
        if variant:
            raise InputError(f"network {name!r} takes no further arguments, got {', '.join(variant)}; leave them out")
        return build_foreign(name, channels=channels, classes=classes, resolution=resolution)
    build, named = _lookup(name)
    accepted = set(inspect.signature(build).parameters) - {"channels", "classes", "resolution"}
    for key, value in variant.items():
        if key not in accepted:
            takes = f"takes {', '.join(sorted(accepted))}" if accepted else "has no variants"
            raise InputError(f"network {name!r}: unknown argument {key!r}.{nearest(key, accepted)} It {takes}")
        if key in named and _plain(value) != _plain(named[key]):
            raise InputError(
                f"network {name!r} already says {key}={named[key]!r}; drop the argument {key}={value!r} or the suffix"
            )
    arguments = {**named, **variant}
    if build is ConvNet:
        arguments.setdefault("depth", default_depth(channels, resolution))
    return build(channels=channels, classes=classes, resolution=resolution, **arguments)


def network_names() -> tuple[str, ...]:
    """Every fixed name :func:`network` knows and the usual ConvNet variants, whose suffixes also combine."""
    depths = [f"ConvNetD{depth}" for depth in range(1, 9)]
    widths = [f"ConvNetW{width}" for width in (32, 64, 128, 256, 512, 1024)]
    return ("ConvNet", *depths, *widths, *(f"ConvNet{suffix}" for suffix in _SUFFIXES), *_FAMILIES)


def known_networks() -> str:
    """Every name that :func:`network` takes, as a phrase."""
    return (
        f"ConvNet with any of D<depth> W<width> {' '.join(_SUFFIXES)}, {', '.join(_FAMILIES)}, and torchvision:NAME, "
        "timm:NAME, python:MODULE:NAME"
    )


def _lookup(name: str) -> tuple[Callable[..., ImageNetwork], dict[str, Any]]:
    text = str(name)
    if text in _FAMILIES:
        build, fixed = _FAMILIES[text]
        return build, dict(fixed)
    if text.startswith("ConvNet"):
        return ConvNet, _convnet_arguments(text)
    raise InputError(_unknown(name))


def _convnet_arguments(name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    position = len("ConvNet")
    while position < len(name):
        match = _PART.match(name, position)
        if match is None:
            raise InputError(_unknown(name))
        letter, digits, suffix = match.groups()
        key, value = _SUFFIXES[suffix] if suffix else (_SIZES[letter], int(digits))
        if key in arguments:
            raise InputError(f"network {name!r} gives its {key} twice")
        if value == 0:
            raise InputError(f"network {name!r}: {key} must be at least 1")
        arguments[key] = value
        position = match.end()
    return arguments


def _plain(value: Any) -> Any:
    """A variant's value without the optional "norm" or "pooling" ending, to compare spellings."""
    return value.removesuffix("norm").removesuffix("pooling") if isinstance(value, str) else value


def _unknown(name: object) -> str:
    return f"unknown network {name!r}.{nearest(str(name), network_names())} Known: {known_networks()}"
