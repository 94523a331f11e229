"""`gradient="unroll"`, the oracle: the whole loop recorded by autograd.

Frozen truth, never optimised; memory grows with T. It is no engine: every other gradient is compared with it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..models.flat import FlatNetwork
from ..runtime.shapes import Float, Int
from .base import Augment, cross_entropy, differentiable_twice
from .leaves import refuse_single_derivatives


def unroll(
    network: FlatNetwork,
    theta_start: Float[Tensor, " P"],
    images: Float[Tensor, "N ..."],
    labels: Float[Tensor, "N classes"] | Int[Tensor, " N"],
    lr: Float[Tensor, ""],
    *,
    batches: Iterable[Int[Tensor, " _"]],
    augment: Augment | None = None,
    labels_are: str = "logits",
) -> Float[Tensor, " P"]:
    """Train a student from `theta_start` `[P]`, one SGD step a batch, keeping the graph.

    Returns:
        `theta_T` `[P]`, differentiable in the start, images, labels and lr.
    """
    with torch.enable_grad():
        theta = theta_start if theta_start.requires_grad else theta_start.detach().requires_grad_()
        for step, batch in enumerate(batches):
            inputs = images[batch] if augment is None else augment(images[batch], step)
            with differentiable_twice(network):
                loss = cross_entropy(network(theta, inputs), labels[batch], labels_are)
                (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            if step == 0:
                known = (theta, theta_start, images, labels, lr)
                refuse_single_derivatives(gradient, loss, known, type(network.module).__name__)
            theta = theta - lr * gradient
    return theta
