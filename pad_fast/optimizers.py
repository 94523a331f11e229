"""SGD and GSAM on flat parameter vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .errors import ConfigError, nearest

LossAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""`theta [P] -> (loss [], gradient [P])` on one fixed, already augmented batch."""

OPTIMIZERS = ("gsam", "sgd")


class Optimizer(Protocol):
    """One training step on a flat vector."""

    def step(self, theta: Tensor, loss_and_grad: LossAndGrad) -> tuple[Tensor, Tensor]:
        """New parameters `[P]` (the old tensor is not written to) and the loss at the old ones."""


class SGD:
    """`b <- momentum * b + g + weight_decay * theta;  theta <- theta - lr * b` (torch's convention)."""

    def __init__(self, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self._buffer: Tensor | None = None

    def step(self, theta: Tensor, loss_and_grad: LossAndGrad) -> tuple[Tensor, Tensor]:
        loss, direction = loss_and_grad(theta)
        if self.weight_decay:
            direction = torch.add(direction, theta, alpha=self.weight_decay)
        if self.momentum:
            # The first step starts from the gradient itself, as in torch.
            if self._buffer is None:
                self._buffer = direction.clone()
            else:
                self._buffer.mul_(self.momentum).add_(direction)
            direction = self._buffer
        return torch.add(theta, direction, alpha=-self.lr), loss


class GSAM:
    """Adaptive surrogate-gap minimisation (arXiv 2203.08065) with constant rho, followed by a plain SGD step.

    `e = rho theta^2 g1 / (|| |theta| g1 || + 1e-12)`, `g2` = gradient at `theta + e` on the same augmented batch,
    `c` = cosine of `g1` and `g2`, and `g = g2 - alpha (g1 - c ||g1|| g2 / (||g2|| + 1e-12))`.
    """

    def __init__(self, lr: float, *, rho: float = 0.01, alpha: float = 0.3) -> None:
        self.lr, self.rho, self.alpha = lr, rho, alpha

    def step(self, theta: Tensor, loss_and_grad: LossAndGrad) -> tuple[Tensor, Tensor]:
        loss, g1 = loss_and_grad(theta)
        scale = self.rho / (torch.linalg.vector_norm(theta * g1) + 1e-12)
        _, g2 = loss_and_grad(theta + scale * theta.square() * g1)
        norm1, norm2 = torch.linalg.vector_norm(g1), torch.linalg.vector_norm(g2)
        cosine = torch.dot(g1, g2) / (norm1 * norm2 + 1e-12)
        direction = g2 - self.alpha * (g1 - (cosine * norm1 / (norm2 + 1e-12)) * g2)
        return torch.add(theta, direction, alpha=-self.lr), loss


def make_optimizer(name: str, lr: float, *, rho: float = 0.01, alpha: float = 0.3) -> Optimizer:
    """The expert optimiser of that name.

    Raises:
        ConfigError: unknown name.
    """
    if name == "gsam":
        return GSAM(lr, rho=rho, alpha=alpha)
    if name == "sgd":
        return SGD(lr)
    raise ConfigError(
        f"unknown expert optimizer {name!r}; use one of {', '.join(OPTIMIZERS)}.{nearest(name, OPTIMIZERS)}"
    )
