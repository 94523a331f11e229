"""Forgetting events: how often an image goes from right to wrong while a network learns."""

from __future__ import annotations

import torch
from torch import Tensor


class Forgetting:
    """Forgetting events (Toneva et al. 2019, arXiv 1812.05159), counted while training at no cost.

    An image is looked at whenever it is in a batch, once an epoch: an event is an image that was classified right the
    time before and is wrong now, with the logits of the training step itself.

    Args:
        labels: int64 `[N]`.
        epochs: what an image that is never right counts.
        networks: K, where several are trained together; whatever has a shape below then has K in front of it.
    """

    def __init__(self, labels: Tensor, epochs: int, *, networks: int | None = None) -> None:
        self.labels, self.epochs = labels, epochs
        shape = (len(labels),) if networks is None else (networks, len(labels))
        self.events = torch.zeros(shape, device=labels.device)
        self.right = torch.zeros(shape, dtype=torch.bool, device=labels.device)
        self.ever = self.right.clone()

    def observe(self, batch: Tensor, logits: Tensor) -> None:
        """Record the `logits` `[B, classes]` of the images with indices `batch` `[B]`, each there once."""
        right = logits.argmax(-1) == self.labels[batch]
        forgotten = self.right.gather(-1, batch) & ~right
        self.events.scatter_(-1, batch, self.events.gather(-1, batch) + forgotten)
        self.ever.scatter_(-1, batch, self.ever.gather(-1, batch) | right)
        self.right.scatter_(-1, batch, right)

    def counts(self) -> Tensor:
        """Events of each image, `epochs` for one that was never right: float32 `[N]`."""
        return torch.where(self.ever, self.events, float(self.epochs))
