"""What an engine offers, and the problem it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..models.flat import FlatNetwork

GRADIENTS = ("exact", "unroll", "tesla")
Augment = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """What an engine is asked to serve; it may refuse with a reason.

    Attributes:
        network: the student.
        device, dtype: of images and parameters.
        gradient: "exact", "unroll" or "tesla"; "train" when only plain steps are needed.
        precision: "auto" or the name of an arithmetic the engine knows.
        cache_bytes: activations a run may keep between the forward and the reverse pass, to save recomputing them.
    """

    network: FlatNetwork
    device: torch.device
    dtype: torch.dtype
    gradient: str = "train"
    precision: str = "auto"
    cache_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Adjoint:
    """Derivatives of `phi = <v, g(theta, x, y)>`, g the gradient of the student's training loss.

    Attributes:
        phi: `[K]`.
        theta: `d phi / d theta` `[K, P]`, None when it was not asked for.
        images: `d phi / d x` summed over the K trajectories, `[B, C, H, W]`, or None.
        labels: `d phi / d y` summed over the K trajectories, `[B, classes]`, or None.
    """

    phi: Tensor
    theta: Tensor | None
    images: Tensor | None
    labels: Tensor | None


class Student(ABC):
    """The two operations of one unrolled training run. An instance belongs to one run and may cache between them."""

    @abstractmethod
    def gradient(self, step: int, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """`g(theta, x, y)` `[K, P]`: gradient of the mean cross entropy at stacked parameters `theta` `[K, P]`."""

    @abstractmethod
    def adjoint(
        self,
        step: int,
        theta: Tensor,
        direction: Tensor,
        images: Tensor,
        labels: Tensor,
        *,
        wants_theta: bool,
        wants_images: bool,
        wants_labels: bool,
    ) -> Adjoint:
        """Pull `direction` `[K, P]` back through the gradient of the same step."""


class Engine(ABC):
    """One way to compute student steps. Engines are stateless; register instances in `pad_fast.engines`."""

    name: str

    def running(self) -> AbstractContextManager[None]:
        """Held around a run of many steps, for an engine that arranges the process for itself meanwhile."""
        return nullcontext()

    @abstractmethod
    def refuse(self, task: Task) -> str | None:
        """Why this engine cannot serve `task`, as a sentence for the user; None when it can."""

    @abstractmethod
    def student(self, task: Task) -> Student:
        """A fresh run for the exact or TESLA gradient."""

    @abstractmethod
    def loss_and_grad(self, task: Task, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross entropy (scalar) and its gradient `[P]` at `theta` `[P]`, for ordinary training."""

    def loss_grad_logits(
        self, task: Task, theta: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`loss_and_grad` with the logits `[B, classes]`, which an engine has at hand anyway."""
        logits = self.forward(task, theta, images)
        return *self.loss_and_grad(task, theta, images, labels), logits

    @abstractmethod
    def forward(self, task: Task, theta: Tensor, images: Tensor) -> Tensor:
        """Logits `[B, classes]` without a graph."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy with hard labels (int64 `[B]`) or soft ones (`[B, classes]` label logits, softmaxed here)."""
    if labels.is_floating_point():
        return functional.cross_entropy(logits, labels.softmax(-1))
    return functional.cross_entropy(logits, labels)
