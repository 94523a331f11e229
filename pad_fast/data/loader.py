"""Batches of a distilled set for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import ConfigError
from ..runtime.rng import generator
from .augment import DSA


class Loader:
    """Every pass gives all images once, shuffled anew, in batches of (augmented images, targets).

    The last batch may be short.

    Pass number k depends on the seed and k alone.

    Args:
        images: normalised images `[N, C, H, W]`.
        targets: probabilities `[N, classes]`, or classes int64 `[N]`.
        batch: images in a batch.
        augment: of the images of a batch, one operation for all of them.
        seed: of the order and the augmentation.

    Raises:
        ConfigError: a batch below 1.
    """

    def __init__(self, images: Tensor, targets: Tensor, *, batch: int, augment: DSA, seed: int) -> None:
        if batch < 1:
            raise ConfigError(f"batch is {batch}; it must be at least 1")
        self.images, self.targets = images, targets
        self.batch, self.augment, self.seed = batch, augment, seed
        self._passes = 0

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draws = generator(self.seed, "loader", self._passes)
        self._passes += 1
        for rows in torch.randperm(len(self.images), generator=draws).to(self.images.device).split(self.batch):
            yield self.augment(self.images[rows], generator=draws), self.targets[rows]
