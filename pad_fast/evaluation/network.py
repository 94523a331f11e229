"""One network of an evaluation: a fresh one is trained on a set and tested once."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..data import DSA
from ..errors import InputError
from ..optimizers import SGD
from ..rng import generator
from ..training import NetworkSpec, Trainer, shuffled_batches


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a set: SGD, halfway the rate drops tenfold and momentum starts afresh.

    Attributes:
        lr: learning rate of the first half.
        dsa: augmentation strategy or "none".
    """

    lr: float
    epochs: int = 1000
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dsa: str = "color_crop_cutout_flip_scale_rotate"
    dsa_mode: str = "fast"

    @property
    def halfway(self) -> int:
        """The epoch that the lower rate begins with; one epoch alone keeps the full rate."""
        return (self.epochs + 1) // 2

    def optimizer(self, scale: float = 1.0) -> SGD:
        """A fresh optimiser with `scale` times the learning rate."""
        return SGD(self.lr * scale, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Network:
    """Network `index` of a row; with its training set and recipe this decides everything about it.

    Attributes:
        spec: the architecture.
        seed: of the evaluation.
        purpose: what it is trained on, in one word: networks of different rows start from different weights.
        index: networks of one row are numbered from 0.
    """

    spec: NetworkSpec
    seed: int
    purpose: str
    index: int

    @property
    def names(self) -> tuple[str | int, ...]:
        """What its random streams are named after."""
        return ("evaluation", self.spec.model, self.purpose, self.index)

    def train(
        self,
        images: Tensor,
        targets: Tensor,
        recipe: Recipe,
        *,
        device: torch.device,
        backend: str,
    ) -> Generator[None, None, Trainer]:
        """Train it, epoch by epoch: yields after each, and returns the trained network.

        Args:
            images: normalised `[N, C, H, W]` on `device`.
            targets: label logits `[N, classes]` (soft), or classes int64 `[N]`.

        Raises:
            InputError: training diverged.
        """
        trainer = Trainer(self.spec.build(self.seed, *self.names), device=device, backend=backend)
        augment = DSA(recipe.dsa, mode=recipe.dsa_mode)
        draws = generator(self.seed, *self.names, "draws")
        everything = torch.arange(len(images), device=device)
        optimizer = recipe.optimizer()
        for epoch in range(recipe.epochs):
            if epoch == recipe.halfway:
                optimizer = recipe.optimizer(0.1)
            batches = shuffled_batches(everything, recipe.batch, draws)
            loss = trainer.epoch(images, targets, batches, optimizer, partial(augment, generator=draws))
            # Parameters that are not finite show in the next epoch's loss.
            if not math.isfinite(loss) or (epoch == recipe.epochs - 1 and not bool(trainer.theta.isfinite().all())):
                raise InputError(
                    f"training on {self.purpose} diverged in epoch {epoch} with learning rate {recipe.lr:g}; lower lr"
                )
            yield
        return trainer
