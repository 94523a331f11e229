r"""The gradient of an unrolled training run in constant activation memory.

With `theta_{t+1} = theta_t - alpha g_t(theta_t, x_t, y_t)` and `v_T = dL/dtheta_T`, for t = T-1 .. 0:

    phi_t = <v_{t+1}, g_t>                                                              (1)
    dL/dx_t = -alpha dphi_t/dx_t,   dL/dy_t = -alpha dphi_t/dy_t,   dL/dalpha -= phi_t  (2)
    v_t = v_{t+1} - alpha dphi_t/dtheta_t                                               (3)

Only the T parameter vectors are kept. TESLA's approximation is the same loop without (3): every Hessian term is
left out, and `v_t = v_T` throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engines import Augment, Augmentation, Engine, Inputs, Passes, Task, Wants
from ..errors import InputError
from ..runtime.shapes import Float, Int
from .distance import normalized_distance
from .replay import CheckedStudent, RecordedAugmentation, Replay, in_turn
from .split_batches import SplitBatches, WholeBatches


@dataclass(frozen=True, eq=False)
class Unroll:
    """Everything about a run but its tensors.

    Attributes:
        sizes: images per step, T numbers; those in this process, where batches are divided over several.
        propagate: True for the exact gradient, False for TESLA's.
        first_kept, dropped: the mask, see :func:`normalized_distance`.
        captured: tensors that `augment` uses besides its arguments and that want a gradient too.
        draw: the batch of a step, drawn between the augmentations of the steps around it; None where batches are known.
        split: whether batches are divided over processes, and what they then add up.
    """

    engine: Engine
    task: Task
    sizes: tuple[int, ...]
    augment: Augment | None
    propagate: bool
    first_kept: int
    dropped: int
    split: WholeBatches | SplitBatches
    captured: tuple[Tensor, ...] = ()
    draw: Callable[[int], Tensor] | None = None


def constant_memory_loss(
    unroll: Unroll,
    theta_start: Float[Tensor, "K P"],
    theta_target: Float[Tensor, "K P"],
    images: Float[Tensor, "N ..."],
    labels: Float[Tensor, "N classes"] | Int[Tensor, " N"],
    lr: Float[Tensor, ""],
    indices: Int[Tensor, " indices"],
) -> Float[Tensor, " K"]:
    """Matching loss `[K]` for stacked trajectories `[K, P]`, differentiable once in every floating tensor given.

    Args:
        indices: the batches of all steps behind each other, `[sum of unroll.sizes]`; overwritten where they are drawn.
    """
    tensors = (theta_start, theta_target, images, labels, lr, indices)
    return _ConstantMemory.apply(unroll, *tensors, *unroll.captured)


class _ConstantMemory(torch.autograd.Function):
    """Hands the passes, which know nothing of autograd, to the engine and to autograd."""

    @staticmethod
    def forward(ctx: Any, unroll: Unroll, *given: Tensor) -> Float[Tensor, " K"]:
        tensors = given[: len(given) - len(unroll.captured)]
        engine, (_, start, target, images, labels, lr, _, *_) = unroll.engine, ctx.needs_input_grad
        # TESLA defines no gradient for the start.
        wants = Wants(theta=start and unroll.propagate, images=images, labels=labels, target=target, lr=lr)
        own = _own_augmentation(unroll, tensors[2])
        inputs = Inputs._make((*tensors, None if own is None else own.seed))
        with engine.running():
            passes = engine.passes(
                unroll.task,
                lambda task: UnrollPasses(replace(unroll, task=task), wants, inputs.images),
                _key(unroll, wants, own),
                inputs,
            )
            losses = passes.forward(inputs)
        ctx.engine, ctx.passes, ctx.seed, ctx.given = engine, passes, inputs.seed, len(tensors)
        # The parameters that the student visited too: autograd frees what it has saved, whoever keeps the loss. So it
        # does the passes, which hold the student: an empty tensor owns them.
        owner = inputs.lr.new_empty(0)
        vars(owner)["passes"] = passes
        ctx.save_for_backward(*tensors, owner, *passes.release())
        return losses

    @staticmethod
    def backward(ctx: Any, grad_loss: Float[Tensor, " K"]) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # which it is here under create_graph=True, and only then
            raise InputError(
                "this loss can be differentiated once, and create_graph=True asks for a gradient that can be "
                "differentiated again; leave it out, or use gradient='unroll', whose memory grows with T"
            )
        saved = ctx.saved_tensors
        given, (owner, *kept) = saved[: ctx.given], saved[ctx.given :]
        passes = vars(owner)["passes"] if ctx.passes is None else ctx.passes
        # Hooks on saved tensors (`torch.autograd.graph.save_on_cpu`) hand over another one, which owns nothing.
        ctx.passes = None if "passes" in vars(owner) else passes
        with ctx.engine.running():
            passes.restore(kept)
            start, target, images, labels, lr, *captured = passes.reverse(Inputs._make((*given, ctx.seed)), grad_loss)
            passes.release()
        # `unroll` is not a tensor, hence the first None; indices have no gradient, hence the other.
        return (None, start, target, images, labels, lr, None, *captured)


def _key(unroll: Unroll, wants: Wants, own: Augmentation | None) -> Hashable | None:
    """Whatever decides the operations of a run besides its tensors; None when that is not known.

    Not the network itself: an engine that records knows which of its properties matter.
    """
    if not unroll.split.recordable or (unroll.augment is not None and (own is None or own.key is None)):
        return None
    return (
        unroll.sizes,
        unroll.propagate,
        unroll.first_kept,
        unroll.dropped,
        wants,
        None if own is None else own.key,
    )


def _own_augmentation(unroll: Unroll, images: Float[Tensor, "N ..."]) -> Augmentation | None:
    if unroll.augment is None:
        return None
    return unroll.engine.augmentation(unroll.task, unroll.augment, sizes=unroll.sizes, images=images)


class UnrollPasses(Passes):
    """Equations (1) to (3) of this module, the only place where they stand.

    Args:
        unroll: the run.
        wants: gradients that the reverse pass is to return.
        images: what batches are taken from; only shape and device are looked at.
    """

    def __init__(self, unroll: Unroll, wants: Wants, images: Float[Tensor, "N ..."]) -> None:
        self.unroll, self.wants = unroll, wants
        steps = len(unroll.sizes)
        student = unroll.engine.student(unroll.task)
        self.checked: CheckedStudent | None = None
        if student.random:
            student = self.checked = CheckedStudent(student, unroll.task.network, steps)
        self.student = unroll.split.student(student)
        self.augment = _own_augmentation(unroll, images)
        self.recorded: RecordedAugmentation | None = None
        if unroll.augment is not None and self.augment is None:
            self.augment = self.recorded = RecordedAugmentation(unroll.augment, images.device, steps, unroll.captured)
        replayed = self.checked is not None or self.recorded is not None
        self.memory: Tensor | None = None
        self.visited: list[Tensor] = []
        self.replay = Replay(unroll.task.network, images.device, steps) if replayed else None

    def forward(self, inputs: Inputs) -> Float[Tensor, " K"]:
        """Train the student, keeping the vectors it visits; `[K]`."""
        sizes = self.unroll.sizes
        if self.augment is not None:
            self.augment.begin(inputs.seed)
        self.shape = inputs.theta_start.shape
        self.restore([_memory(inputs.theta_start, len(sizes) + 1)])
        self.visited[0].copy_(inputs.theta_start)
        labels: Sequence[Tensor] = ()
        if self.unroll.draw is None:
            labels = inputs.labels.index_select(0, inputs.indices).split(sizes)
        for step, batch in enumerate(inputs.indices.split(sizes)):
            if self.unroll.draw is not None:
                batch.copy_(self.unroll.draw(step))
                labels = (*labels, inputs.labels.index_select(0, batch))
            with in_turn(self.replay, step, again=False):
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

    def release(self) -> tuple[Tensor, ...]:
        """The vectors the student visited."""
        memory, self.memory, self.visited = self.memory, None, []
        return () if memory is None else (memory,)

    def restore(self, kept: Sequence[Tensor]) -> None:
        """Views of them."""
        (memory,) = kept
        self.memory = memory
        self.visited = [row[: self.shape.numel()].view(self.shape) for row in memory]

    def reverse(self, inputs: Inputs, grad_loss: Float[Tensor, " K"]) -> tuple[Tensor | None, ...]:
        """Pull back through the steps, last first."""
        unroll, wants, augment, lr = self.unroll, self.wants, self.augment, inputs.lr
        v, grad_start, grad_target = self._distance_gradients(inputs, grad_loss)  # v_T, and the direct terms
        # Of phi; the factor -lr of (2) comes at the end, once for all steps.
        sum_images = torch.zeros_like(inputs.images) if wants.images else None
        sum_labels = torch.zeros_like(inputs.labels) if wants.labels else None
        batches = inputs.indices.split(unroll.sizes)
        labels = inputs.labels.index_select(0, inputs.indices).split(unroll.sizes)
        phis = v.new_zeros(len(batches), len(v))
        captured = [] if self.recorded is None else self.recorded.begin_reverse()
        pulls_images = wants.images or bool(captured)
        needs_steps = pulls_images or wants.labels or wants.lr or wants.theta
        for step in reversed(range(len(batches) if needs_steps else 0)):
            batch = batches[step]
            asked = replace(wants, theta=unroll.propagate and (step > 0 or wants.theta), images=pulls_images)
            with in_turn(self.replay, step, again=True):
                if augment is None:
                    images = inputs.images.index_select(0, batch)
                else:
                    images = augment.again(step, inputs.images, batch, asked)
                pulled = self.student.adjoint(step, self.visited[step], v, images, labels[step], asked)
            phis[step].copy_(pulled.phi)
            if pulls_images and pulled.images is not None:
                piece = pulled.images if augment is None else augment.pull(step, pulled.images)
                if sum_images is not None:
                    sum_images.index_add_(0, batch, piece)
            if sum_labels is not None and pulled.labels is not None:
                sum_labels.index_add_(0, batch, pulled.labels)
            if pulled.theta is not None:
                unroll.engine.updates.sgd(v, pulled.theta, lr, out=v)  # (3)
        if augment is not None:
            augment.end()
        if self.checked is not None:
            self.checked.end()
        unroll.split.sum_(sum_images, sum_labels, phis if wants.lr else None)
        return (
            None if grad_start is None else grad_start + v,
            grad_target,
            None if sum_images is None else sum_images.mul_(-lr),
            None if sum_labels is None else sum_labels.mul_(-lr),
            -phis.sum().to(lr.dtype).reshape(lr.shape) if wants.lr else None,
            *(grad.mul_(-lr) for grad in captured),
        )

    def _distance_gradients(
        self, inputs: Inputs, grad_loss: Float[Tensor, " K"]
    ) -> tuple[Float[Tensor, "K P"], Float[Tensor, "K P"] | None, Float[Tensor, "K P"] | None]:
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


def _memory(like: Float[Tensor, "K P"], count: int) -> Float[Tensor, "count _"]:
    """One allocation for `count` tensors of `like`'s shape `[K, P]`, each starting at a multiple of 16 elements.

    One allocation, because made one by one between short-lived tensors they leave holes that cost as much again; the
    starts, because GPUs read aligned vectors in fewer pieces.
    """
    return like.new_empty(count, -(-like.numel() // 16) * 16)
