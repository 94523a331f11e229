"""Ordinary training on an engine: what experts, score networks and evaluation networks have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .engines import Engine, Task, select
from .models import FlatNetwork, network
from .optimizers import Optimizer
from .rng import derive_seed

BatchAugment = Callable[[Tensor], Tensor]
Observe = Callable[[Tensor, Tensor], None]

_building = threading.Lock()  # modules draw their weights from the one global generator


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name for images of one kind; `build` makes as many different ones as there are seeds."""

    model: str
    channels: int
    classes: int
    resolution: int

    def build(self, seed: int, *purpose: str | int) -> FlatNetwork:
        """A freshly initialised network; the global generator is left as it was."""
        with _building, torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the GPUs' generators as well.
            torch.default_generator.manual_seed(derive_seed(seed, *purpose, "weights"))
            module = network(self.model, channels=self.channels, classes=self.classes, resolution=self.resolution)
        return FlatNetwork(module)


class Trainer:
    """One network being trained: its parameters, the engine that runs it, and nothing else.

    Attributes:
        theta: current parameters `[P]`.
    """

    def __init__(self, net: FlatNetwork, *, device: torch.device, backend: str, precision: str = "auto") -> None:
        net.module.to(device)
        self.network = net
        self.task = Task(net, device, torch.float32, "train", precision)
        self.engine: Engine = select(backend, self.task)
        self.theta = net.initial()

    def epoch(
        self,
        images: Tensor,
        labels: Tensor,
        batches: Iterable[Tensor],
        optimizer: Optimizer,
        augment: BatchAugment | None = None,
        observe: Observe | None = None,
    ) -> float:
        """One pass over `batches` of indices; returns the mean training loss.

        `observe(batch, logits)` is called with the indices `[B]` and the logits `[B, classes]` of every step's forward
        pass, before the update.
        """
        with self.engine.running():
            return self._epoch(images, labels, batches, optimizer, augment, observe)

    def _epoch(
        self,
        images: Tensor,
        labels: Tensor,
        batches: Iterable[Tensor],
        optimizer: Optimizer,
        augment: BatchAugment | None,
        observe: Observe | None,
    ) -> float:
        if not self.network.module.training:  # setting it takes as long as a small network's whole update
            self.network.module.train()
        losses = []
        for batch in batches:
            inputs, targets = images[batch], labels[batch]
            if augment is not None:
                inputs = augment(inputs)

            seen: list[Tensor] = []

            def loss_and_grad(
                theta: Tensor, inputs: Tensor = inputs, targets: Tensor = targets, seen: list[Tensor] = seen
            ) -> tuple[Tensor, Tensor]:
                loss, gradient, logits = self.engine.loss_grad_logits(self.task, theta, inputs, targets)
                seen.append(logits)
                return loss, gradient

            self.theta, loss = optimizer.step(self.theta, loss_and_grad, self.engine.updates)
            losses.append(loss)
            if observe is not None:
                observe(batch, seen[0])  # an optimiser's second evaluation is at other parameters
        return float(torch.stack(losses).mean())

    def logits(self, images: Tensor, *, chunk: int = 512) -> Tensor:
        """Logits `[N, classes]` in eval mode, `chunk` images at a time."""
        self.network.module.eval()
        return torch.cat([self.engine.forward(self.task, self.theta, piece) for piece in images.split(chunk)])

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Percentage of `images` whose largest logit is the right one."""
        return float((self.logits(images).argmax(-1) == labels).double().mean() * 100)


def shuffled_batches(indices: Tensor, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """`indices` in random order, cut into batches; the last one may be short. The draw is made on the CPU."""
    order = torch.randperm(len(indices), generator=generator)
    return indices[order.to(indices.device)].split(batch_size)
