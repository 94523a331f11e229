r"""The gradient of an unrolled training run in constant activation memory.

With `theta_{t+1} = theta_t - alpha g_t(theta_t, x_t, y_t)` and `v_T = dL/dtheta_T`, for t = T-1 .. 0:

    phi_t = <v_{t+1}, g_t>                                                              (1)
    dL/dx_t = -alpha dphi_t/dx_t,   dL/dy_t = -alpha dphi_t/dy_t,   dL/dalpha -= phi_t  (2)
    v_t = v_{t+1} - alpha dphi_t/dtheta_t                                               (3)

Only the T parameter vectors are kept. TESLA's approximation is the same loop without (3): every Hessian term is
left out, and `v_t = v_T` throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..engines import Augment, Engine, Student, Task
from ..errors import InputError
from .distance import normalized_distance


@dataclass(frozen=True, eq=False)
class Unroll:
    """Everything about a run but its tensors.

    Attributes:
        batches: T index tensors `[B_t]`.
        propagate: True for the exact gradient, False for TESLA's.
        first_kept, dropped: the mask, see :func:`normalized_distance`.
    """

    engine: Engine
    task: Task
    batches: Sequence[Tensor]
    augment: Augment | None
    propagate: bool
    first_kept: int
    dropped: int


def constant_memory_loss(
    unroll: Unroll, theta_start: Tensor, theta_target: Tensor, images: Tensor, labels: Tensor, lr: Tensor
) -> Tensor:
    """Matching loss `[K]` for stacked trajectories `[K, P]`, differentiable once in every floating tensor given."""
    return _ConstantMemory.apply(unroll, theta_start, theta_target, images, labels, lr)


class _ConstantMemory(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        unroll: Unroll,
        theta_start: Tensor,  # [K, P]
        theta_target: Tensor,  # [K, P]
        images: Tensor,  # [N, C, H, W]
        labels: Tensor,  # [N, classes] or [N]
        lr: Tensor,  # []
    ) -> Tensor:
        with unroll.engine.running():
            return _ConstantMemory._forward(ctx, unroll, theta_start, theta_target, images, labels, lr)

    @staticmethod
    def _forward(
        ctx: Any, unroll: Unroll, theta_start: Tensor, theta_target: Tensor, images: Tensor, labels: Tensor, lr: Tensor
    ) -> Tensor:
        student = unroll.engine.student(unroll.task)
        draws = _Draws(images.device, len(unroll.batches))
        # One allocation for all T + 1 vectors: made one by one between short-lived tensors, they leave holes that cost
        # as much again.
        visited = theta_start.new_empty(len(unroll.batches) + 1, *theta_start.shape)
        visited[0] = theta_start
        for step, batch in enumerate(unroll.batches):
            draws.remember(step)
            inputs = images[batch] if unroll.augment is None else unroll.augment(images[batch], step)
            if unroll.augment is not None:
                draws.note(step, inputs)
            gradient = student.gradient(step, visited[step], inputs, labels[batch])
            torch.addcmul(visited[step], gradient, lr, value=-1, out=visited[step + 1])
        ctx.unroll, ctx.student, ctx.draws, ctx.visited = unroll, student, draws, visited
        ctx.save_for_backward(theta_start, theta_target, images, labels, lr)
        return normalized_distance(
            visited[-1], theta_start, theta_target, first_kept=unroll.first_kept, dropped=unroll.dropped
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.unroll.engine.running():
            return _ConstantMemory._backward(ctx, grad_loss)

    @staticmethod
    def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # Unpack.
        unroll: Unroll = ctx.unroll
        student: Student = ctx.student
        draws: _Draws = ctx.draws
        theta_start, theta_target, images, labels, lr = ctx.saved_tensors
        _, wants_start, wants_target, wants_images, wants_labels, wants_lr = ctx.needs_input_grad
        wants_start = wants_start and unroll.propagate  # TESLA defines no gradient for the start

        # Gradient of the distance itself: v_T, and the direct terms of start and target.
        with torch.enable_grad():
            ends = [vector.detach().requires_grad_() for vector in (ctx.visited[-1], theta_start, theta_target)]
            distance = normalized_distance(*ends, first_kept=unroll.first_kept, dropped=unroll.dropped)
            v, grad_start, grad_target = torch.autograd.grad(distance, ends, grad_loss)

        # Pull back through the steps, last first.
        grad_images = torch.zeros_like(images) if wants_images else None
        grad_labels = torch.zeros_like(labels) if wants_labels else None
        grad_lr = torch.zeros((), dtype=v.dtype, device=v.device)
        needs_steps = wants_images or wants_labels or wants_lr or wants_start
        with unroll.task.network.buffers_restored(), draws.replayed():
            for step in reversed(range(len(unroll.batches) if needs_steps else 0)):
                batch = unroll.batches[step]
                draws.restore(step)
                with torch.set_grad_enabled(wants_images):
                    pieces = images[batch].detach().requires_grad_(wants_images)
                    inputs = pieces if unroll.augment is None else unroll.augment(pieces, step)
                if unroll.augment is not None:
                    draws.check(step, inputs.detach())
                pulled = student.adjoint(
                    step,
                    ctx.visited[step],
                    v,
                    inputs.detach(),
                    labels[batch],
                    wants_theta=unroll.propagate and (step > 0 or wants_start),
                    wants_images=wants_images,
                    wants_labels=wants_labels,
                )
                grad_lr -= pulled.phi.sum()  # (2)
                if grad_images is not None and pulled.images is not None:
                    piece = -lr * pulled.images
                    if unroll.augment is not None:
                        piece = _through_augment(inputs, pieces, piece)
                    grad_images.index_add_(0, batch, piece)
                if grad_labels is not None and pulled.labels is not None:
                    grad_labels.index_add_(0, batch, -lr * pulled.labels)
                if pulled.theta is not None:
                    v.addcmul_(pulled.theta, lr, value=-1)  # (3)
        draws.verify()

        # `unroll` is not a tensor, hence the first None.
        return (
            None,
            grad_start + v if wants_start else None,
            grad_target if wants_target else None,
            grad_images,
            grad_labels,
            grad_lr.to(lr.dtype).reshape(lr.shape) if wants_lr else None,
        )


def _through_augment(augmented: Tensor, images: Tensor, grad: Tensor) -> Tensor:
    if not augmented.requires_grad:
        raise InputError(
            "augment returned images that do not depend on its input (detached, or computed without autograd); "
            "it must be differentiable for gradients to reach the images"
        )
    return torch.autograd.grad(augmented, images, grad)[0]


class _Draws:
    """Random numbers and augmented images of every step, so that the reverse pass sees what the forward pass saw.

    torch's default generators are put back before each step is evaluated again. A callable that draws from anywhere
    else would silently give a wrong gradient; a weighted sum of every augmented batch exposes it.

    Everything is written into tensors made at the start: small ones that outlive the large temporaries around them
    would pin the heap and make memory grow with T after all.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device = device
        self.states = [torch.empty(steps, len(state), dtype=torch.uint8) for state in self._state()]
        self.sums = torch.zeros(steps, dtype=torch.float64, device=device)
        self.replays = torch.zeros_like(self.sums)
        self.tolerances = torch.zeros_like(self.sums)

    def _state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)

    def remember(self, step: int) -> None:
        for kept, state in zip(self.states, self._state(), strict=True):
            kept[step] = state

    def restore(self, step: int) -> None:
        # torch ignores the offset of a view here, hence the clones.
        self._set([kept[step].clone() for kept in self.states])

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """The caller's generators continue afterwards as if the reverse pass had drawn nothing."""
        present = self._state()
        self.replays.copy_(self.sums)
        try:
            yield
        finally:
            self._set(present)

    @staticmethod
    def _weighted_sum(images: Tensor) -> Tensor:
        values = images.detach().reshape(-1).double()
        # Unequal weights, because a mirrored image has the same plain sum.
        return values @ torch.linspace(0.5, 1.5, len(values), dtype=values.dtype, device=values.device)

    def note(self, step: int, images: Tensor) -> None:
        self.sums[step] = self._weighted_sum(images)
        self.tolerances[step] = 1e-6 * (images.numel() + 1)

    def check(self, step: int, images: Tensor) -> None:
        self.replays[step] = self._weighted_sum(images)

    def verify(self) -> None:
        """One comparison at the end, because looking at a value on a GPU waits for it.

        Raises:
            InputError: a step's images were not the same the second time.
        """
        wrong = (self.replays - self.sums).abs() > self.tolerances
        if bool(wrong.any()):
            raise InputError(
                f"augment gave other images when step {int(wrong.nonzero()[0])} was evaluated again for the gradient; "
                "it must be a pure function of (images, step), or draw only from torch's default generators"
            )
