"""Engines: the problem they are given, and the operations that they offer for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.augment import DSA, DSADraw
from ..errors import InputError
from ..models.flat import Channels, FlatNetwork
from ..models.updates import Updates
from ..runtime.shapes import Float, Int
from .leaves import not_twice

Labels = Float[Tensor, "B classes"] | Int[Tensor, " B"]
"""Soft labels (see :attr:`Task.labels_are`), or classes, of a batch."""
StackedLabels = Float[Tensor, "K B classes"] | Int[Tensor, "K B"]
"""The same of the batches of K networks."""
Augment = Callable[[Tensor, int], Tensor]
Pullback = Callable[[Tensor], Tensor]
FeaturePullback = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """A problem that an engine is asked to serve; it may refuse with a reason.

    Attributes:
        network: the student.
        device, dtype: of images and parameters.
        gradient: "exact", "unroll" or "tesla"; "train" when only plain steps are needed.
        precision: "auto" or the name of an arithmetic the engine knows.
        cache_bytes: activations a run may keep between the forward and the reverse pass, to save recomputing them.
        labels_are: what soft labels hold, one of :data:`LABELS_ARE`: logits, which a step softmaxes, or probabilities,
            which it takes as they are, whatever they add up to.
    """

    network: FlatNetwork
    device: torch.device
    dtype: torch.dtype
    gradient: str = "train"
    precision: str = "auto"
    cache_bytes: int = 0
    labels_are: str = "logits"


@dataclass(frozen=True)
class Wants:
    """The derivatives that are asked for, of one step or of a whole run; no others need be computed.

    Attributes:
        theta: in the parameters at the beginning: those a step is taken at, or those that a run starts from.
        images, labels: in the synthetic images and labels.
        target, lr: in the parameters to be reached and the learning rate, which only a run has.
    """

    theta: bool = False
    images: bool = False
    labels: bool = False
    target: bool = False
    lr: bool = False


@dataclass(frozen=True, eq=False)
class Adjoint:
    """Derivatives of `phi = <v, g(theta, x, y)>`, g the gradient of the student's training loss.

    Attributes:
        phi: `[K]`.
        theta: `d phi / d theta` `[K, P]`, None when it was not asked for.
        images: `d phi / d x` summed over the K trajectories, `[B, C, H, W]`, or None.
        labels: `d phi / d y` summed over the K trajectories, `[B, classes]`, or None.
        gradient: `g` `[K, P]` as it was computed again, where that took code that may not repeat itself; else None.
    """

    phi: Float[Tensor, " K"]
    theta: Float[Tensor, "K P"] | None
    images: Float[Tensor, "B ..."] | None
    labels: Float[Tensor, "B classes"] | None
    gradient: Float[Tensor, "K P"] | None = None


class Student(ABC):
    """The two operations of one unrolled training run. An instance belongs to one run and may cache between them.

    Attributes:
        random: whether a step may draw from torch's default generators (dropout), which are then rewound for its
            adjoint.
        rounding: spacing near 1 of the coarsest numbers that step 0 was computed in, where that may be coarser than the
            tensors' own.
    """

    random = True
    rounding = 0.0

    @abstractmethod
    def gradient(
        self, step: int, theta: Float[Tensor, "K P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> Float[Tensor, "K P"]:
        """`g(theta, x, y)` `[K, P]`: gradient of the mean cross entropy at stacked parameters `theta` `[K, P]`.

        The next call may use the same memory for its result.
        """

    @abstractmethod
    def adjoint(
        self,
        step: int,
        theta: Float[Tensor, "K P"],
        direction: Float[Tensor, "K P"],
        images: Float[Tensor, "B ..."],
        labels: Labels,
        wants: Wants,
    ) -> Adjoint:
        """Pull `direction` `[K, P]` back through the gradient of the same step, to what `wants` names.

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

    theta_start: Float[Tensor, "K P"]
    theta_target: Float[Tensor, "K P"]
    images: Float[Tensor, "N ..."]
    labels: Float[Tensor, "N classes"] | Int[Tensor, " N"]
    lr: Float[Tensor, ""]
    indices: Int[Tensor, " indices"]
    seed: Int[Tensor, ""] | None


class Passes(ABC):
    """The forward and the reverse pass of one unrolled run, as functions of tensors that an engine may record.

    What the reverse pass needs of the forward pass is kept in the object.
    """

    @abstractmethod
    def forward(self, inputs: Inputs) -> Float[Tensor, " K"]:
        """Matching losses `[K]`."""

    @abstractmethod
    def reverse(self, inputs: Inputs, grad_loss: Float[Tensor, " K"]) -> tuple[Tensor | None, ...]:
        """Gradients of `theta_start`, `theta_target`, `images`, `labels` and `lr`, None where they are not wanted.

        Args:
            inputs: those of the forward pass.
            grad_loss: `[K]`.
        """

    def release(self) -> tuple[Tensor, ...]:
        """Tensors that the object hands over, for autograd to keep until the loss was pulled back for the last time."""
        return ()

    def restore(self, kept: Sequence[Tensor]) -> None:  # noqa: B027 (nothing to do where nothing is handed over)
        """What :meth:`release` returned, for a reverse pass."""


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

    def end(self) -> None:
        """Called once, behind the last step of the reverse pass; may refuse the result."""
        return None

    @abstractmethod
    def forward(self, step: int, images: Float[Tensor, "N ..."], batch: Int[Tensor, " B"]) -> Tensor:
        """Images that `step` sees `[B, C, H, W]` of `images[batch]`."""

    @abstractmethod
    def again(self, step: int, images: Float[Tensor, "N ..."], batch: Int[Tensor, " B"], wants: Wants) -> Tensor:
        """The same a second time, followed by :meth:`pull` when `wants.images`."""

    @abstractmethod
    def pull(self, step: int, grad: Tensor) -> Tensor:
        """The gradient in `images[batch]`, given the one in what :meth:`again` returned."""


class Distance(Protocol):
    """An engine's own form of :func:`pad_fast.matching.normalized_distance`, on `[K, P]`."""

    def value(
        self,
        end: Float[Tensor, "K P"],
        start: Float[Tensor, "K P"],
        target: Float[Tensor, "K P"],
        *,
        first_kept: int,
        dropped: int,
    ) -> Float[Tensor, " K"]:
        """`[K]`."""

    def gradients(
        self,
        end: Float[Tensor, "K P"],
        start: Float[Tensor, "K P"],
        target: Float[Tensor, "K P"],
        grad: Float[Tensor, " K"],
        wants: Wants,
        *,
        first_kept: int,
        dropped: int,
    ) -> tuple[Float[Tensor, "K P"], Float[Tensor, "K P"] | None, Float[Tensor, "K P"] | None]:
        """Gradients in `end`, and if wanted in `start` and `target`, given the one in the value `[K]`; new tensors."""


class GradientDistance(Protocol):
    """An engine's own form of :func:`pad_fast.matching.gradients.gradient_distance`, on gradients `[G, P]`."""

    def value_and_direction(
        self, real: Float[Tensor, "G P"], synthetic: Float[Tensor, "G P"], channels: Sequence[Channels]
    ) -> tuple[Float[Tensor, " G"], Float[Tensor, "G P"]]:
        """Distances `[G]` and their gradient in `synthetic` `[G, P]`, both without a graph."""


class Engine(ABC):
    """One way to compute student steps. Engines are stateless; register instances in `pad_fast.engines`.

    Attributes:
        distance: the engine's own form of the matching loss; None when the formula is good enough.
        gradient_distance: its own form of gradient matching's distance, likewise.
        updates: steps on parameter vectors.
        side_by_side: whether several threads of a process may train networks of their own on the CPU at the same time,
            in less time than one after the other.
    """

    name: str
    distance: Distance | None = None
    gradient_distance: GradientDistance | None = None
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

    def arithmetic(self, task: Task) -> str:
        """How `task` is computed and how exact that is, in a few words for the user; nothing where torch decides."""
        return ""

    def augmentation(
        self, task: Task, augment: Augment, *, sizes: Sequence[int], images: Float[Tensor, "N ..."]
    ) -> Augmentation | None:
        """The engine's own form of `augment`, or None when it has none.

        Args:
            sizes: images per step.
            images: `[N, C, H, W]`, what the batches are taken from.
        """
        return None

    def passes(self, task: Task, make: Callable[[Task], Passes], key: Hashable | None, inputs: Inputs) -> Passes:
        """Passes to run on `inputs`, made now or recorded before.

        Args:
            make: makes passes that have seen nothing yet, for this task or one that only differs in `cache_bytes`.
            key: equal for runs of the same task whose operations are the same while their tensors have equal shapes
                and dtypes; None for a run that must not be recorded.
        """
        return make(task)

    @abstractmethod
    def loss_grad_logits(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"], Float[Tensor, "B classes"]]:
        """One step of ordinary training at `theta` `[P]`.

        Returns:
            Mean cross entropy (scalar), its gradient `[P]`, and the logits `[B, classes]` of the forward pass.
        """

    def loss_and_grad(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """:meth:`loss_grad_logits` without the logits."""
        loss, gradient, _ = self.loss_grad_logits(task, theta, images, labels)
        return loss, gradient

    @abstractmethod
    def forward(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B classes"]:
        """Logits `[B, classes]` without a graph."""

    def stacked_loss_grad_logits(
        self, task: Task, theta: Float[Tensor, "K P"], images: Float[Tensor, "K B ..."], labels: StackedLabels
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, "K P"], Float[Tensor, "K B classes"]]:
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

    def stacked_forward(
        self, task: Task, theta: Float[Tensor, "K P"], images: Float[Tensor, "K B ..."]
    ) -> Float[Tensor, "K B classes"]:
        """:meth:`forward` of K networks: logits `[K, B, classes]`; see :meth:`stacked_loss_grad_logits`."""
        return torch.stack([self.forward(task, *one) for one in zip(theta, images, strict=True)])

    def together(self, task: Task, batch: int) -> int:
        """How many networks should go through stacked steps on batches of `batch` images at once.

        1 where they take no less time like that, and where they have buffers, which they would share.
        """
        return 1

    def augment_each(self, images: Float[Tensor, "K B C H W"], draws: Sequence[DSADraw]) -> Float[Tensor, "K B C H W"]:
        """`images` `[K, B, C, H, W]` of K networks, those of each augmented by a draw of its own."""
        return torch.stack([DSA.apply(*one) for one in zip(images, draws, strict=True)])

    def group_gradients(
        self,
        task: Task,
        theta: Float[Tensor, " P"],
        images: Sequence[Float[Tensor, "_ ..."]],
        labels: Sequence[Tensor],
    ) -> Float[Tensor, "G P"]:
        """Gradients `[G, P]` of the mean cross entropy of every group `[B_g, C, H, W]` at the same `theta` `[P]`."""
        if len({x.shape for x in images}) == 1:
            shared = theta.expand(len(images), -1)
            return self.stacked_loss_grad_logits(task, shared, torch.stack(list(images)), torch.stack(list(labels)))[1]
        out = theta.new_empty(len(images), len(theta))
        for row, x, y in zip(out, images, labels, strict=True):
            row.copy_(self.loss_and_grad(task, theta, x, y)[1])
        return out

    def group_pullback(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "G B ..."], labels: Int[Tensor, "G B"]
    ) -> tuple[Float[Tensor, "G P"], Pullback]:
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
                found = student.adjoint(group, theta[None], v[None], images[group], labels[group], Wants(images=True))
                if found.images is not None:
                    pulled[group].copy_(found.images)
            return pulled

        return out, pull

    def mean_features(
        self,
        task: Task,
        theta: Float[Tensor, " P"],
        images: Sequence[Float[Tensor, "_ ..."]],
        blocks: Sequence[int] | None,
    ) -> list[Float[Tensor, "G _"]]:
        """Mean features of every group `[B_g, C, H, W]`: of the classifier's inputs, or behind the first d blocks.

        Args:
            blocks: d of each result; None asks for the classifier's inputs alone.

        Returns:
            `[G, F_d]` for each d, without a graph.
        """
        with torch.no_grad():
            return _means(task.network.features(theta, torch.cat(list(images)), blocks), [len(x) for x in images])

    def mean_features_pullback(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "G B ..."], blocks: Sequence[int] | None
    ) -> tuple[list[Float[Tensor, "G _"]], FeaturePullback]:
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
    """The tensor as a kernel reads it from memory: no graph, rows behind each other."""
    return tensor.detach().contiguous()


def _means(features: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Per group of `sizes` images, the mean of each of these `[sum of sizes, F]`."""
    return [torch.stack([piece.mean(0) for piece in each.split(list(sizes))]) for each in features]


def cross_entropy(logits: Tensor, labels: Tensor, labels_are: str = "logits") -> Tensor:
    """Mean cross entropy with hard labels (int64 `[B]`) or soft ones `[B, classes]`, see :attr:`Task.labels_are`.

    Raises:
        InputError: the network did not return logits `[B, classes]` for these labels.
    """
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the network returned a {type(logits).__name__}; wrap it in a module whose forward returns the logits "
            "[B, classes] alone"
        )
    if logits.dim() != 2 or len(logits) != len(labels):
        raise InputError(f"the network returned {list(logits.shape)} for {len(labels)} images; logits are [B, classes]")
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise InputError(
                f"soft labels have {labels.shape[-1]} classes, but the network returned {logits.shape[-1]} logits for "
                "each image"
            )
        return functional.cross_entropy(logits, labels.softmax(-1) if labels_are == "logits" else labels)
    try:
        # torch would leave out images of class -100 without a word.
        return functional.cross_entropy(logits, labels, ignore_index=_NO_CLASS)
    except IndexError as error:
        raise InputError(
            f"a label is none of the {logits.shape[-1]} classes of the network ({error}); classes count from 0"
        ) from error


_NO_CLASS = torch.iinfo(torch.int64).min


@contextmanager
def differentiable_twice(network: FlatNetwork) -> Iterator[None]:
    """Held around a network's evaluation and the derivatives of it: attention by products and softmax, as written.

    The fused kernels of attention have no second derivative.

    Raises:
        InputError: torch could not evaluate or differentiate the network; names what it said.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        name, said = type(network.module).__name__, str(error).strip().splitlines()[0]
        twice = "not implemented" in said or "double backward" in said
        raise InputError(
            not_twice(name, said)
            if twice
            else f"{name} failed on these images and parameters ({said}); check shapes and dtypes, its buffers' too"
        ) from error
