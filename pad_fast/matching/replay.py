"""A step evaluated again in the reverse pass sees what it saw in the forward pass, or the run is refused.

Some of what a step sees besides its tensors can be put back: torch's default generators, a module's buffers and modes,
autocast. Anything else (numpy's generator, a Python attribute that counts calls, a dropout rate that was changed)
shows in the step's gradient, which is compared with the one of the forward pass by a sketch of a few sums.

Sums and states are written into tensors made at the start: small ones that outlive the large temporaries around them
would pin the heap and make memory grow with T after all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from ..engines import Adjoint, Augment, Augmentation, Student, Wants
from ..engines.leaves import leaves_of, refuse_unknown_leaves
from ..errors import InputError
from ..models.flat import FlatNetwork
from ..runtime.shapes import Float, Int

# The default generators and a module's parameters, which calls exchange for a moment, belong to the whole process.
# Steps of torch's engine therefore take turns; native engines use neither and stay parallel.
TURN = threading.RLock()


class Replay:
    """Everything that can be put back ahead of a step's second evaluation, as it was at the first one.

    Buffers are kept per step only as far as steps change them: a batch norm's statistics, say, never weights.
    """

    def __init__(self, network: FlatNetwork, device: torch.device, steps: int) -> None:
        self.network, self.device = network, device
        self.states = [torch.empty(steps, len(state), dtype=torch.uint8) for state in self._generators()]
        self.modes = [(module, module.training) for module in network.module.modules()]
        self.buffers: list[dict[str, Tensor]] = []
        self._kept: dict[str, tuple[Tensor, int, Tensor]] = {}  # name -> the buffer, its version, a copy
        kind = device.type
        self.autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) if _autocasts(kind) else None

    @contextmanager
    def first(self, step: int) -> Iterator[None]:
        """Held around the first evaluation."""
        with TURN:
            for kept, state in zip(self.states, self._generators(), strict=True):
                kept[step] = state
            self.buffers.append({name: self._copy(name, buffer) for name, buffer in self.network.buffers()})
            yield

    @contextmanager
    def second(self, step: int) -> Iterator[None]:
        """Held around the second one; afterwards everything is as the caller left it."""
        with TURN, ExitStack() as restored:
            present = self._generators()
            restored.callback(self._set, present)
            # torch ignores the offset of a view here, hence the clones.
            self._set([kept[step].clone() for kept in self.states])
            for module, training in self.modes:
                if module.training != training:
                    restored.callback(setattr, module, "training", module.training)
                    module.training = training
            if self.autocast is not None:
                enabled, dtype = self.autocast
                if (torch.is_autocast_enabled(self.device.type), torch.get_autocast_dtype(self.device.type)) != (
                    enabled,
                    dtype,
                ):
                    restored.enter_context(torch.autocast(self.device.type, enabled=enabled, dtype=dtype))
            # Copies, because a step may write to them, and a graph that was retained is pulled back again.
            buffers = {name: value.clone() for name, value in self.buffers[step].items()}
            restored.enter_context(self.network.with_buffers(buffers))
            yield

    def _copy(self, name: str, buffer: Tensor) -> Tensor:
        """The buffer's value; the same tensor as last time, if nobody has written to it since."""
        known = self._kept.get(name)
        if known is None or known[0] is not buffer or known[1] != buffer._version:
            known = self._kept[name] = (buffer, buffer._version, buffer.detach().clone())
        return known[2]

    def _generators(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)


class CheckedStudent(Student):
    """A student whose recomputed gradients are compared with those of the forward pass, once, at the end.

    Per step and trajectory a sketch of `PIECES` + 1 numbers is kept: sums of pieces of the gradient under random signs.
    Gradients are as long, and as far apart, as their sketches, give or take a third. Signs, because the two passes may
    sum in different orders, and rounding that leans to one side would add up under weights that do not change theirs.
    """

    PIECES = 32

    def __init__(self, student: Student, network: FlatNetwork, steps: int) -> None:
        self.inner, self.network, self.steps = student, network, steps
        self.random = student.random
        self.signs: Tensor | None = None

    def gradient(self, step: int, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        gradient = self.inner.gradient(step, theta, images, labels)
        if self.signs is None:
            self._begin(gradient)
        self._sketch(gradient, self.sketches[step])
        self.again[step] = self.sketches[step]
        return gradient

    def adjoint(
        self, step: int, theta: Tensor, direction: Tensor, images: Tensor, labels: Tensor, wants: Wants
    ) -> Adjoint:
        pulled = self.inner.adjoint(step, theta, direction, images, labels, wants)
        if pulled.gradient is not None and self.signs is not None:
            self._sketch(pulled.gradient, self.again[step])
        return pulled

    def _begin(self, gradient: Float[Tensor, "K P"]) -> None:
        trajectories, count = gradient.shape
        self.pieces = min(self.PIECES, count)
        self.rounding = max(self.inner.rounding, _rounding(gradient))
        generator = torch.Generator(gradient.device).manual_seed(0)
        signs = torch.randint(2, (count // self.pieces,), generator=generator, device=gradient.device)
        self.signs = (2 * signs - 1).to(gradient.dtype)
        self.sketches = gradient.new_zeros(self.steps, trajectories, self.pieces + 1)
        self.again = torch.zeros_like(self.sketches)

    def _sketch(self, gradient: Float[Tensor, "K P"], out: Float[Tensor, "K sketch"]) -> None:
        assert self.signs is not None  # _begin() ran
        covered = self.pieces * len(self.signs)
        for row, sketch in zip(gradient, out, strict=True):
            torch.mv(row[:covered].view(self.pieces, -1), self.signs, out=sketch[: self.pieces])
            torch.sum(row[covered:], 0, out=sketch[self.pieces])

    def end(self) -> None:
        """One comparison for all steps, because looking at a value on a GPU waits for it.

        Raises:
            InputError: a step's gradient was not the same the second time.
        """
        if self.signs is None:
            return
        # Half of the digits: two orders of summation leave more of them equal, another state or mode fewer. A gradient
        # near zero (labels that are the student's own answers) is rounding altogether, hence the absolute term.
        allowed = self.rounding**0.5 * self.sketches.norm(dim=2) + 100 * self.rounding
        wrong = ((self.again - self.sketches).norm(dim=2) > allowed).any(1)
        if bool(wrong.any()):
            name = type(self.network.module).__name__
            raise InputError(
                f"{name} computed another gradient when step {int(wrong.nonzero()[0])} was evaluated again for the "
                "reverse pass. It keeps state outside its buffers, draws from another generator than torch's default "
                "ones (numpy's, Python's, one of its own), or was changed between the call and backward() (a dropout "
                "rate, a layer). Make its forward a function of parameters, buffers and images, change it after "
                "backward(), or use gradient='unroll', which evaluates every step once and whose memory grows with T"
            )


class RecordedAugmentation(Augmentation):
    """Any differentiable callable, pulled back by autograd.

    A callable that draws from anywhere but torch's default generators would silently give a wrong gradient; a weighted
    sum of every augmented batch exposes it.

    Args:
        captured: tensors that the callable uses besides its arguments and that want a gradient too.

    Attributes:
        grads: of `captured`, summed over the steps that were pulled back since :meth:`begin_reverse`.
    """

    def __init__(self, augment: Augment, device: torch.device, steps: int, captured: Sequence[Tensor] = ()) -> None:
        self.augment = augment
        self.captured = list(captured)
        self.grads: list[Tensor] = []
        self.graph: tuple[Tensor, Tensor] | None = None
        self.sums = torch.zeros(steps, dtype=torch.float64, device=device)
        self.again_sums = torch.zeros_like(self.sums)
        self.tolerances = torch.zeros_like(self.sums)

    def begin_reverse(self) -> list[Tensor]:
        """Start the sums over the steps afresh; returns them."""
        self.grads = [torch.zeros_like(tensor) for tensor in self.captured]
        return self.grads

    def forward(self, step: int, images: Float[Tensor, "N ..."], batch: Int[Tensor, " B"]) -> Tensor:
        augmented = self.augment(images.index_select(0, batch), step)
        self.sums[step] = self.again_sums[step] = _weighted_sum(augmented)
        self.tolerances[step] = 1e-6 * (augmented.numel() + 1)
        return augmented

    def again(self, step: int, images: Float[Tensor, "N ..."], batch: Int[Tensor, " B"], wants: Wants) -> Tensor:
        with torch.set_grad_enabled(wants.images):
            images = images.index_select(0, batch).detach().requires_grad_(wants.images)
            # A copy, because an augmentation may write into what it is given, which a leaf would not stand.
            augmented = self.augment(images.clone(), step)
        if wants.images and not augmented.requires_grad:
            raise InputError(
                "augment returned images that do not depend on its input (detached, or computed without autograd); "
                "it must be differentiable for gradients to reach the images"
            )
        if wants.images:
            refuse_unknown_leaves(augmented, [images, *self.captured], f"augment, in step {step},")
        self.graph = augmented, images
        self.again_sums[step] = _weighted_sum(augmented)
        return augmented.detach()

    def pull(self, step: int, grad: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        assert self.graph is not None  # again() ran
        (augmented, images), self.graph = self.graph, None
        # What lies behind a captured tensor serves every step.
        own, *others = torch.autograd.grad(
            augmented,
            [images, *self.captured],
            grad,
            retain_graph=bool(self.captured),
            allow_unused=True,
            materialize_grads=True,
        )
        for total, other in zip(self.grads, others, strict=True):
            total += other
        return own

    def end(self) -> None:
        """One comparison for all steps, because looking at a value on a GPU waits for it.

        Raises:
            InputError: a step's images were not the same the second time.
        """
        wrong = (self.again_sums - self.sums).abs() > self.tolerances
        if bool(wrong.any()):
            raise InputError(
                f"augment gave other images when step {int(wrong.nonzero()[0])} was evaluated again for the gradient; "
                "it must be a pure function of (images, step), or draw only from torch's default generators"
            )


class FirstImages:
    """What `augment` makes of a batch, found by calling it for step 0 when that is first asked.

    Random numbers drawn meanwhile are given back.

    Args:
        images: `[N, ...]`, detached.
        batch: which of them a step takes.
    """

    def __init__(self, augment: Augment, images: Float[Tensor, "N ..."], batch: Int[Tensor, " B"]) -> None:
        self.augment, self.images, self.batch = augment, images, batch
        self.records = torch.is_grad_enabled()

    def shape(self) -> tuple[int, ...]:
        """Of one image as a network sees it: a crop of what the caller learns has another one."""
        return self._found[0]

    def captured(self) -> tuple[Tensor, ...]:
        """Leaves with a gradient that `augment` uses besides its arguments; none under `torch.no_grad`."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[tuple[int, ...], tuple[Tensor, ...]]:
        devices = [self.images.device] if self.images.device.type == "cuda" else []
        with TURN, torch.random.fork_rng(devices=devices), torch.set_grad_enabled(self.records):
            given = self.images.index_select(0, self.batch).requires_grad_(self.records)
            augmented = self.augment(given.clone(), 0)
            leaves = tuple(leaf for leaf in leaves_of(augmented) if leaf is not given)
            return tuple(augmented.shape[1:]), leaves


def _rounding(gradient: Tensor) -> float:
    """Spacing near 1 of the numbers that products of such tensors are taken in."""
    tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    if gradient.device.type == "cuda" and gradient.dtype == torch.float32 and tf32:
        return 2.0**-10
    return torch.finfo(gradient.dtype).eps


def _autocasts(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def _weighted_sum(images: Tensor) -> Tensor:
    values = images.detach().reshape(-1).double()
    # Unequal weights, because a mirrored image has the same plain sum.
    return values @ torch.linspace(0.5, 1.5, len(values), dtype=values.dtype, device=values.device)


def in_turn(replay: Replay | None, step: int, *, again: bool) -> AbstractContextManager[None]:
    """Held around one evaluation of a step, where there is anything to put back."""
    if replay is None:
        return nullcontext()
    return replay.second(step) if again else replay.first(step)
