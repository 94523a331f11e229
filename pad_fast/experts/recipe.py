"""The recipe of experts: every setting that decides, with the data, what expert i is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import DSA, ImageDataset
from ..errors import ConfigError
from ..scoring.difficulty import Difficulty
from ..settings.snapshot_ranges import parse_snapshots
from ..training.optimizers import Optimizer, make_optimizer
from .curriculum import Curriculum, prune


@dataclass(frozen=True, kw_only=True)
class ExpertRecipe:
    """Settings that all experts of a store are trained and kept by; :func:`train_experts` explains each.

    Raises:
        ConfigError: a bad count or rate, or an unknown name: before any work, and before a store describes itself by
            it.
    """

    model: str
    epochs: int
    curriculum: Curriculum
    prune_rule: str
    optimizer: str
    lr: float
    rho: float
    alpha: float
    batch: int
    dsa: str
    dsa_mode: str
    keep: str
    storage: str
    test_every: int
    seed: int

    def __post_init__(self) -> None:
        require_at_least(1, epochs=self.epochs, batch=self.batch)
        require_at_least(0, test_every=self.test_every)
        parse_snapshots(self.keep, self.epochs)
        if not self.lr > 0:
            raise ConfigError(f"expert learning rate is {self.lr}; it must be positive")
        self.make_optimizer()
        self.augmentation()

    @property
    def kept(self) -> tuple[int, ...]:
        """The epochs whose snapshots are stored."""
        return tuple(parse_snapshots(self.keep, self.epochs))

    @property
    def ordered(self) -> bool:
        """Whether it matters which images are hard."""
        return self.curriculum != Curriculum.none() or self.prune_rule != "none"

    def make_optimizer(self) -> Optimizer:
        """A fresh optimiser."""
        return make_optimizer(self.optimizer, self.lr, rho=self.rho, alpha=self.alpha)

    def augmentation(self) -> DSA:
        """The augmentation of every batch."""
        return DSA(self.dsa, mode=self.dsa_mode)

    def images(self, data: ImageDataset, difficulty: Difficulty | str | os.PathLike[str] | None) -> list[Tensor]:
        """Indices of the images that experts see at all: per class, easy to hard where that matters.

        Raises:
            ConfigError: no difficulty where it is needed, or an epoch that shows no image of a class.
            StoreError: the difficulty belongs to other data, or its file cannot be read.
        """
        order = prune(self._order(data, difficulty), self.prune_rule)
        self.curriculum.require_images(self.epochs, [len(indices) for indices in order])
        return order

    def _order(self, data: ImageDataset, difficulty: Difficulty | str | os.PathLike[str] | None) -> list[Tensor]:
        if not self.ordered:
            # Even when an order is given: it must not change which batches such experts see.
            return data.images_by_class()
        if difficulty is None:
            raise ConfigError(
                "a curriculum or pruning needs to know which images are hard: pass difficulty=pad_fast.score(...), "
                "or the path of an order table"
            )
        if not isinstance(difficulty, Difficulty):
            return Difficulty.load(difficulty, data).order
        difficulty.require(data)
        return difficulty.order

    def describe(self, images: Sequence[Tensor]) -> dict[str, Any]:
        """The part of `store.json` that keeps experts of other recipes apart.

        Args:
            images: what :meth:`images` gave.
        """
        return {
            "curriculum": vars(self.curriculum),
            "prune": self.prune_rule,
            "order": _digest(images) if self.ordered else "none",
            "optimizer": {
                "name": self.optimizer,
                "lr": self.lr,
                "batch": self.batch,
                "rho": self.rho,
                "alpha": self.alpha,
            },
            "augmentation": {"strategy": self.dsa, "mode": self.dsa_mode},
            "seed": self.seed,
        }


def require_at_least(least: int, **counts: int) -> None:
    """Check counts by name.

    Raises:
        ConfigError: the first that is smaller.
    """
    for name, value in counts.items():
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")


def _digest(order: Sequence[Tensor]) -> str:
    """Identifies an order table, so that experts trained on another one are not taken for these."""
    return hashlib.sha256(torch.cat(list(order)).numpy().tobytes()).hexdigest()[:16]
