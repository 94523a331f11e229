"""Student steps for any `nn.Module`, one step of autograd graph at a time: memory does not grow with T.

The adjoint differentiates `phi = <v, g>` by a second backward pass over the graph of one gradient. Forward mode
along `v` followed by one backward pass gives the same numbers; on the ConvNet of the papers it took 1.4 times as long
at batch 10 and 2.0 times at batch 100 (torch 2.13, CPU), and several operators lack its derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Adjoint, Engine, Student, Task, cross_entropy


class FunctionalEngine(Engine):
    """`backend="autograd"`: torch only, any module, any device, any floating dtype."""

    name = "autograd"
    side_by_side = True

    def refuse(self, task: Task) -> str | None:
        """Refuses only a precision that torch's own settings decide."""
        if task.precision not in ("auto", "high", "ieee"):
            return (
                f"precision {task.precision!r} belongs to the native engines; "
                "torch computes in the dtype of the tensors (precision='auto')"
            )
        return None

    def student(self, task: Task) -> Student:
        """A run that keeps nothing between steps."""
        return _FunctionalStudent(task)

    def loss_grad_logits(
        self, task: Task, theta: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and one backward pass."""
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            logits = task.network(leaf, images)
            loss = cross_entropy(logits, labels)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient, logits.detach()

    def forward(self, task: Task, theta: Tensor, images: Tensor) -> Tensor:
        """One forward pass without a graph."""
        with torch.no_grad():
            return task.network(theta, images)


class _FunctionalStudent(Student):
    def __init__(self, task: Task) -> None:
        self.network = task.network

    def gradient(self, step: int, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        rows = []
        for parameters in theta:
            with torch.enable_grad():
                leaf = parameters.detach().requires_grad_()
                loss = cross_entropy(self.network(leaf, images), labels)
                rows.append(torch.autograd.grad(loss, leaf)[0])
        return torch.stack(rows)

    def adjoint(
        self,
        step: int,
        theta: Tensor,
        direction: Tensor,
        images: Tensor,
        labels: Tensor,
        *,
        wants_theta: bool,
        wants_images: bool,
        wants_labels: bool,
    ) -> Adjoint:
        phis, thetas = [], []
        image_sum = torch.zeros_like(images) if wants_images else None
        label_sum = torch.zeros_like(labels) if wants_labels else None
        for parameters, v in zip(theta, direction, strict=True):
            with torch.enable_grad():
                leaf = parameters.detach().requires_grad_()
                x = images.detach().requires_grad_(wants_images)
                y = labels.detach().requires_grad_(wants_labels)
                loss = cross_entropy(self.network(leaf, x), y)
                (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
                phi = torch.dot(gradient, v)
                wanted = [
                    tensor for tensor, wants in ((leaf, wants_theta), (x, wants_images), (y, wants_labels)) if wants
                ]
                # A model linear in its parameters, or one that ignores the images, has no such derivative: zero.
                pulled = list(
                    torch.autograd.grad(phi, wanted, allow_unused=True, materialize_grads=True)
                    if wanted and phi.requires_grad
                    else [torch.zeros_like(tensor) for tensor in wanted]
                )
            phis.append(phi.detach())
            if wants_theta:
                thetas.append(pulled.pop(0))
            if image_sum is not None:
                image_sum += pulled.pop(0)
            if label_sum is not None:
                label_sum += pulled.pop(0)
        return Adjoint(torch.stack(phis), torch.stack(thetas) if wants_theta else None, image_sum, label_sum)
