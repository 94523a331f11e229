"""One iteration's gradient in `benchmarks.gpu`: the tensors of a case, both sides, and what is checked of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.gpu_cases import COMPILED, LOOP, RIVALS, TIMED_TOLERANCE, VARIANTS, Ours, Plain, UnrollCase
from benchmarks.gpu_rivals import Captured, Drawn, need_cuda, student_step
from benchmarks.gpu_timing import (
    AsTimed,
    Device,
    NeedsCudaError,
    Rival,
    environment,
    replayed,
    torch_settings,
)
from benchmarks.rivals import Step, plain_unroll, rows
from pad_fast import DSA, ConvNet, trajectory_matching_loss
from pad_fast.data.augment import OPERATIONS, DSADraw, value_ranges
from pad_fast.engines import Task, record_backends, select
from pad_fast.engines.triton.kernel_forms import KernelDSA
from pad_fast.models import FlatNetwork

# The plain loop by precision, the same on both sides.
YARDSTICKS = {"tf32": "plain loop", "ieee": "plain loop, float32", "bf16": "plain loop, bf16 autocast"}
# Seed of the augmentation with which runs are compared, and which captured loops have in them.
_SEED = 0

Gradients = tuple[Tensor, ...]
"""Of images, label logits and learning rate."""


class Unroll:
    """The tensors of a case, and its two sides.

    Args:
        precision: what convolutions multiply in on both sides: "tf32", "bf16" or "ieee".
    """

    def __init__(self, case: UnrollCase, device: Device, backend: str, precision: str = "tf32") -> None:
        torch.manual_seed(0)
        self.case, self.device, self.backend, self.precision = case, device.device, backend, precision
        self.module = ConvNet(width=case.width, depth=case.depth).to(device.device)
        self.theta = FlatNetwork(self.module).initial()
        self.target = self.theta + 0.01 * torch.randn_like(self.theta)
        self.images = torch.randn(case.batch, 3, 32, 32).to(device.device)
        self.labels = torch.randn(case.batch, 10).to(device.device)
        self.lr = torch.tensor(0.01, device=device.device)
        draws = torch.Generator().manual_seed(1)
        self.batches = [torch.randperm(case.batch, generator=draws) for _ in range(case.steps)]
        self.on_device = [batch.to(self.device) for batch in self.batches]
        self.seed = _SEED
        self._steps: dict[tuple[Plain, bool], Step] = {}
        self._truths: dict[int, tuple[Gradients, float | None]] = {}

    def plain(self, steps: int, **options: Any) -> Gradients:
        """By the plain loop, started operator by operator; options as of :meth:`loop`."""
        return self.loop(steps, **options)()

    def loop(
        self,
        steps: int,
        *,
        augmented: bool = True,
        how: Plain = LOOP,
        draws: Sequence[DSADraw] | None = None,
        precision: str | None = None,
    ) -> Callable[[], Gradients]:
        """The plain loop with everything on the device beforehand but an augmentation, which each call draws anew.

        Args:
            draws: the augmentation where it is given.
            precision: the problem's where it is None.
        """
        precision = precision or self.precision
        kind = how, precision == "bf16"
        if kind not in self._steps:
            self._steps[kind] = student_step(self.module, how, bf16=precision == "bf16")
        step = self._steps[kind]
        batches = self.on_device[:steps]
        inputs = (self.theta, self.target, self.images, self.labels, self.lr)
        given = None if draws is None else Drawn(draws, self.device)
        options: dict[str, Any] = {} if how == LOOP else {"select": rows}

        def run() -> Gradients:
            augment = self._augment() if augmented and given is None else given
            return plain_unroll(self.module, *inputs, batches, augment=augment, step=step, **options)[1]

        return run

    def captured(self, steps: int, *, augmented: bool = True, how: Plain, precision: str | None = None) -> Captured:
        """The plain loop in a CUDA graph, with the augmentation of one iteration in it.

        What an iteration draws is a choice of operations, which no graph can make: whoever captures the loop has all
        six computed, or a graph for each. This one has neither, nor fresh images, which is to its advantage.
        """
        need_cuda(self.device)
        draws = self.drawn(steps) if augmented else None
        loop = self.loop(steps, augmented=augmented, how=how, draws=draws, precision=precision)
        return Captured(loop, self.device)

    def ours(
        self, how: Ours, steps: int, *, augmented: bool = True, seed: int | None = None, precision: str | None = None
    ) -> Gradients:
        """By `trajectory_matching_loss`."""
        learned = [tensor.detach().requires_grad_() for tensor in (self.images, self.labels, self.lr)]
        ends = [self.theta, self.target]
        if how.trajectories > 1:
            ends = [end.expand(how.trajectories, -1) for end in ends]
        augment = self._augment() if seed is None else DSA().seeded(seed)
        loss = trajectory_matching_loss(
            self.module,
            *ends,
            *learned,
            batches=self.batches[:steps],
            augment=augment if augmented else None,
            backend=self.backend,
            **(how.options if precision is None else {**how.options, "precision": precision}),
        )
        return torch.autograd.grad(loss.mean(), learned)

    def _augment(self) -> Any:
        self.seed += 1
        return DSA().seeded(self.seed)

    def task(self) -> Task:
        """As our side's engine is asked."""
        return Task(FlatNetwork(self.module), self.device, torch.float32, "exact")

    def drawn(self, steps: int) -> list[DSADraw]:
        """What our side draws from the seed with which runs are compared: on the device, where it draws there."""
        augment, sizes = DSA().seeded(_SEED), [self.case.batch] * steps
        task = self.task()
        own = select(self.backend, task).augmentation(task, augment, sizes=sizes, images=self.images)
        if own is None:
            return [augment.draw(size, (32, 32), step) for step, size in enumerate(sizes)]
        assert isinstance(own, KernelDSA)
        own.begin(own.seed)
        return [_draw_of(lines) for lines in own.table[:, 0]]

    def check(self, how: Ours | Plain) -> float:
        """Relative error of two steps without augmentation, both sides in full float32: the tight one."""
        steps = min(2, self.case.steps)
        with torch_settings("ieee"):
            if isinstance(how, Plain):
                checked = self._checked(how, steps, augmented=False, precision="ieee")
            else:
                precision = "ieee" if self.backend == "triton" else "auto"
                checked = self.ours(how, steps, augmented=False, precision=precision)
            return worst(checked, self.plain(steps, augmented=False, precision="ieee"))

    def _checked(self, how: Plain, steps: int, *, augmented: bool, precision: str) -> Gradients:
        if how.graph:
            found: Gradients = self.captured(steps, augmented=augmented, how=how, precision=precision)()
            return found
        return self.plain(steps, augmented=augmented, how=how, precision=precision)

    def as_timed(self, rival: Rival, how: Ours | Plain) -> AsTimed:
        """The error of `rival` as it is timed: its steps, precision and recordings; against full float32, same draws.

        Raises:
            SystemExit: ours was to be replayed, and was not.
        """
        truth, plain = self._truth(rival.steps)
        what = f"{self.precision}, T={rival.steps}, the same augmentation; worst of images, labels and lr"
        if rival.check is None and plain is not None:
            return AsTimed(plain, None, plain, what)
        with rival.within():
            if isinstance(how, Ours):
                found = replayed(partial(self.ours, how, rival.steps, seed=_SEED), self.backend, self.task())
            elif how.graph:
                found = rival.run()
            else:
                found = self.plain(rival.steps, how=how, draws=self.drawn(rival.steps))
        tolerance = None if rival.check is None else TIMED_TOLERANCE[self.precision]
        return AsTimed(worst(found, truth), tolerance, plain, what)

    def _truth(self, steps: int) -> tuple[Gradients, float | None]:
        """Gradients in full float32, and the error of the plain loop in the precision that is timed."""
        if steps not in self._truths:
            draws = self.drawn(steps)
            # Not in the handler of the exception, which holds the activations of the loop that did not fit.
            self._truths[steps] = self._by_loop(steps, draws) or (self._functional(steps, draws), None)
        return self._truths[steps]

    def _by_loop(self, steps: int, draws: Sequence[DSADraw]) -> tuple[Gradients, float] | None:
        try:
            with torch_settings("ieee"):
                truth = self.plain(steps, draws=draws, precision="ieee")
            with torch_settings(self.precision, benchmark=True):
                return truth, worst(self.plain(steps, draws=draws), truth)
        except torch.OutOfMemoryError:
            return None

    def _functional(self, steps: int, draws: Sequence[DSADraw]) -> Gradients:
        """By torch's operators in constant memory, where the plain loop does not fit."""
        learned = [tensor.detach().requires_grad_() for tensor in (self.images, self.labels, self.lr)]
        ends = (self.theta, self.target)
        options: dict[str, Any] = {"augment": Drawn(draws, self.device), "backend": "autograd"}
        with torch_settings("ieee"):
            loss = trajectory_matching_loss(self.module, *ends, *learned, batches=self.batches[:steps], **options)
            return torch.autograd.grad(loss, learned)


def worst(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest relative error."""
    return max(harness.relative_error(ours, expected) for ours, expected in zip(found, truth, strict=True))


def _draw_of(lines: Tensor) -> DSADraw:
    """A batch's rows `[B, 4]` of a kernel's table."""
    operation = OPERATIONS[int(lines[0, 0])]
    columns = len(value_ranges(operation, 8, 8, torch.device("cpu"))[0])
    return DSADraw(operation, lines[:, 1 : 1 + columns].clone())


def unroll_rivals(problem: Unroll, variant: str) -> dict[Rival, Ours | Plain]:
    """The plain loop and what is timed beside it, with their errors in full float32, or why they are not run.

    Raises:
        SystemExit: ours did not run on the engine that was asked for.
    """
    steps, yardstick = problem.case.steps, YARDSTICKS[problem.precision]
    found: dict[Rival, Ours | Plain] = {plain_rival(problem, yardstick, LOOP, steps): LOOP}
    if variant in VARIANTS:
        ours = VARIANTS[variant]
        rival = Rival(variant, partial(problem.ours, ours, steps), steps=steps, within=partial(_ours, ours))
        with record_backends() as used:
            rival.check = problem.check(ours)
        if set(used) != {problem.backend}:
            raise SystemExit(f"ours ran on {set(used)}")
        found[rival] = ours
    for name in (variant, *([COMPILED] if problem.case.compiled else [])):
        if name in RIVALS:
            rival = plain_rival(problem, name, RIVALS[name], steps)
            found[rival] = RIVALS[name]
            rival.check = None if rival.skipped else problem.check(RIVALS[name])
    return found


def plain_rival(problem: Unroll, name: str, how: Plain, steps: int) -> Rival:
    """One form of the plain loop."""
    within = partial(torch_settings, problem.precision, benchmark=True)
    rival = Rival(name, partial(problem.plain, steps), steps=steps, within=within)
    try:
        if how.graph:
            rival.run = problem.captured(steps, how=how)
        elif how != LOOP:
            rival.run = problem.loop(steps, how=how)
    except NeedsCudaError as error:
        rival.skipped = str(error)
    return rival


def fewer_steps(problem: Unroll, rival: Rival, how: Plain, clean: Callable[[], None]) -> Rival | None:
    """Where a form of the plain loop does not fit into memory, say so in it, and give it with steps that do, if any."""
    steps = rival.steps
    while steps:
        clean()
        try:
            with rival.within():
                plain_rival(problem, rival.name, how, steps).run()
            break
        except torch.OutOfMemoryError:
            steps = steps // 2 if rival.out_of_memory else steps // 4
            rival.out_of_memory = True
    if not rival.out_of_memory or not steps:
        return None
    fewer = plain_rival(problem, f"{rival.name}, fewer steps", how, steps)
    fewer.check = rival.check
    return fewer


@contextmanager
def _ours(how: Ours) -> Iterator[None]:
    """What ours is run in: torch as users have it but for TF32, and graphs or none."""
    with torch_settings(how.precision), environment({} if how.graphs else {"PAD_FAST_GRAPHS": "0"}):
        yield
