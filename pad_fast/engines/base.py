"""What an engine offers, and the problem it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..data.augment import DSA, DSADraw
from ..models.flat import FlatNetwork
from .updates import Updates

Augment = Callable[[Tensor, int], Tensor]
Pullback = Callable[[Tensor], Tensor]
FeaturePullback = Callable[[Sequence[Tensor]], Tensor]


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
    """The two operations of one unrolled training run. An instance belongs to one run and may cache between them.

    Attributes:
        random: whether a step may draw from torch's default generators (dropout), which are then rewound for its
            adjoint.
    """

    random = True

    @abstractmethod
    def gradient(self, step: int, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """`g(theta, x, y)` `[K, P]`: gradient of the mean cross entropy at stacked parameters `theta` `[K, P]`.

        The next call may use the same memory for its result.
        """

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
        """Pull `direction` `[K, P]` back through the gradient of the same step.

        The next call may use the same memory for its result.
        """


class Inputs(NamedTuple):
    """The tensors of one unrolled run: what may change from one iteration to the next while its operations stay.

    Attributes:
        theta_start, theta_target: `[K, P]`.
        images: `[N, C, H, W]`; labels: `[N, classes]` or `[N]`; lr: `[]`.
        indices: the batches of all steps behind each other, int64 `[sum of B_t]`.
        seed: of an :class:`Augmentation` that the engine draws itself, else None.
    """

    theta_start: Tensor
    theta_target: Tensor
    images: Tensor
    labels: Tensor
    lr: Tensor
    indices: Tensor
    seed: Tensor | None


class Passes(ABC):
    """The forward and the reverse pass of one unrolled run, as functions of tensors that an engine may record.

    What the reverse pass needs of the forward pass is kept in the object.
    """

    @abstractmethod
    def forward(self, inputs: Inputs) -> Tensor:
        """Matching losses `[K]`."""

    @abstractmethod
    def reverse(self, inputs: Inputs, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `theta_start`, `theta_target`, `images`, `labels` and `lr`, None where they are not wanted.

        Args:
            inputs: those of the forward pass.
            grad_loss: `[K]`.
        """


class Augmentation(ABC):
    """How the batches of one run are augmented: in the forward pass, again in the reverse pass, and pulled back.

    Attributes:
        seed: what :meth:`begin` is to be given, None when nothing is.
        key: what besides tensors decides the operations; None when they cannot be told and must not be recorded.
    """

    seed: Tensor | None = None
    key: Hashable | None = None

    def begin(self, seed: Tensor | None) -> None:
        """Called once, ahead of the first step."""
        return None

    @abstractmethod
    def forward(self, step: int, images: Tensor, batch: Tensor) -> Tensor:
        """What `step` sees `[B, C, H, W]` of `images[batch]`."""

    @abstractmethod
    def again(self, step: int, images: Tensor, batch: Tensor, *, wants_gradient: bool) -> Tensor:
        """The same a second time, followed by :meth:`pull` when `wants_gradient`."""

    @abstractmethod
    def pull(self, step: int, grad: Tensor) -> Tensor:
        """The gradient in `images[batch]`, given the one in what :meth:`again` returned."""


class Distance(Protocol):
    """An engine's own form of :func:`pad_fast.matching.normalized_distance`, on `[K, P]`."""

    def value(self, end: Tensor, start: Tensor, target: Tensor, *, first_kept: int, dropped: int) -> Tensor:
        """`[K]`."""

    def gradients(
        self,
        end: Tensor,
        start: Tensor,
        target: Tensor,
        grad: Tensor,
        *,
        first_kept: int,
        dropped: int,
        wants: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients in `end`, `start` and `target`, given the one in the value `[K]`; new tensors, None if unwanted."""


class Engine(ABC):
    """One way to compute student steps. Engines are stateless; register instances in `pad_fast.engines`.

    Attributes:
        distance: the engine's own form of the matching loss; None when the formula is good enough.
        updates: steps on parameter vectors.
        side_by_side: whether several threads of a process may train networks of their own on the CPU at the same time,
            in less time than one after the other.
    """

    name: str
    distance: Distance | None = None
    updates: Updates = Updates()
    side_by_side = False

    def running(self) -> AbstractContextManager[None]:
        """Held around a run of many steps, for an engine that arranges the process for itself meanwhile."""
        return nullcontext()

    @abstractmethod
    def refuse(self, task: Task) -> str | None:
        """Why this engine cannot serve `task`, as a sentence for the user; None when it can."""

    def hesitate(self, task: Task) -> str | None:
        """Why `backend="auto"` should pass this engine over although it can serve `task`; None when it should not."""
        return None

    @abstractmethod
    def student(self, task: Task) -> Student:
        """A fresh run for the exact or TESLA gradient."""

    def augmentation(
        self, task: Task, augment: Augment, *, sizes: Sequence[int], images: Tensor
    ) -> Augmentation | None:
        """The engine's own form of `augment`, or None when it has none.

        Args:
            sizes: images per step.
            images: `[N, C, H, W]`, what the batches are taken from.
        """
        return None

    def passes(self, task: Task, make: Callable[[], Passes], key: Hashable | None, inputs: Inputs) -> Passes:
        """Passes to run on `inputs`, made now or recorded before.

        Args:
            make: makes passes that have seen nothing yet.
            key: equal for runs of the same task whose operations are the same while their tensors have equal shapes
                and dtypes; None for a run that must not be recorded.
        """
        return make()

    @abstractmethod
    def loss_grad_logits(
        self, task: Task, theta: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of ordinary training at `theta` `[P]`.

        Returns:
            Mean cross entropy (scalar), its gradient `[P]`, and the logits `[B, classes]` of the forward pass.
        """

    def loss_and_grad(self, task: Task, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`loss_grad_logits` without the logits."""
        loss, gradient, _ = self.loss_grad_logits(task, theta, images, labels)
        return loss, gradient

    @abstractmethod
    def forward(self, task: Task, theta: Tensor, images: Tensor) -> Tensor:
        """Logits `[B, classes]` without a graph."""

    def stacked_loss_grad_logits(
        self, task: Task, theta: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`loss_grad_logits` of K networks of one shape, each on images of its own.

        Networks with buffers (batch-norm statistics) share those of the task's module.

        Args:
            theta: `[K, P]`.
            images: `[K, B, C, H, W]`; `images.expand(K, ...)` where the networks see the same ones.
            labels: int64 `[K, B]` or logits `[K, B, classes]`.

        Returns:
            Losses `[K]`, gradients `[K, P]` and logits `[K, B, classes]`.
        """
        rows = [self.loss_grad_logits(task, *one) for one in zip(theta, images, labels, strict=True)]
        losses, gradients, logits = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return losses, gradients, logits

    def stacked_forward(self, task: Task, theta: Tensor, images: Tensor) -> Tensor:
        """:meth:`forward` of K networks: logits `[K, B, classes]`; see :meth:`stacked_loss_grad_logits`."""
        return torch.stack([self.forward(task, *one) for one in zip(theta, images, strict=True)])

    def together(self, task: Task, batch: int) -> int:
        """How many networks should go through stacked steps on batches of `batch` images at once.

        1 where they take no less time like that, and where they have buffers, which they would share.
        """
        return 1

    def augment_each(self, images: Tensor, draws: Sequence[DSADraw]) -> Tensor:
        """`images` `[K, B, C, H, W]` of K networks, those of each augmented by a draw of its own."""
        return torch.stack([DSA.apply(*one) for one in zip(images, draws, strict=True)])

    def group_gradients(self, task: Task, theta: Tensor, images: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Gradients `[G, P]` of the mean cross entropy of every group `[B_g, C, H, W]` at the same `theta` `[P]`."""
        if len({x.shape for x in images}) == 1:
            shared = theta.expand(len(images), -1)
            return self.stacked_loss_grad_logits(task, shared, torch.stack(list(images)), torch.stack(list(labels)))[1]
        out = theta.new_empty(len(images), len(theta))
        for row, x, y in zip(out, images, labels, strict=True):
            row.copy_(self.loss_and_grad(task, theta, x, y)[1])
        return out

    def group_pullback(self, task: Task, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Pullback]:
        """:meth:`group_gradients` of `images` `[G, B, C, H, W]`, and the way back to these.

        Returns:
            `g` `[G, P]`, and a function that turns directions `v` `[G, P]` into `d sum_g <v_g, g_g> / d images`; it
            may be called once.
        """
        student = self.student(task)
        out = theta.new_empty(len(images), len(theta))
        for group, row in enumerate(out):
            row.copy_(student.gradient(group, theta[None], images[group], labels[group])[0])

        def pull(directions: Tensor) -> Tensor:
            pulled = torch.empty_like(images, memory_format=torch.contiguous_format)
            for group, v in enumerate(directions):
                found = student.adjoint(
                    group,
                    theta[None],
                    v[None],
                    images[group],
                    labels[group],
                    wants_theta=False,
                    wants_images=True,
                    wants_labels=False,
                )
                if found.images is not None:
                    pulled[group].copy_(found.images)
            return pulled

        return out, pull

    def mean_features(
        self, task: Task, theta: Tensor, images: Sequence[Tensor], blocks: Sequence[int] | None
    ) -> list[Tensor]:
        """Mean features of every group `[B_g, C, H, W]`: of the classifier's inputs, or behind the first d blocks.

        Args:
            blocks: d of each result; None asks for the classifier's inputs alone.

        Returns:
            `[G, F_d]` for each d, without a graph.
        """
        with torch.no_grad():
            return _means(task.network.features(theta, torch.cat(list(images)), blocks), [len(x) for x in images])

    def mean_features_pullback(
        self, task: Task, theta: Tensor, images: Tensor, blocks: Sequence[int] | None
    ) -> tuple[list[Tensor], FeaturePullback]:
        """:meth:`mean_features` of `images` `[G, B, C, H, W]`, and the way back to these.

        Returns:
            The means, and a function that turns a `v` `[G, F_d]` for each of them into the gradient of the sum of
            their inner products in the images; it may be called once.
        """
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            found = _means(task.network.features(theta, leaf.flatten(0, 1), blocks), [images.shape[1]] * len(images))

        def pull(directions: Sequence[Tensor]) -> Tensor:
            return torch.autograd.grad(found, leaf, list(directions))[0]

        return [means.detach() for means in found], pull


def contiguous_data(tensor: Tensor) -> Tensor:
    """What a kernel reads from memory: no graph, rows behind each other."""
    return tensor.detach().contiguous()


def _means(features: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Per group of `sizes` images, the mean of each of these `[sum of sizes, F]`."""
    return [torch.stack([piece.mean(0) for piece in each.split(list(sizes))]) for each in features]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy with hard labels (int64 `[B]`) or soft ones (`[B, classes]` label logits, softmaxed here)."""
    if labels.is_floating_point():
        return functional.cross_entropy(logits, labels.softmax(-1))
    return functional.cross_entropy(logits, labels)
