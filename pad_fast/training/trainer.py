"""Ordinary training on an engine: what experts, score networks and evaluation networks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..data import DSA
from ..data.cutmix import apply_cutmix, draw_cutmix
from ..engines import Engine, Task, select
from ..models import FlatNetwork
from ..runtime.device import sent
from ..runtime.shapes import Float, Int
from .optimizers import Optimizer

Item = TypeVar("Item")

BatchAugment = Callable[[Tensor], Tensor]
BatchMix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Observe = Callable[[Tensor, Tensor], None]


class Trainer:
    """Networks being trained: their parameters, the engine that runs them, and nothing else.

    Several networks of one architecture go through every step together, each on batches of its own. For them, whatever
    is said to have a shape below has K in front of it: parameters are `[K, P]`, losses `[K]`. A network alone has no
    such axis, which saves its step the handling of it.

    Args:
        networks: one network or several; :func:`together` says how many pay.
        labels_are: what soft labels hold, "logits" or "probabilities".

    Attributes:
        theta: current parameters `[P]`.
    """

    def __init__(
        self,
        networks: FlatNetwork | Sequence[FlatNetwork],
        *,
        device: torch.device,
        backend: str,
        precision: str = "auto",
        labels_are: str = "logits",
    ) -> None:
        every = [networks] if isinstance(networks, FlatNetwork) else networks
        self.network = every[0]
        self.stacked = len(every) > 1
        self.task = Task(self.network, device, torch.float32, "train", precision, labels_are=labels_are)
        thetas = [network.initial() for network in every]
        self.theta = (torch.stack(thetas) if self.stacked else thetas[0]).to(device)
        self.network.module.to(device)
        self.engine: Engine = select(backend, self.task)
        self._gradient = self.engine.stacked_loss_grad_logits if self.stacked else self.engine.loss_grad_logits

    def epoch(
        self,
        images: Float[Tensor, "N C H W"],
        labels: Float[Tensor, "N classes"] | Int[Tensor, " N"],
        batches: Iterable[Tensor],
        optimizer: Optimizer,
        augment: BatchAugment | None = None,
        observe: Observe | None = None,
        mix: BatchMix | None = None,
    ) -> Float[Tensor, "*K"]:
        """One pass over `batches` of indices `[B]`; returns the mean training loss `[]`, on the device.

        `observe(batch, logits)` is called with the indices `[B]` and the logits `[B, classes]` of every step's forward
        pass, before the update. `mix` makes other images and labels of every augmented batch and its labels. Nothing
        here waits for the device.
        """
        with self.engine.running():
            return self._epoch(images, labels, batches, optimizer, augment, observe, mix)

    def _epoch(
        self,
        images: Float[Tensor, "N C H W"],
        labels: Float[Tensor, "N classes"] | Int[Tensor, " N"],
        batches: Iterable[Tensor],
        optimizer: Optimizer,
        augment: BatchAugment | None,
        observe: Observe | None,
        mix: BatchMix | None,
    ) -> Float[Tensor, "*K"]:
        if not self.network.module.training:  # setting it takes as long as a small network's whole update
            self.network.module.train()
        losses = []
        for batch in batches:
            inputs, targets = images[batch], labels[batch]
            if augment is not None:
                inputs = augment(inputs)
            if mix is not None:
                inputs, targets = mix(inputs, targets)

            seen: list[Tensor] = []

            def loss_and_grad(
                theta: Tensor, inputs: Tensor = inputs, targets: Tensor = targets, seen: list[Tensor] = seen
            ) -> tuple[Tensor, Tensor]:
                loss, gradient, logits = self._gradient(self.task, theta, inputs, targets)
                seen.append(logits)
                return loss, gradient

            self.theta, loss = optimizer.step(self.theta, loss_and_grad, self.engine.updates)
            losses.append(loss)
            if observe is not None:
                observe(batch, seen[0])  # an optimiser's second evaluation is at other parameters
        return torch.stack(losses).mean(0)

    def logits(self, images: Float[Tensor, "N C H W"], *, chunk: int = 512) -> Float[Tensor, "*K N classes"]:
        """Logits `[N, classes]` of `images` `[N, C, H, W]` in eval mode, `chunk` images at a time."""
        self.network.module.eval()
        return torch.cat([self.forward(piece) for piece in images.split(chunk)], -2)

    def accuracy(
        self, images: Float[Tensor, "N C H W"], labels: Int[Tensor, " N"], *, chunk: int = 512
    ) -> Float[Tensor, "*K"]:
        """Percentage of `images` whose largest logit is the right one: float64 `[]`, on the device."""
        return (self.predictions(images, chunk=chunk) == labels).sum(-1).double() / len(labels) * 100

    def predictions(self, images: Float[Tensor, "N C H W"], *, chunk: int = 512) -> Int[Tensor, "*K N"]:
        """The class of each image's largest logit in eval mode, `chunk` images at a time."""
        self.network.module.eval()
        return torch.cat([self.forward(piece).argmax(-1) for piece in images.split(chunk)], -1)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "*K B classes"]:
        """Logits `[B, classes]` of a few images `[B, C, H, W]`, in the mode that the module is in."""
        if not self.stacked:
            return self.engine.forward(self.task, self.theta, images)
        return self.engine.stacked_forward(self.task, self.theta, images.expand(len(self.theta), *images.shape))


class TrainingStreams:
    """Random streams of networks in training: the order of their images, and their augmentation.

    Each network has a stream of its own, drawn on the CPU: it sees the same whatever device it is trained on, and
    whatever other networks together with it.

    Args:
        trainer: of the networks.
        generators: one for each of them.
        dsa: how batches are augmented.
        cutmix: probability that a batch is mixed, whose labels are probabilities then.

    Attributes:
        augment, mix: for :meth:`Trainer.epoch`; None where there is nothing to do.
    """

    def __init__(
        self, trainer: Trainer, generators: Sequence[torch.Generator], dsa: DSA, *, cutmix: float = 0.0
    ) -> None:
        self.generators, self.stacked = generators, trainer.stacked
        self.mix: BatchMix | None = partial(self._mixed, cutmix) if cutmix else None
        self.augment: BatchAugment | None = None
        if dsa.operations:
            one = partial(dsa, generator=generators[0])
            self.augment = partial(self._augment_each, dsa, trainer.engine) if self.stacked else one

    def batches(self, indices: Int[Tensor, "*K N"], size: int) -> tuple[Tensor, ...]:
        """`indices` `[N]` in another order for each network, cut into batches `[size]`; the last one may be short.

        Networks that have images of their own take their indices in a row each, `[K, N]`.
        """
        if not self.stacked:
            return shuffled_batches(indices, size, self.generators[0])
        order = torch.stack([torch.randperm(indices.shape[-1], generator=each) for each in self.generators])
        return indices.expand(order.shape).gather(1, sent(order, indices.device)).split(size, 1)

    def _mixed(self, probability: float, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(images, targets, strict=True) if self.stacked else [(images, targets)]
        mixed = []
        for (x, y), each in zip(pairs, self.generators, strict=True):
            draw = draw_cutmix(len(x), x.shape[-2], x.shape[-1], probability=probability, generator=each)
            mixed.append(apply_cutmix(x, y, draw))
        if not self.stacked:
            return mixed[0]
        return torch.stack([x for x, _ in mixed]), torch.stack([y for _, y in mixed])

    def _augment_each(self, dsa: DSA, engine: Engine, images: Tensor) -> Tensor:
        shape = images.shape[2:]
        return engine.augment_each(
            images, [dsa.draw(images.shape[1], shape, generator=each) for each in self.generators]
        )


def shuffled_batches(
    indices: Int[Tensor, " N"], batch_size: int, generator: torch.Generator
) -> tuple[Int[Tensor, " _"], ...]:
    """`indices` in random order, cut into batches; the last one may be short. The draw is made on the CPU."""
    order = torch.randperm(len(indices), generator=generator)
    return indices[sent(order, indices.device)].split(batch_size)


def together(network: FlatNetwork, batch: int, *, device: torch.device, backend: str) -> int:
    """Number of networks like this one that are best trained together on batches of `batch` images; at least 1."""
    task = Task(network, device, torch.float32)
    return select(backend, task).together(task, batch)


def in_groups(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """As few groups of at most `most` items as possible, which differ by one item at most.

    Example:
        >>> in_groups([0, 1, 2, 3, 4], 3), in_groups([], 3)
        ([[0, 1], [2, 3, 4]], [])
    """
    count = -(-len(items) // most)
    return [items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)]
