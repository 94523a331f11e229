"""Steps on parameter vectors, in plain torch; engines may have faster forms of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.shapes import Float

# Added to GSAM's norms before a division.
_TINY = 1e-12


Vectors = Float[Tensor, "*K P"]
"""Parameters of one network `[P]`, or of several `[K, P]`."""
Rate = Float[Tensor, ""] | Float[Tensor, " _"]
"""A learning rate for all rows, or one for each."""


class Updates:
    """Steps on vectors `[P]`, or on the rows of `[K, P]`, each row for itself.

    Every method takes contiguous vectors of one floating dtype and a learning rate `lr` on their device, `[]`, or
    `[K]` for one rate per row. Results are written to `out` when it is given, which may be one of the vectors.
    """

    def sgd(self, theta: Vectors, g: Vectors, lr: Rate, out: Vectors | None = None) -> Vectors:
        """`theta - lr * g`: a student's step, and with `v` and its derivative, the step back."""
        return torch.addcmul(theta, g, lr.reshape(()) if lr.numel() == 1 else lr[:, None], value=-1, out=out)

    def momentum_sgd(
        self,
        theta: Vectors,
        g: Vectors,
        buffer: Vectors,
        lr: Rate,
        *,
        momentum: float,
        weight_decay: float = 0.0,
        out: Vectors | None = None,
    ) -> Vectors:
        """`buffer <- momentum * buffer + g + weight_decay * theta`, then `theta - lr * buffer`.

        Args:
            buffer: overwritten; zeros at first, which makes the first step torch's. Not touched when `momentum` is 0.
        """
        direction = torch.add(g, theta, alpha=weight_decay) if weight_decay else g
        if momentum:
            direction = buffer.mul_(momentum).add_(direction)
        return self.sgd(theta, direction, lr, out)

    def gsam_ascent(self, theta: Vectors, g: Vectors, *, rho: float, out: Vectors | None = None) -> Vectors:
        """`theta + rho theta^2 g / (|| theta g || + 1e-12)`: where GSAM takes its second gradient."""
        return torch.addcmul(theta, rho / (_norm(theta * g) + _TINY) * theta.square(), g, out=out)

    def gsam_step(
        self, theta: Vectors, g1: Vectors, g2: Vectors, lr: Rate, *, alpha: float, out: Vectors | None = None
    ) -> Vectors:
        """`theta - lr * (g2 - alpha (g1 - c ||g1|| g2 / (||g2|| + 1e-12)))`, c the cosine of `g1` and `g2`."""
        norm1, norm2 = _norm(g1), _norm(g2)
        cosine = torch.linalg.vecdot(g1, g2)[..., None] / (norm1 * norm2 + _TINY)
        return self.sgd(theta, g2 - alpha * (g1 - (cosine * norm1 / (norm2 + _TINY)) * g2), lr, out)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
