"""Parts that all networks share: the input check, the embed/classifier split, the normalisation layers."""

from __future__ import annotations

import operator
from abc import ABCMeta, abstractmethod
from typing import SupportsIndex

from torch import Tensor, nn

from ..errors import InputError, nearest

NORMS = ("instance", "batch", "layer", "group", "none")
"""Canonical names of the normalisations; :func:`canonical` also accepts them with `norm` appended."""

_GROUPS = 4


class ImageNetwork(nn.Module, metaclass=ABCMeta):  # not ABC: bases of libraries that rebuild modules name it first
    """A classifier of square images whose last layer is linear: `logits = classifier(embed(x))`.

    Subclasses define `classifier` and :meth:`embed`. The split is what last-layer scores (GraNd) and
    distribution matching need.
    """

    classifier: nn.Linear

    def __init__(self, *, channels: int, classes: int, resolution: int) -> None:
        super().__init__()
        self.channels = positive("channels", channels)
        self.classes = positive("classes", classes)
        self.resolution = positive("resolution", resolution)

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Penultimate features [N, F] of images [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, channels, resolution, resolution].

        Raises:
            InputError: the images do not have the channels or the size this network was built for.
        """
        logits: Tensor = self.classifier(self.embed(x))
        return logits

    def check_images(self, x: Tensor) -> None:
        """Raise InputError unless `x` is [N, channels, resolution, resolution]."""
        expected = (self.channels, self.resolution, self.resolution)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            sides = ", ".join(map(str, expected))
            raise InputError(
                f"{type(self).__name__} takes images [N, {sides}], got {list(x.shape)}; "
                "build it for these images or resize them"
            )


def normalisation(kind: str, channels: int, size: int) -> nn.Module:
    """The affine normalisation `kind`, one of :data:`NORMS` except "none", of maps [N, channels, size, size].

    Instance norm is written as GroupNorm with one channel per group, so its parameters have the names and the
    order of the published code's flat vectors.

    Raises:
        InputError: group norm and a channel count that 4 groups do not divide.
    """
    if kind == "instance":
        return nn.GroupNorm(channels, channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "layer":
        return nn.LayerNorm([channels, size, size])
    if channels % _GROUPS:
        raise InputError(
            f"norm='group' splits the channels into {_GROUPS} groups, which width {channels} does not allow; "
            f"use a multiple of {_GROUPS} or another norm"
        )
    return nn.GroupNorm(_GROUPS, channels)


def canonical(value: str, known: tuple[str, ...], suffix: str, what: str) -> str:
    """`value` as one of `known`, with or without `suffix` ("instancenorm" -> "instance").

    Raises:
        InputError: neither form is known; names the nearest.
    """
    short = str(value).removesuffix(suffix)
    if short not in known:
        raise InputError(f"unknown {what} {value!r}.{nearest(str(value), known)} Choose one of: {', '.join(known)}")
    return short


def positive(name: str, value: SupportsIndex) -> int:
    """`value` as an int of at least 1 (NumPy integers too); raise InputError for anything else."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")
    return number
