"""The table of operations that student steps are made of: Triton kernels on a GPU, their naive twins anywhere.

A Protocol for each family says what a module of `pad_fast.kernels` offers under these names. Activations are
channels-last `[K, B, H, W, C]`, parameters and gradients `[K, P]`. An operation that writes into `out` `[K, P]` assigns
its entries, or adds to them with `accumulate`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, cast

from torch import Tensor

from ...data.augment import DSADraw

Filters = Any
"""A layer's filters as the convolutions read them; only their family knows how they lie."""
Place = Any
"""Where the first block's parameters lie in the flat vector, in the words of its family."""
Lines = Any
"""Where the channels lie in a flat gradient, in the words of the distance of gradient matching."""
Statistics = Any
"""Whatever the first block leaves behind for its way back."""


class ConvOperations(Protocol):
    """3x3 convolutions with filters of their own per trajectory."""

    def pack(self, theta: Tensor, offset: int, inputs: int, outputs: int, *, precision: str) -> Filters: ...
    def pack_all(self, theta: Tensor, layers: Sequence[tuple[int, int, int]], *, precision: str) -> list[Filters]: ...
    def forward(self, h: Tensor, w: Filters, *, precision: str) -> Tensor: ...
    def tangent(
        self, h: Tensor, hd: Tensor, w: Filters, v: Filters, *, precision: str, with_primal: bool = True
    ) -> tuple[Tensor | None, Tensor]: ...
    def data_grad(self, gz: Tensor, w: Filters, *, precision: str) -> Tensor: ...
    def data_grad_dual(
        self, gz: Tensor, gzd: Tensor, w: Filters, v: Filters, *, precision: str
    ) -> tuple[Tensor, Tensor]: ...
    def weight_grad(
        self, h: Tensor, gz: Tensor, out: Tensor, offset: int, *, precision: str, accumulate: bool = False
    ) -> None: ...
    def weight_grad_dual(
        self,
        h: Tensor,
        hd: Tensor,
        gz: Tensor,
        gzd: Tensor,
        out: Tensor,
        offset: int,
        *,
        precision: str,
        accumulate: bool = False,
    ) -> None: ...


class BlockOperations(Protocol):
    """Instance norm, ReLU and pooling behind a convolution."""

    def forward(self, z: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, Tensor]: ...
    def tangent(
        self, z: Tensor, zd: Tensor, g: Tensor, b: Tensor, gd: Tensor, bd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def backward(
        self,
        z: Tensor,
        stats: Tensor,
        g: Tensor,
        b: Tensor,
        god: Tensor,
        out: Tensor,
        g_offset: int,
        b_offset: int,
        *,
        accumulate: bool = False,
    ) -> Tensor: ...
    def adjoint(
        self,
        z: Tensor,
        zd: Tensor,
        stats: Tensor,
        g: Tensor,
        b: Tensor,
        gd: Tensor,
        bd: Tensor,
        go: Tensor,
        god: Tensor,
        out: Tensor,
        g_offset: int,
        b_offset: int,
        *,
        accumulate: bool = False,
    ) -> tuple[Tensor, Tensor]: ...


class FirstBlockOperations(Protocol):
    """The first block with its convolution, from images `x` `[K, B, C, H, W]`."""

    def forward(self, x: Tensor, theta: Tensor, where: Place, *, precision: str) -> tuple[Tensor, Statistics]: ...
    def tangent(
        self, x: Tensor, theta: Tensor, v: Tensor, where: Place, *, precision: str
    ) -> tuple[Tensor, Tensor, Statistics]: ...
    def backward(
        self,
        x: Tensor,
        theta: Tensor,
        stats: Statistics,
        god: Tensor,
        where: Place,
        out: Tensor,
        *,
        precision: str,
        accumulate: bool = False,
    ) -> None: ...
    def adjoint(
        self,
        x: Tensor,
        theta: Tensor,
        v: Tensor,
        stats: Statistics,
        go: Tensor,
        god: Tensor,
        where: Place,
        out: Tensor,
        *,
        precision: str,
        accumulate: bool = False,
        wants_images: bool = True,
    ) -> Tensor | None: ...


class FirstOperations(FirstBlockOperations, Protocol):
    """The first block's own kernels, and for which images they are made."""

    MOST_CHANNELS: int
    FirstBlock: Callable[..., Place]


class ClassifierOperations(Protocol):
    """The linear classifier; logits come as parts of sums `[parts, K, B, classes]`."""

    def logits(self, f: Tensor, theta: Tensor, offset: int, classes: int, *, precision: str) -> Tensor: ...
    def tangent_logits(
        self, f: Tensor, fd: Tensor, theta: Tensor, v: Tensor, offset: int, classes: int, *, precision: str
    ) -> tuple[Tensor, Tensor]: ...
    def backward(
        self,
        gud: Tensor,
        f: Tensor,
        theta: Tensor,
        out: Tensor,
        offset: int,
        *,
        precision: str,
        accumulate: bool = False,
    ) -> Tensor: ...
    def backward_dual(
        self,
        gu: Tensor,
        gud: Tensor,
        f: Tensor,
        fd: Tensor,
        theta: Tensor,
        v: Tensor,
        out: Tensor | None,
        offset: int,
        *,
        precision: str,
        accumulate: bool = False,
    ) -> tuple[Tensor, Tensor]: ...


class HeadOperations(Protocol):
    """Cross entropy of logits `u` `[parts, K, B, classes]`, as shares of a batch of `batch` images."""

    def loss(self, u: Tensor, labels: Tensor, batch: int, *, labels_are: str = "logits") -> tuple[Tensor, Tensor]: ...
    def adjoint(
        self,
        u: Tensor,
        ud: Tensor,
        labels: Tensor,
        batch: int,
        *,
        labels_are: str = "logits",
        wants_labels: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]: ...


class MatchingOperations(Protocol):
    """The normalised distance of vectors `[K, P]`."""

    def distance(self, end: Tensor, start: Tensor, target: Tensor, *, first_kept: int, dropped: int) -> Tensor: ...
    def distance_gradients(
        self,
        end: Tensor,
        start: Tensor,
        target: Tensor,
        grad: Tensor,
        *,
        first_kept: int,
        dropped: int,
        wants: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]: ...


class GradientDistanceOperations(Protocol):
    """The distance of gradient matching."""

    def distance_and_direction(self, real: Tensor, synthetic: Tensor, where: Lines) -> tuple[Tensor, Tensor]: ...


class UpdateOperations(Protocol):
    """Steps on vectors, see :class:`pad_fast.models.updates.Updates`."""

    def sgd(self, theta: Tensor, g: Tensor, lr: Tensor, out: Tensor | None = None) -> Tensor: ...
    def momentum_sgd(
        self,
        theta: Tensor,
        g: Tensor,
        buffer: Tensor,
        lr: Tensor,
        *,
        momentum: float,
        weight_decay: float = 0.0,
        out: Tensor | None = None,
    ) -> Tensor: ...
    def gsam_ascent(self, theta: Tensor, g: Tensor, *, rho: float, out: Tensor | None = None) -> Tensor: ...
    def gsam_step(
        self, theta: Tensor, g1: Tensor, g2: Tensor, lr: Tensor, *, alpha: float, out: Tensor | None = None
    ) -> Tensor: ...


class AugmentOperations(Protocol):
    """Differentiable augmentation by a table of draws."""

    def apply(self, x: Tensor, table: Tensor, *, index: Tensor | None = None) -> Tensor: ...
    def transpose(self, grad: Tensor, table: Tensor) -> Tensor: ...
    def table_of(self, draws: Sequence[DSADraw], images: int) -> Tensor: ...
    def draw(
        self,
        seed: Tensor,
        *,
        steps: int,
        batch: int,
        shape: Sequence[int],
        strategy: str,
        trajectories: int = 1,
        siamese: bool = False,
    ) -> Tensor: ...


class Operations:
    """The operations of `pad_fast.kernels`, by family and name: `operations.conv.forward(...)`.

    Args:
        naive: take the twins in plain torch, which run on every device and in every floating dtype.
    """

    def __init__(self, *, naive: bool = False) -> None:
        self.naive = naive

    @cached_property
    def conv(self) -> ConvOperations:
        """3x3 convolutions."""
        return cast(ConvOperations, _Family("conv", self.naive))

    @cached_property
    def block(self) -> BlockOperations:
        """Instance norm, ReLU and pooling."""
        return cast(BlockOperations, _Family("block", self.naive))

    @cached_property
    def first(self) -> FirstOperations:
        """The first block with its convolution."""
        return cast(FirstOperations, _Family("first", self.naive))

    @cached_property
    def classifier(self) -> ClassifierOperations:
        """The linear classifier."""
        return cast(ClassifierOperations, _Family("classifier", self.naive))

    @cached_property
    def head(self) -> HeadOperations:
        """Cross entropy."""
        return cast(HeadOperations, _Family("head", self.naive))

    @cached_property
    def matching(self) -> MatchingOperations:
        """The normalised distance."""
        return cast(MatchingOperations, _Family("matching", self.naive))

    @cached_property
    def gradient_distance(self) -> GradientDistanceOperations:
        """The distance of gradient matching."""
        return cast(GradientDistanceOperations, _Family("gradient_distance", self.naive))

    @cached_property
    def update(self) -> UpdateOperations:
        """Steps on parameter vectors."""
        return cast(UpdateOperations, _Family("update", self.naive))

    @cached_property
    def augment(self) -> AugmentOperations:
        """Differentiable augmentation."""
        return cast(AugmentOperations, _Family("augment", self.naive))


class _Family:
    """The public functions of one kernel module, or their twins. Triton is imported on first use."""

    def __init__(self, name: str, naive: bool) -> None:
        self._module = importlib.import_module(f"pad_fast.kernels.{name}")
        self._prefix = "naive_" if naive else ""

    def __getattr__(self, name: str) -> Any:
        twin = None if name[0].isupper() else getattr(self._module, self._prefix + name, None)
        # Classes, and functions that are plain torch anyway, have no twin.
        return getattr(self._module, name) if twin is None else twin
