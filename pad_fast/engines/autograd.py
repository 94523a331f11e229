"""`backend="autograd"`: student steps of any `nn.Module`, one step of autograd graph at a time.

Memory does not grow with T, unlike that of :mod:`unroll`, which records the whole loop.

The adjoint differentiates `phi = <v, g>` by a second backward pass over the graph of one gradient. Forward mode
along `v` followed by one backward pass gives the same numbers; on the ConvNet of the papers it took 1.4 times as long
at batch 10 and 2.0 times at batch 100 (torch 2.13, CPU), and several operators lack its derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..runtime.shapes import Float, Int
from .base import (
    Adjoint,
    Engine,
    Labels,
    Pullback,
    Student,
    Task,
    Wants,
    cross_entropy,
    differentiable_twice,
)
from .leaves import refuse_single_derivatives, refuse_unknown_leaves, rounding_of

# Images of 32 x 32 whose activations may be alive at once where groups go in one pass: a few GB for the ConvNets.
_IMAGES_AT_ONCE = 4096
# On a CPU, groups in one pass are grouped convolutions, which pay for a few images only: ConvNet D3 W128, 10 groups, 2
# cores, gradients and the way back to the images: 0.5 times the time of a loop at 1 image, 0.9 at 4, 1.5 at 32.
_FEW_IMAGES = 4


class AutogradEngine(Engine):
    """Torch's own steps: any module, any device, any floating dtype."""

    name = "autograd"
    side_by_side = True

    def refuse(self, task: Task) -> str | None:
        """Refuses only a precision that torch's own settings decide."""
        if task.precision not in ("auto", "high", "highest", "ieee"):
            return (
                f"precision {task.precision!r} belongs to the native engines; "
                "torch computes in the dtype of the tensors (precision='auto')"
            )
        return None

    def student(self, task: Task) -> Student:
        """A run that keeps nothing between steps."""
        return _AutogradStudent(task)

    def loss_grad_logits(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"], Float[Tensor, "B classes"]]:
        """One forward and one backward pass."""
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            logits = task.network(leaf, images)
            loss = cross_entropy(logits, labels, task.labels_are)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient, logits.detach()

    def forward(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B classes"]:
        """One forward pass without a graph."""
        with torch.no_grad():
            return task.network(theta, images)

    def group_gradients(
        self,
        task: Task,
        theta: Float[Tensor, " P"],
        images: Sequence[Float[Tensor, "_ ..."]],
        labels: Sequence[Tensor],
    ) -> Float[Tensor, "G P"]:
        """Groups of equal size go in one pass where that is faster and possible, else one by one."""
        if not _batches(task, len(images[0])) or len({x.shape for x in images}) > 1:
            return super().group_gradients(task, theta, images, labels)
        rows = self._gradients(task, theta, len(images[0]) * images[0][0, 0].numel())
        return rows(torch.stack(list(images)), torch.stack(list(labels))).detach()

    def group_pullback(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "G B ..."], labels: Int[Tensor, "G B"]
    ) -> tuple[Float[Tensor, "G P"], Pullback]:
        """All groups in one pass where that is possible."""
        if not _batches(task, images.shape[1]):
            return super().group_pullback(task, theta, images, labels)
        rows = self._gradients(task, theta, images[0, :, 0].numel())
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            gradients = rows(leaf, labels)

        def pull(directions: Tensor) -> Tensor:
            return torch.autograd.grad(gradients, leaf, directions)[0]

        return gradients.detach(), pull

    @staticmethod
    def _gradients(task: Task, theta: Float[Tensor, " P"], pixels: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Gradients `[G, P]` of stacked groups, each of which has so many pixels."""

        def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(task.network(theta, x), y, task.labels_are)

        size = max(1, _IMAGES_AT_ONCE * 32 * 32 // pixels)
        one = torch.func.grad(loss)
        return torch.func.vmap(lambda x, y: one(theta.detach(), x, y), chunk_size=size, randomness="different")


def _batches(task: Task, size: int) -> bool:
    """Whether groups of so many images go in one pass.

    A module with buffers (batch norm's statistics) writes to them, which groups cannot share.
    """
    return (task.device.type != "cpu" or size <= _FEW_IMAGES) and not list(task.network.module.buffers())


class _AutogradStudent(Student):
    def __init__(self, task: Task) -> None:
        self.network, self.labels_are = task.network, task.labels_are
        self.looked = False  # at how a gradient is computed, which one step shows

    def gradient(
        self, step: int, theta: Float[Tensor, "K P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> Float[Tensor, "K P"]:
        rows = []
        for parameters in theta:
            with torch.enable_grad(), differentiable_twice(self.network):
                leaf = parameters.detach().requires_grad_()
                loss = cross_entropy(self.network(leaf, images), labels, self.labels_are)
                if step == 0:
                    refuse_unknown_leaves(loss, [leaf], type(self.network.module).__name__)
                    self.rounding = rounding_of(loss)
                rows.append(torch.autograd.grad(loss, leaf)[0])
        return torch.stack(rows)

    def adjoint(
        self,
        step: int,
        theta: Float[Tensor, "K P"],
        direction: Float[Tensor, "K P"],
        images: Float[Tensor, "B ..."],
        labels: Labels,
        wants: Wants,
    ) -> Adjoint:
        phis, thetas, gradients = [], [], []
        image_sum = torch.zeros_like(images) if wants.images else None
        label_sum = torch.zeros_like(labels) if wants.labels else None
        for parameters, v in zip(theta, direction, strict=True):
            with torch.enable_grad(), differentiable_twice(self.network):
                leaf = parameters.detach().requires_grad_()
                x = images.detach().requires_grad_(wants.images)
                y = labels.detach().requires_grad_(wants.labels)
                loss = cross_entropy(self.network(leaf, x), y, self.labels_are)
                (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
                if not self.looked:
                    refuse_single_derivatives(gradient, loss, [leaf, x, y], type(self.network.module).__name__)
                    self.looked = True
                phi = torch.dot(gradient, v)
                asked = ((leaf, wants.theta), (x, wants.images), (y, wants.labels))
                wanted = [tensor for tensor, asks in asked if asks]
                # A model linear in its parameters, or one that ignores the images, has no such derivative: zero.
                pulled = list(
                    torch.autograd.grad(phi, wanted, allow_unused=True, materialize_grads=True)
                    if wanted and phi.requires_grad
                    else [torch.zeros_like(tensor) for tensor in wanted]
                )
            phis.append(phi.detach())
            gradients.append(gradient.detach())
            if wants.theta:
                thetas.append(pulled.pop(0))
            if image_sum is not None:
                image_sum += pulled.pop(0)
            if label_sum is not None:
                label_sum += pulled.pop(0)
        return Adjoint(
            torch.stack(phis),
            torch.stack(thetas) if wants.theta else None,
            image_sum,
            label_sum,
            gradients[0][None] if len(gradients) == 1 else torch.stack(gradients),
        )
