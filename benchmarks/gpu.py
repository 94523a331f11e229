"""On a GPU: iterations, the matching loss, and training epochs against plain torch; milliseconds and peak memory.

    python -m benchmarks.gpu --json benchmarks/results/gpu.json
    python -m benchmarks.gpu --suites unroll --minutes 3

Every case runs in a process of its own, in which the rivals take turns. Convolutions may use TF32 on both sides. Where
the plain loop runs out of memory its row says so, and it is measured with fewer steps, which gives its time per step.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.gpu_cases import (
    EPOCHS,
    OPTIONAL,
    SUITES,
    TINY,
    TINY_EPOCHS,
    UNROLLS,
    VARIANTS,
    EpochCase,
    Ours,
    UnrollCase,
)
from benchmarks.gpu_results import table, verdict, with_ratios
from benchmarks.rivals import Step, compiled_step, plain_gsam_epoch, plain_sgd_epoch, plain_unroll
from pad_fast import DSA, ConvNet, trajectory_matching_loss
from pad_fast.engines import record_backends, registry
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.matching import normalized_distance
from pad_fast.models import FlatNetwork
from pad_fast.runtime.rng import generator
from pad_fast.training.optimizers import GSAM, SGD
from pad_fast.training.trainer import Trainer, TrainingStreams, in_groups, shuffled_batches

# Of the image gradient after two steps without augmentation in full float32; a wrong one is off by far more.
UNROLL_TOLERANCE = 2e-2
# Of the weights' movement over an epoch.
EPOCH_TOLERANCE = 1e-1
MATCHING_TOLERANCE = 1e-5

_VARIANT = " | "  # between a case's name and a variant's


class Rival:
    """Something that is timed. `check` is its relative error, None for the yardstick itself."""

    def __init__(self, name: str, run: Callable[[], Any], *, steps: int, environment: dict[str, str] | None = None):
        self.name, self.run, self.steps = name, run, steps
        self.environment = environment or {}
        self.check: float | None = None
        self.milliseconds: list[float] = []
        self.peak = 0
        self.out_of_memory = False

    def row(self) -> dict[str, Any]:
        described: dict[str, Any] = {"rival": self.name, "steps": self.steps, "error": self.check}
        if self.out_of_memory:
            return {**described, "status": "out of memory"}
        if not self.milliseconds:
            return {**described, "status": "not run"}
        described["ms"] = harness.summary(self.milliseconds)
        described["ms_per_step"] = described["ms"]["median"] / self.steps
        return {**described, "status": "ok", "peak_mib": self.peak / 2**20}


class Device:
    """Clock and memory of a device."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.cuda = self.device.type == "cuda"

    def time(self, run: Callable[[], Any]) -> float:
        """Milliseconds from the first to the last thing the device does."""
        if not self.cuda:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def clean(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes reserved at most since :meth:`clean`: what graphs hold for themselves is in it."""
        return torch.cuda.max_memory_reserved() if self.cuda else 0

    def reserved(self) -> int:
        return torch.cuda.memory_reserved() if self.cuda else 0


@contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Environment variables for the duration of a block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def recorded() -> int:
    """CUDA graphs that were recorded so far."""
    engine = registry._engines["triton"]
    assert isinstance(engine, TritonEngine)
    return engine.graphs.recorded


def measure(device: Device, rivals: list[Rival], *, rounds: int, seconds: float, warm: int = 3) -> None:
    """Warm up and watch the memory of each alone, then let them take turns, `rounds` times or until time is up.

    Args:
        warm: runs after which everything is compiled and recorded: plainly, recorded, replayed; more where a run has
            work that comes once in it, which is recorded later.
    """
    begin = time.monotonic()
    for rival in rivals:
        device.clean()
        before = device.reserved()
        try:
            with environment(rival.environment):
                for _ in range(warm):
                    device.time(rival.run)
                    if time.monotonic() - begin > seconds:
                        break
        except torch.OutOfMemoryError:
            rival.out_of_memory = True
        rival.peak = device.peak() - before
    device.clean()
    left, before_timing = [rival for rival in rivals if not rival.out_of_memory], recorded()
    for round_ in range(rounds):
        for rival in left:
            with environment(rival.environment):
                try:
                    rival.milliseconds.append(device.time(rival.run))
                except torch.OutOfMemoryError:
                    rival.out_of_memory = True
        if round_ and time.monotonic() - begin > seconds:
            break
    if recorded() != before_timing:
        raise SystemExit("CUDA graphs were recorded while they were timed")


@contextmanager
def full_float32(backend: str) -> Iterator[str]:
    """Both sides without TF32 for the duration of a block; gives our side's precision."""
    settings = torch.backends
    before = settings.cudnn.allow_tf32, settings.cuda.matmul.allow_tf32
    settings.cudnn.allow_tf32 = settings.cuda.matmul.allow_tf32 = False
    try:
        yield "ieee" if backend == "triton" else "auto"
    finally:
        settings.cudnn.allow_tf32, settings.cuda.matmul.allow_tf32 = before


class Unroll:
    """The tensors of a case, and its two sides."""

    def __init__(self, case: UnrollCase, device: Device, backend: str) -> None:
        torch.manual_seed(0)
        self.case, self.device, self.backend = case, device.device, backend
        self.module = ConvNet(width=case.width).to(device.device)
        self.theta = FlatNetwork(self.module).initial()
        self.target = self.theta + 0.01 * torch.randn_like(self.theta)
        self.images = torch.randn(case.batch, 3, 32, 32).to(device.device)
        self.labels = torch.randn(case.batch, 10).to(device.device)
        self.lr = torch.tensor(0.01, device=device.device)
        draws = torch.Generator().manual_seed(1)
        self.batches = [torch.randperm(case.batch, generator=draws) for _ in range(case.steps)]
        self.seed = 0

    def plain(self, steps: int, *, augmented: bool = True, step: Step | None = None) -> tuple[Tensor, ...]:
        batches = [batch.to(self.device) for batch in self.batches[:steps]]
        inputs = (self.theta, self.target, self.images, self.labels, self.lr)
        augment = self._augment() if augmented else None
        return plain_unroll(self.module, *inputs, batches, augment=augment, step=step)[1]

    def ours(self, how: Ours, steps: int, *, augmented: bool = True, **options: Any) -> tuple[Tensor, ...]:
        learned = [tensor.detach().requires_grad_() for tensor in (self.images, self.labels, self.lr)]
        ends = [self.theta, self.target]
        if how.trajectories > 1:
            ends = [end.expand(how.trajectories, -1) for end in ends]
        loss = trajectory_matching_loss(
            self.module,
            *ends,
            *learned,
            batches=self.batches[:steps],
            augment=self._augment() if augmented else None,
            backend=self.backend,
            **{**how.options, **options},
        )
        return torch.autograd.grad(loss.mean(), learned)

    def _augment(self) -> Any:
        self.seed += 1
        return DSA().seeded(self.seed)

    def check(self, how: Ours | Step) -> float:
        """Relative error of the image gradient of two steps, both sides in full float32."""
        with full_float32(self.backend) as precision:
            steps = min(2, self.case.steps)
            if isinstance(how, Ours):
                checked = self.ours(how, steps, augmented=False, precision=precision)[0]
            else:
                checked = self.plain(steps, augmented=False, step=how)[0]
            return harness.relative_error(checked, self.plain(steps, augmented=False)[0])


def run_unroll(
    case: UnrollCase, device: Device, backend: str, *, rounds: int, seconds: float, variant: str = "ours"
) -> list[Rival]:
    """Plain loop and one variant of ours; where the plain loop does not fit, also one with fewer steps."""
    problem = Unroll(case, device, backend)
    rivals = [Rival("plain loop", lambda: problem.plain(case.steps), steps=case.steps)]
    names = (variant,)
    with record_backends() as used:
        errors = {name: problem.check(VARIANTS[name]) for name in names}
    if set(used) != {backend}:
        raise SystemExit(f"ours ran on {set(used)}")
    for name in names:
        how = VARIANTS[name]

        def run(how: Ours = how) -> Any:
            return problem.ours(how, case.steps)

        rival = Rival(name, run, steps=case.steps, environment={} if how.graphs else {"PAD_FAST_GRAPHS": "0"})
        rival.check = errors[name]
        rivals.append(rival)
    if case.compiled:
        step = compiled_step(problem.module)
        rival = Rival("plain loop, torch.compile", partial(problem.plain, case.steps, step=step), steps=case.steps)
        rival.check = problem.check(step)
        rivals.append(rival)
    refuse_wrong(rivals, UNROLL_TOLERANCE)
    device.clean()
    try:
        problem.plain(case.steps)
    except torch.OutOfMemoryError:
        rivals[0].out_of_memory = True
        fewer = case.steps // 4
        while fewer:
            device.clean()
            try:
                problem.plain(fewer)
                rivals.append(Rival("plain loop, fewer steps", partial(problem.plain, fewer), steps=fewer))
                break
            except torch.OutOfMemoryError:
                fewer //= 2
    device.clean()
    measure(device, [rival for rival in rivals if not rival.out_of_memory], rounds=rounds, seconds=seconds)
    return rivals


def run_matching(device: Device, backend: str, *, trajectories: int, dropped: bool, rounds: int) -> list[Rival]:
    """The distance and its three gradients on `[K, P]`, by the formula and by kernels; ten of them a run."""
    torch.manual_seed(0)
    count = 320_010
    start, end, target = (torch.randn(trajectories, count).to(device.device) for _ in range(3))
    grad = torch.linspace(1, 2, trajectories, device=device.device)
    first_kept, smallest = (0, count // 2) if dropped else (count // 2, 0)

    def formula() -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in (end, start, target)]
        distance = normalized_distance(leaves[0], leaves[1], leaves[2], first_kept=first_kept, dropped=smallest)
        return torch.autograd.grad(distance, leaves, grad)

    def kernels() -> tuple[Tensor, ...]:
        from pad_fast.kernels import matching

        vectors = (end, start, target)
        matching.distance(*vectors, first_kept=first_kept, dropped=smallest)
        found = matching.distance_gradients(*vectors, grad, first_kept=first_kept, dropped=smallest)
        return tuple(gradient for gradient in found if gradient is not None)  # by default all three are wanted

    rivals = [Rival("formula", lambda: [formula() for _ in range(10)], steps=10)]
    if backend == "triton":
        rivals.append(Rival("ours", lambda: [kernels() for _ in range(10)], steps=10))
        pairs = zip(kernels(), formula(), strict=True)
        rivals[1].check = max(harness.relative_error(ours, truth) for ours, truth in pairs)
    refuse_wrong(rivals, MATCHING_TOLERANCE)
    measure(device, rivals, rounds=rounds, seconds=5)
    return rivals


class Epochs:
    """Networks of a case with their own weights, batches and augmentation, and the two sides of training them."""

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

    def plain(self) -> Tensor:
        """Change of the weights by plain torch, one network after another."""
        moved = []
        for number, (network, start) in enumerate(zip(self.networks, self.starts, strict=True)):
            module, draws = network.load(start).train(), generator(0, "bench", number)
            augment = partial(self.dsa, generator=draws)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
            for _ in range(self.case.epochs):
                batches = shuffled_batches(self.everything, self.batch, draws)
                if self.case.expert:
                    plain_gsam_epoch(module, self.images, self.targets, batches, augment, lr=0.01, rho=0.01, alpha=0.3)
                else:
                    plain_sgd_epoch(module, self.images, self.targets.softmax(-1), batches, augment, optimizer)
            moved.append(network.initial() - start)
        return torch.stack(moved)

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


def run_epochs(case: EpochCase, device: Device, backend: str, *, rounds: int) -> list[Rival]:
    """Epochs of GSAM on hard labels (experts) or of SGD with momentum on soft ones (evaluation), with DSA."""
    problem = Epochs(case, device, backend)
    sizes = {"ours": 1} if case.networks == 1 else {"ours, one by one": 1, "ours, together": case.networks}
    rivals = [Rival("plain torch", problem.plain, steps=problem.steps)]
    with full_float32(backend) as precision, record_backends() as used:
        truth = problem.plain()  # both sides draw the same
        for name, together in sizes.items():
            rivals.append(Rival(name, partial(problem.ours, together), steps=problem.steps))
            rivals[-1].check = harness.relative_error(problem.ours(together, precision), truth)
    if set(used) != {backend}:
        raise SystemExit(f"ours ran on {set(used)}")
    refuse_wrong(rivals, EPOCH_TOLERANCE)
    measure(device, rivals, rounds=rounds, seconds=10, warm=6)
    return rivals


def refuse_wrong(rivals: list[Rival], tolerance: float) -> None:
    """No speed of anything that computes something else."""
    for rival in rivals:
        if rival.check is not None:
            harness.require(rival.check, tolerance, rival.name)


def cases(suites: list[str], *, tiny: bool) -> list[tuple[str, str]]:
    """(suite, case) in the order in which they run; behind a case's name the variant of ours, where it has several.

    Each has a process of its own: more variants in one would drop each other's recordings while they take turns.
    """
    unrolls = TINY if tiny else UNROLLS
    named = {
        "unroll": [
            *unrolls,
            *(f"{name}{_VARIANT}{variant}" for name, case in unrolls.items() for variant in case.more),
        ],
        "matching": [f"{kind} mask, K={k}" for kind in ("depth", "loss") for k in ((1,) if tiny else (1, 8))],
        "epochs": list(EPOCHS),
    }
    return [(suite, case) for suite in suites for case in named[suite]]


def run_case(suite: str, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one case in this process."""
    variant = ""
    device = Device(options.device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    if suite == "unroll":
        name, _, variant = name.partition(_VARIANT)
        case = (TINY if options.tiny else UNROLLS)[name]
        if variant:
            case = replace(case, compiled=False)  # timed beside "ours"
        if options.compile:
            run_once(case, device, options.backend)
            return []
        rivals = run_unroll(
            case,
            device,
            options.backend,
            rounds=options.rounds,
            seconds=options.case_seconds,
            variant=variant or "ours",
        )
        described = {"batch": case.batch}
    elif suite == "matching":
        trajectories = int(name.rpartition("=")[2])
        rivals = run_matching(
            device,
            options.backend,
            trajectories=trajectories,
            dropped=name.startswith("loss"),
            rounds=options.rounds,
        )
        described = {"batch": trajectories}
    else:
        epochs = (TINY_EPOCHS if options.tiny else EPOCHS)[name]
        if options.compile:
            for together in {1, epochs.networks}:
                Epochs(epochs, device, options.backend).ours(together)
            return []
        rivals = run_epochs(epochs, device, options.backend, rounds=options.rounds)
        described = {"batch": epochs.images, "networks": epochs.networks}
    rows = with_ratios([{"suite": suite, "case": name, **described, **rival.row()} for rival in rivals])
    # The yardstick of a variant is the one of its own process, and shown where "ours" is.
    return [row for row in rows if row["rival"].startswith("ours")] if variant else rows


def compile_kernels(arguments: list[str], named: list[tuple[str, str]], seconds: float) -> None:
    """Some steps of ours of every case side by side, so that Triton's cache on disk has what the cases will run.

    Compiling takes processor cores and minutes; one case at a time it would be done with one core, and be timed out.
    """
    processes = []
    for suite, name in named:
        command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--compile", "--worker", suite, name]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    limit = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(timeout=max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_once(case: UnrollCase, device: Device, backend: str) -> None:
    """Everything of ours once, on two steps: what must be compiled is compiled then."""
    problem = Unroll(case, device, backend)
    for name in ("ours", *case.more):
        for augmented in (False, True):
            problem.ours(VARIANTS[name], min(2, case.steps), augmented=augmented)
        problem.check(VARIANTS[name])
    if case.compiled:
        step = compiled_step(problem.module)
        problem.check(step)
        problem.plain(min(2, case.steps), step=step)


def in_process(suite: str, name: str, arguments: list[str], seconds: float) -> list[dict[str, Any]]:
    """Run one case in a process of its own; what goes wrong becomes a row."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--worker", suite, name]
    failed = {"suite": suite, "case": name, "rival": "-", "steps": 0}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return [{**failed, "status": "failed", "reason": f"took longer than {seconds:.0f} s"}]
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        return [{**failed, "status": "failed", "reason": lines[-1]}]
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where (default: cuda)")
    parser.add_argument("--backend", default="triton", help="our side's engine (default: triton)")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), help="which (default: all)")
    parser.add_argument("--minutes", type=float, default=5.0, help="start no case after this long (default: 5)")
    parser.add_argument("--case-seconds", type=float, default=15.0, help="stop repeating a case then (default: 15)")
    parser.add_argument("--variants", choices=("with", "without", "alone"), default="with", help="variants of ours")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the program itself")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=2, metavar=("SUITE", "CASE"), help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_case(options.worker[0], options.worker[1], options)))
        return
    arguments = ["--device", options.device, "--backend", options.backend, "--rounds", str(options.rounds)]
    arguments += ["--case-seconds", str(options.case_seconds), *(["--tiny"] if options.tiny else [])]
    command = "python -m benchmarks.gpu " + " ".join(arguments)
    if options.device == "cuda" and torch.cuda.is_available():
        print(torch.cuda.get_device_name())
    print(harness.heading(command) + "\n", flush=True)
    begin, rows = time.monotonic(), []
    named = [
        (suite, name)
        for suite, name in cases(options.suites, tiny=options.tiny)
        if options.variants == "with" or (_VARIANT in name) == (options.variants == "alone")
    ]
    if options.backend == "triton":
        compiled = sorted({(suite, name.partition(_VARIANT)[0]) for suite, name in named if suite != "matching"})
        compile_kernels(arguments, compiled, 15 * options.minutes)
    for suite, name in named:
        left = 60 * options.minutes - (time.monotonic() - begin)
        if left < 5:
            rows.append(
                {"suite": suite, "case": name, "rival": "-", "steps": 0, "status": "failed", "reason": "no time"}
            )
        else:
            rows += in_process(suite, name, arguments, min(left, 5 * options.case_seconds))
        write(options.json, command, rows)  # what is there survives whoever stops this program
    print(table(rows))
    if options.suites[0] == "unroll" and options.variants != "alone" and not options.tiny:
        print("\n" + verdict(rows))
    if any(row["status"] in ("failed", "not run") and row["case"] not in OPTIONAL for row in rows):
        raise SystemExit("some cases failed")


def write(path: Path | None, command: str, rows: list[dict[str, Any]]) -> None:
    """JSON with everything needed to judge it."""
    if path is None:
        return
    gpu = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {"name": properties.name, "memory_gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    content = {"suite": "gpu", "command": command, "machine": harness.machine(), "gpu": gpu, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
