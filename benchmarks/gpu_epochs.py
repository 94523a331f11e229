"""Training in `benchmarks.gpu`: networks of a case with their own weights, batches and augmentation, and both sides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.gpu_cases import LOOP, RIVALS, TIMED_EPOCH_TOLERANCE, EpochCase, Plain
from benchmarks.gpu_rivals import CapturedStep, need_cuda
from benchmarks.gpu_timing import AsTimed, Device, NeedsCudaError, Rival, recorded, torch_settings, triton_engine
from benchmarks.rivals import TrainingStep, gsam_step, laid_out, plain_epoch, sgd_step
from pad_fast import DSA, ConvNet
from pad_fast.engines import Task, record_backends
from pad_fast.models import FlatNetwork
from pad_fast.runtime.rng import generator
from pad_fast.training.optimizers import GSAM, SGD
from pad_fast.training.trainer import Trainer, TrainingStreams, in_groups, shuffled_batches

Training = Callable[[], Tensor]
"""Gives the change of all networks' weights, `[K, P]`."""


class Epochs:
    """Networks of a case, and the two sides of training them. Both sides draw the same."""

    def __init__(self, case: EpochCase, device: Device, backend: str) -> None:
        torch.manual_seed(0)
        self.case, self.device, self.backend = case, device.device, backend
        modules = [ConvNet(width=case.width).to(device.device) for _ in range(case.networks)]
        self.networks = [FlatNetwork(module) for module in modules]
        self.starts = [network.initial() for network in self.networks]
        self.images = torch.randn(case.images, 3, 32, 32).to(device.device)
        labels = (torch.arange(case.images) % 10).to(device.device)
        self.targets = labels if case.expert else torch.nn.functional.one_hot(labels, 10).float() * 4
        self.everything = torch.arange(case.images, device=device.device)
        self.batch = 256 if case.expert else 128
        self.dsa = DSA()

    @property
    def steps(self) -> int:
        """Batches of all networks and epochs."""
        return self.case.networks * self.case.epochs * -(-self.case.images // self.batch)

    def plain(self, how: Plain = LOOP) -> Training:
        """By plain torch, one network after another.

        Raises:
            NeedsCudaError: steps are to be captured, on another device.
        """
        layout = torch.channels_last if how.channels_last else torch.contiguous_format
        network = FlatNetwork(laid_out(copy.deepcopy(self.networks[0].module), layout).train())
        parameters = list(network.module.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
        # Zero momentum is what the first step begins with, and there before a capture looks for it.
        momenta = [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, momentum in zip(parameters, momenta, strict=True):
            optimizer.state[parameter]["momentum_buffer"] = momentum
        step: TrainingStep
        if self.case.expert:
            step = gsam_step(network.module, lr=0.01, rho=0.01, alpha=0.3)
        else:
            step = sgd_step(network.module, optimizer)
        if how.graph:
            step = CapturedStep(step, [*parameters, *momenta], self.device)
        targets = self.targets if self.case.expert else self.targets.softmax(-1)

        def augment(images: Tensor, draws: torch.Generator) -> Tensor:
            return self.dsa(images, generator=draws).contiguous(memory_format=layout)

        def train() -> Tensor:
            moved = []
            for number, start in enumerate(self.starts):
                network.load(start)
                torch._foreach_zero_(momenta)
                draws = generator(0, "bench", number)
                for _ in range(self.case.epochs):
                    batches = shuffled_batches(self.everything, self.batch, draws)
                    plain_epoch(step, self.images, targets, batches, partial(augment, draws=draws))
                moved.append(network.initial() - start)
            return torch.stack(moved)

        return train

    def ours(self, together: int, precision: str = "auto") -> Tensor:
        """The same by an engine, so many networks at a time."""
        moved = []
        for numbers in in_groups(range(self.case.networks), together):
            networks = [FlatNetwork(self.networks[number].load(self.starts[number])) for number in numbers]
            trainer = Trainer(networks, device=self.device, backend=self.backend, precision=precision)
            streams = TrainingStreams(trainer, [generator(0, "bench", number) for number in numbers], self.dsa)
            optimizer = (
                GSAM(0.01, rho=0.01, alpha=0.3) if self.case.expert else SGD(0.01, momentum=0.9, weight_decay=5e-4)
            )
            for _ in range(self.case.epochs):
                batches = streams.batches(self.everything, self.batch)
                trainer.epoch(self.images, self.targets, batches, optimizer, streams.augment)
            moved.append(trainer.theta.view(len(numbers), -1) - torch.stack([self.starts[n] for n in numbers]))
        return torch.cat(moved)


def epoch_rivals(problem: Epochs, variant: str) -> tuple[list[Rival], Tensor]:
    """Plain torch and what is timed beside it, with their errors in full float32; and what they are compared with.

    Args:
        variant: "ours", alone and together, or one of :data:`RIVALS`.

    Raises:
        SystemExit: ours did not run on the engine that was asked for.
    """
    tf32 = partial(torch_settings, "tf32", benchmark=True)
    rivals = [Rival("plain torch", problem.plain(), steps=problem.steps, within=tf32)]
    with torch_settings("ieee"):
        truth = problem.plain()()
        if variant in RIVALS:
            how = RIVALS[variant]
            rival = Rival(variant, lambda: None, steps=problem.steps, within=tf32)
            try:
                if how.graph:
                    need_cuda(problem.device)
                # Captured anew for what is timed: a graph keeps the arithmetic that was asked for at the time.
                rival.run, exact = problem.plain(how), problem.plain(how)
                rival.check = harness.relative_error(exact(), truth)
            except NeedsCudaError as error:
                rival.skipped = str(error)
            return [*rivals, rival], truth
        networks, precision = problem.case.networks, "ieee" if problem.backend == "triton" else "auto"
        sizes = {"ours": 1} if networks == 1 else {"ours, one by one": 1, "ours, together": networks}
        with record_backends() as used:
            for name, together in sizes.items():
                run, within = partial(problem.ours, together), partial(torch_settings, "tf32")
                rivals.append(Rival(name, run, steps=problem.steps, within=within))
                rivals[-1].check = harness.relative_error(problem.ours(together, precision), truth)
    if set(used) != {problem.backend}:
        raise SystemExit(f"ours ran on {set(used)}")
    return rivals, truth


def epochs_as_timed(problem: Epochs, rivals: list[Rival], truth: Tensor) -> None:
    """Errors of what was timed, as it was timed.

    Raises:
        SystemExit: ours was to be replayed, and was not.
    """
    plain: float | None = None
    before = recorded()
    for rival in rivals:
        if not rival.milliseconds:
            continue
        with rival.within():
            error = harness.relative_error(rival.run(), truth)
        if rival.check is None:
            plain = error
        tolerance = None if rival.check is None else TIMED_EPOCH_TOLERANCE
        what = "tf32, the same batches and augmentation; change of the weights"
        rival.timed = AsTimed(error, tolerance, plain, what)
    ours = any(rival.name.startswith("ours") for rival in rivals)
    task = Task(problem.networks[0], problem.device, torch.float32)
    if ours and problem.backend == "triton" and triton_engine()._records(task):
        functions = triton_engine().graphs._functions.values()
        if recorded() != before or any(known.refused for known in functions) or not any(k.free for k in functions):
            raise SystemExit("the steps that were checked are no replays of the recordings that were timed")
