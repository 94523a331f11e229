"""SGD, AdamW and GSAM on flat parameter vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, nearest
from ..models.updates import Updates, Vectors
from ..runtime.shapes import Float
from ..settings.choices import OPTIMIZERS

LossAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""`theta [P] -> (loss [], gradient [P])` on one fixed, already augmented batch; or `[K, P] -> ([K], [K, P])`."""

_TORCH = Updates()


class Optimizer(Protocol):
    """One training step on a flat vector, or on several networks' stacked vectors, each for itself."""

    def step(
        self, theta: Vectors, loss_and_grad: LossAndGrad, by: Updates = _TORCH
    ) -> tuple[Vectors, Float[Tensor, "*K"]]:
        """New parameters like `theta` (the old tensor is not written to) and the loss at the old ones.

        Args:
            by: computes the step; an engine has its own.
        """


class SGD:
    """`b <- momentum * b + g + weight_decay * theta;  theta <- theta - lr * b` (torch's convention)."""

    def __init__(self, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self._buffer: Tensor | None = None

    def step(
        self, theta: Vectors, loss_and_grad: LossAndGrad, by: Updates = _TORCH
    ) -> tuple[Vectors, Float[Tensor, "*K"]]:
        loss, gradient = loss_and_grad(theta)
        if self._buffer is None:
            self._buffer = torch.zeros_like(theta)
        lr = theta.new_full((), self.lr)
        new = by.momentum_sgd(theta, gradient, self._buffer, lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return new, loss


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101), as torch computes it."""

    def __init__(self, lr: float, *, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self._steps = 0
        self._moments: tuple[Tensor, Tensor] | None = None

    def step(
        self, theta: Vectors, loss_and_grad: LossAndGrad, by: Updates = _TORCH
    ) -> tuple[Vectors, Float[Tensor, "*K"]]:
        loss, gradient = loss_and_grad(theta)
        if self._moments is None:
            self._moments = torch.zeros_like(theta), torch.zeros_like(theta)
        (mean, square), (one, two) = self._moments, self.betas
        self._steps += 1
        mean.lerp_(gradient, 1 - one)
        square.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        scale = (square / (1 - two**self._steps)).sqrt_().add_(1e-8)
        decayed = theta * (1 - self.lr * self.weight_decay)
        return decayed.addcdiv_(mean, scale, value=-self.lr / (1 - one**self._steps)), loss


class GSAM:
    """Adaptive surrogate-gap minimisation (arXiv 2203.08065) with constant rho, followed by a plain SGD step.

    `e = rho theta^2 g1 / (|| |theta| g1 || + 1e-12)`, `g2` = gradient at `theta + e` on the same augmented batch,
    `c` = cosine of `g1` and `g2`, and `g = g2 - alpha (g1 - c ||g1|| g2 / (||g2|| + 1e-12))`.
    """

    def __init__(self, lr: float, *, rho: float = 0.01, alpha: float = 0.3) -> None:
        self.lr, self.rho, self.alpha = lr, rho, alpha

    def step(
        self, theta: Vectors, loss_and_grad: LossAndGrad, by: Updates = _TORCH
    ) -> tuple[Vectors, Float[Tensor, "*K"]]:
        loss, g1 = loss_and_grad(theta)
        _, g2 = loss_and_grad(by.gsam_ascent(theta, g1, rho=self.rho))
        return by.gsam_step(theta, g1, g2, theta.new_full((), self.lr), alpha=self.alpha), loss


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
