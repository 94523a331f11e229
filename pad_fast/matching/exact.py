r"""The gradient of an unrolled training run in constant activation memory.

With `theta_{t+1} = theta_t - alpha g_t(theta_t, x_t, y_t)` and `v_T = dL/dtheta_T`, for t = T-1 .. 0:

    phi_t = <v_{t+1}, g_t>                                                              (1)
    dL/dx_t = -alpha dphi_t/dx_t,   dL/dy_t = -alpha dphi_t/dy_t,   dL/dalpha -= phi_t  (2)
    v_t = v_{t+1} - alpha dphi_t/dtheta_t                                               (3)

Only the T parameter vectors are kept. TESLA's approximation is the same loop without (3): every Hessian term is
left out, and `v_t = v_T` throughout.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..engines import Augment, Augmentation, Engine, Inputs, Passes, Task, Wants
from ..errors import InputError
from .distance import normalized_distance
from .split_batches import Reduce


@dataclass(frozen=True, eq=False)
class Unroll:
    """Everything about a run but its tensors.

    Attributes:
        sizes: images per step, T numbers; those in this process, where batches are divided over several.
        propagate: True for the exact gradient, False for TESLA's.
        first_kept, dropped: the mask, see :func:`normalized_distance`.
        reduce: what is added up between processes.
    """

    engine: Engine
    task: Task
    sizes: tuple[int, ...]
    augment: Augment | None
    propagate: bool
    first_kept: int
    dropped: int
    reduce: Reduce


def constant_memory_loss(
    unroll: Unroll,
    theta_start: Tensor,
    theta_target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    indices: Tensor,
) -> Tensor:
    """Matching loss `[K]` for stacked trajectories `[K, P]`, differentiable once in every floating tensor given.

    Args:
        indices: the batches of all steps behind each other, `[sum of unroll.sizes]`.
    """
    return _ConstantMemory.apply(unroll, theta_start, theta_target, images, labels, lr, indices)


class _ConstantMemory(torch.autograd.Function):
    """Hands the passes, which know nothing of autograd, to the engine and to autograd."""

    @staticmethod
    def forward(ctx: Any, unroll: Unroll, *tensors: Tensor) -> Tensor:
        engine, (_, start, target, images, labels, lr, _) = unroll.engine, ctx.needs_input_grad
        # TESLA defines no gradient for the start.
        wants = Wants(theta=start and unroll.propagate, images=images, labels=labels, target=target, lr=lr)
        own = _own_augmentation(unroll, tensors[2])
        inputs = Inputs._make((*tensors, None if own is None else own.seed))
        with engine.running():
            passes = engine.passes(
                unroll.task, lambda: Recursion(unroll, wants, inputs.images), _key(unroll, wants, own), inputs
            )
            losses = passes.forward(inputs)
        ctx.engine, ctx.passes, ctx.seed = engine, passes, inputs.seed
        ctx.save_for_backward(*tensors)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.engine.running():
            grads = ctx.passes.reverse(Inputs._make((*ctx.saved_tensors, ctx.seed)), grad_loss)
        # `unroll` is not a tensor, hence the first None; indices have no gradient, hence the last.
        return (None, *grads, None)


def _key(unroll: Unroll, wants: Wants, own: Augmentation | None) -> Hashable | None:
    """What decides the operations of a run besides its tensors; None when that is not known.

    Not the network itself: an engine that records knows which of its properties matter.
    """
    if not unroll.reduce.recordable or (unroll.augment is not None and (own is None or own.key is None)):
        return None
    return (
        unroll.sizes,
        unroll.propagate,
        unroll.first_kept,
        unroll.dropped,
        wants,
        None if own is None else own.key,
    )


def _own_augmentation(unroll: Unroll, images: Tensor) -> Augmentation | None:
    if unroll.augment is None:
        return None
    return unroll.engine.augmentation(unroll.task, unroll.augment, sizes=unroll.sizes, images=images)


class Recursion(Passes):
    """Equations (1) to (3) of this module, the only place where they stand.

    Args:
        unroll: the run.
        wants: gradients that the reverse pass is to return.
        images: what batches are taken from; only shape and device are looked at.
    """

    def __init__(self, unroll: Unroll, wants: Wants, images: Tensor) -> None:
        self.unroll, self.wants = unroll, wants
        self.student = unroll.reduce.student(unroll.engine.student(unroll.task))
        own = _own_augmentation(unroll, images)
        draws = None
        if self.student.random or (unroll.augment is not None and own is None):
            draws = _Draws(images.device, len(unroll.sizes))
        self.draws = draws
        self.augment = own
        if unroll.augment is not None and own is None:
            assert draws is not None  # made above for this
            self.augment = _Recorded(unroll.augment, draws)

    def forward(self, inputs: Inputs) -> Tensor:
        """Train the student, keeping the vectors it visits; `[K]`."""
        sizes = self.unroll.sizes
        if self.augment is not None:
            self.augment.begin(inputs.seed)
        self.visited = _vectors(inputs.theta_start, len(sizes) + 1)
        self.visited[0].copy_(inputs.theta_start)
        labels = inputs.labels.index_select(0, inputs.indices).split(sizes)
        for step, batch in enumerate(inputs.indices.split(sizes)):
            if self.draws is not None:
                self.draws.remember(step)
            if self.augment is None:
                images = inputs.images.index_select(0, batch)
            else:
                images = self.augment.forward(step, inputs.images, batch)
            gradient = self.student.gradient(step, self.visited[step], images, labels[step])
            self.unroll.engine.updates.sgd(self.visited[step], gradient, inputs.lr, out=self.visited[step + 1])
        distance = normalized_distance if self.unroll.engine.distance is None else self.unroll.engine.distance.value
        return distance(
            self.visited[-1],
            inputs.theta_start,
            inputs.theta_target,
            first_kept=self.unroll.first_kept,
            dropped=self.unroll.dropped,
        )

    def reverse(self, inputs: Inputs, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Pull back through the steps, last first."""
        unroll, wants, augment, lr = self.unroll, self.wants, self.augment, inputs.lr
        v, grad_start, grad_target = self._distance_gradients(inputs, grad_loss)  # v_T, and the direct terms
        # Of phi; the factor -lr of (2) comes at the end, once for all steps.
        sum_images = torch.zeros_like(inputs.images) if wants.images else None
        sum_labels = torch.zeros_like(inputs.labels) if wants.labels else None
        batches = inputs.indices.split(unroll.sizes)
        labels = inputs.labels.index_select(0, inputs.indices).split(unroll.sizes)
        phis = v.new_zeros(len(batches), len(v))
        needs_steps = wants.images or wants.labels or wants.lr or wants.theta
        with unroll.task.network.buffers_restored(), nullcontext() if self.draws is None else self.draws.replayed():
            for step in reversed(range(len(batches) if needs_steps else 0)):
                batch = batches[step]
                if self.draws is not None:
                    self.draws.restore(step)
                if augment is None:
                    images = inputs.images.index_select(0, batch)
                else:
                    images = augment.again(step, inputs.images, batch, wants)
                pulled = self.student.adjoint(
                    step,
                    self.visited[step],
                    v,
                    images,
                    labels[step],
                    replace(wants, theta=unroll.propagate and (step > 0 or wants.theta)),
                )
                phis[step].copy_(pulled.phi)
                if sum_images is not None and pulled.images is not None:
                    piece = pulled.images if augment is None else augment.pull(step, pulled.images)
                    sum_images.index_add_(0, batch, piece)
                if sum_labels is not None and pulled.labels is not None:
                    sum_labels.index_add_(0, batch, pulled.labels)
                if pulled.theta is not None:
                    unroll.engine.updates.sgd(v, pulled.theta, lr, out=v)  # (3)
        if self.draws is not None:
            self.draws.verify()
        unroll.reduce.sum_(sum_images, sum_labels, phis if wants.lr else None)
        return (
            None if grad_start is None else grad_start + v,
            grad_target,
            None if sum_images is None else sum_images.mul_(-lr),
            None if sum_labels is None else sum_labels.mul_(-lr),
            -phis.sum().to(lr.dtype).reshape(lr.shape) if wants.lr else None,
        )

    def _distance_gradients(self, inputs: Inputs, grad_loss: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """By where the student landed, and where wanted by start and target."""
        first_kept, dropped = self.unroll.first_kept, self.unroll.dropped
        vectors = (self.visited[-1], inputs.theta_start, inputs.theta_target)
        if self.unroll.engine.distance is not None:
            return self.unroll.engine.distance.gradients(
                *vectors, grad_loss, self.wants, first_kept=first_kept, dropped=dropped
            )
        wants = (True, self.wants.theta, self.wants.target)
        with torch.enable_grad():
            ends = [vector.detach().requires_grad_(wanted) for vector, wanted in zip(vectors, wants, strict=True)]
            distance = normalized_distance(*ends, first_kept=first_kept, dropped=dropped)
            found = iter(torch.autograd.grad(distance, [end for end in ends if end.requires_grad], grad_loss))
        v, start, target = (next(found) if wanted else None for wanted in wants)
        assert v is not None  # it was asked for
        return v, start, target


def _vectors(like: Tensor, count: int) -> list[Tensor]:
    """`count` tensors of `like`'s shape `[K, P]` in one allocation, each starting at a multiple of 16 elements.

    One allocation, because made one by one between short-lived tensors they leave holes that cost as much again; the
    starts, because GPUs read aligned vectors in fewer pieces.
    """
    size = like.numel()
    memory = like.new_empty(count, -(-size // 16) * 16)
    return [row[:size].view(like.shape) for row in memory]


class _Recorded(Augmentation):
    """Any differentiable callable, recorded by autograd."""

    def __init__(self, augment: Augment, draws: _Draws) -> None:
        self.augment, self.draws = augment, draws
        self.graph: tuple[Tensor, Tensor] | None = None

    def forward(self, step: int, images: Tensor, batch: Tensor) -> Tensor:
        augmented = self.augment(images.index_select(0, batch), step)
        self.draws.note(step, augmented)
        return augmented

    def again(self, step: int, images: Tensor, batch: Tensor, wants: Wants) -> Tensor:
        with torch.set_grad_enabled(wants.images):
            images = images.index_select(0, batch).detach().requires_grad_(wants.images)
            augmented = self.augment(images, step)
        if wants.images and not augmented.requires_grad:
            raise InputError(
                "augment returned images that do not depend on its input (detached, or computed without autograd); "
                "it must be differentiable for gradients to reach the images"
            )
        self.graph = augmented, images
        self.draws.check(step, augmented.detach())
        return augmented.detach()

    def pull(self, step: int, grad: Tensor) -> Tensor:
        assert self.graph is not None  # again() ran
        (augmented, images), self.graph = self.graph, None
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
