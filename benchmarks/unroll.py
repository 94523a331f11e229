"""One gradient of the matching loss: milliseconds per student step (forward and reverse), and peak memory.

python -m benchmarks.unroll
python -m benchmarks.unroll --points 10:5 100:5 256:3 --memory --rounds 7 --json benchmarks/results/unroll-cpu.json
python -m benchmarks.unroll --points --memory 10:5,10,20,40,80 --rivals "plain loop" "cpu high, recompute"

Problems run one by one add their rows to the same JSON file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.registry import Suite
from benchmarks.rivals import installed, keep_freed_memory, library_unroll, plain_unroll
from pad_fast import ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import record_backends
from pad_fast.engines.base import Task
from pad_fast.engines.cpu import CpuEngine
from pad_fast.models import FlatNetwork

POINTS = ("10:5,20,80", "100:5")
MEMORY = ("10:5,10,20,40,80", "100:5,10,20")

SUITE = Suite(
    name="unroll",
    about="one gradient of the matching loss",
    quick=("--points", "2:2", "--memory", "2:2,4", "--masks", "none", "--rounds", "1")
    + ("--rivals", "plain loop", "cpu high, recompute"),
    full=("--points", "10:5,80", "100:5", "--memory", "10:5,20,80", "100:5,20", "--rounds", "2")
    + ("--rivals", "plain loop", "plain loop, tuned", "torchopt", "higher", "functional", "cpu high, recompute")
    + ("TESLA (approximate)",),
)

# Where float32 gradients of a short unroll may differ between correct implementations (a ReLU input near zero
# switches); a wrong one is off by far more.
TOLERANCE = 2e-2
# Steps on which rivals are compared before they are timed. A switched ReLU grows from step to step: over many steps any
# two float32 implementations part.
_CHECKED = 5
# Timed with more steps than this: only those rivals whose growth with T is the question.
_SHORT = 20
LONG = ("plain loop", "cpu high, recompute", "TESLA (approximate)")
# Of the memory table, and of the pictures.
WEIGHED = (
    "plain loop",
    "plain loop, tuned",
    "torchopt",
    "higher",
    "functional",
    "cpu high, recompute",
    "TESLA (approximate)",
)


class Case:
    """One problem: ConvNet D3 W128, 32 px, 10 classes, float32, T steps on the whole synthetic set."""

    def __init__(self, batch: int, steps: int, mask: str = "none") -> None:
        torch.manual_seed(0)
        self.module = ConvNet()
        self.batches = [torch.arange(batch)] * steps
        self.theta = torch.cat([p.detach().flatten() for p in self.module.parameters()])
        self.target = self.theta + 0.01 * torch.randn_like(self.theta)
        self.images, self.labels = torch.randn(batch, 3, 32, 32), torch.randn(batch, 10)
        self.lr = torch.tensor(0.01)
        kind, _, amount = mask.partition(":")
        self.mask = ParameterMask(kind, float(amount or 0))

    def plain(self, tuned: bool) -> tuple[Tensor, ...]:
        inputs = (self.theta, self.target, self.images, self.labels, self.lr)
        return plain_unroll(self.module, *inputs, self.batches, tuned=tuned, mask=self.mask)[1]

    def library(self, name: str) -> tuple[Tensor, ...]:
        inputs = (self.theta, self.target, self.images, self.labels, self.lr)
        return library_unroll(name, self.module, *inputs, self.batches, mask=self.mask)[1]

    def ours(self, **options: Any) -> tuple[Tensor, ...]:
        learned = [tensor.detach().requires_grad_() for tensor in (self.images, self.labels, self.lr)]
        loss = trajectory_matching_loss(
            self.module, self.theta, self.target, *learned, batches=self.batches, mask=self.mask, **options
        )
        return torch.autograd.grad(loss, learned)


RIVALS: dict[str, Callable[[Case], tuple[Tensor, ...]]] = {
    "plain loop": lambda case: case.plain(False),
    "plain loop, tuned": lambda case: case.plain(True),
    "torchopt": lambda case: case.library("torchopt"),
    "higher": lambda case: case.library("higher"),
    "functional": lambda case: case.ours(backend="autograd"),
    "cpu high, recompute": lambda case: case.ours(backend="cpu", precision="high"),
    "cpu high, cached": lambda case: case.ours(backend="cpu", precision="high", cache="auto"),
    "cpu highest, recompute": lambda case: case.ours(backend="cpu", precision="highest"),
    "cpu highest, cached": lambda case: case.ours(backend="cpu", precision="highest", cache="auto"),
    "TESLA (approximate)": lambda case: case.ours(backend="cpu", gradient="tesla"),
}


# Passes of products through the convolutions that a student step and its adjoint take, by what is kept between them
# (docs/cpu_engine.md, section 2).
PASSES = {"recompute": 11, "cached": 9}


def products_ms(rival: str, batch: int, rate: float) -> float:
    """Milliseconds a step could not be below, had it nothing but its products to do, at `rate` GFLOP/s."""
    precision, kept = rival.removeprefix("cpu ").split(", ")
    task = Task(FlatNetwork(ConvNet()), torch.device("cpu"), torch.float32, precision=precision)
    products = CpuEngine().plan(task, batch).native.products()
    return 2e3 * PASSES[kept] * products * batch / (rate * 1e9)


def points(texts: Sequence[str]) -> list[tuple[int, int]]:
    """`10:5,80` as (10, 5), (10, 80): batch and number of steps."""
    found = []
    for text in texts:
        batch, _, steps = text.partition(":")
        found += [(int(batch), int(count)) for count in steps.split(",")]
    return found


def time_point(
    batch: int, steps: int, mask: str, rounds: int, rivals: Sequence[str], rate: float
) -> list[dict[str, Any]]:
    """Check and time rivals on one problem, on a machine that multiplies matrices at `rate` GFLOP/s."""
    if steps > _SHORT:
        rivals = [name for name in rivals if name in LONG]
    # The plain loop goes first: it is what the others are compared with.
    names = ["plain loop", *(name for name in rivals if name != "plain loop")]
    arguments = (str(batch), str(steps), mask)
    workers = {name: harness.Worker("benchmarks.unroll", name, *arguments) for name in names}

    def check(name: str, error: float) -> None:
        if "TESLA" not in name:
            harness.require(error, TOLERANCE, f"{name}: image gradient")

    errors, samples = harness.race(workers, rounds=rounds, check=check)
    rows = []
    for name, seconds in samples.items():
        row: dict[str, Any] = {"rival": name, "batch": batch, "steps": steps, "mask": mask, "error": errors[name]}
        row["ms_per_step"] = harness.summary(seconds, scale=1e3 / steps)
        row |= harness.times_faster(samples, name, ("plain loop", "plain loop, tuned"))
        if name.startswith("cpu"):
            row["products_ms_per_step"] = products_ms(name, batch, rate)
        rows.append(row)
    return rows


def work(name: str, batch: int, steps: int, mask: str) -> None:
    """Be the worker of one rival: compared on the first steps, timed on all."""
    if name == "plain loop, tuned":
        keep_freed_memory()
    short, case = Case(batch, min(steps, _CHECKED), mask), Case(batch, steps, mask)

    def checked() -> tuple[Tensor, ...]:
        with record_backends() as used:
            gradients = RIVALS[name](short)
        if name.startswith("cpu") and used != ["cpu"]:
            raise SystemExit(f"{name} ran on {used}")
        return gradients

    harness.serve(lambda: RIVALS[name](case), check=checked)


def peak(rival: str, batch: str, steps: str) -> Callable[[], object]:
    """One gradient, ready to be measured by :func:`harness.peak_memory`."""
    if rival == "plain loop, tuned":
        keep_freed_memory()
    case = Case(int(batch), int(steps))
    return lambda: RIVALS[rival](case)


def weigh(batch: int, steps: int, rivals: Sequence[str]) -> list[dict[str, Any]]:
    """Peak memory of rivals at one point."""
    return [
        {
            "rival": name,
            "batch": batch,
            "steps": steps,
            "peak_mib": harness.peak_memory("benchmarks.unroll", name, str(batch), str(steps)),
        }
        for name in rivals
        if name in WEIGHED
    ]


def growth(memory: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """MiB that one more step costs each rival at each batch size: the slope between its fewest and its most steps."""
    rows = []
    for batch, rival in dict.fromkeys((row["batch"], row["rival"]) for row in memory):
        curve = sorted((r["steps"], r["peak_mib"]) for r in memory if (r["batch"], r["rival"]) == (batch, rival))
        (first, low), (last, high) = curve[0], curve[-1]
        if last > first:
            slope = (high - low) / (last - first)
            rows.append({"rival": rival, "batch": batch, "from": first, "to": last, "mib_per_step": slope})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    problem = "BATCH:T[,T...]"
    parser.add_argument("--points", nargs="*", default=POINTS, metavar=problem, help="problems that are timed")
    parser.add_argument("--memory", nargs="*", default=MEMORY, metavar=problem, help="problems that are weighed")
    parser.add_argument(
        "--masks",
        nargs="+",
        default=["none", "depth:0.5", "loss:0.5"],
        metavar="MASK",
        help="masks of the matching loss; those after the first are timed on the first problem only",
    )
    parser.add_argument("--rivals", nargs="+", choices=list(RIVALS), default=list(RIVALS), metavar="NAME")
    parser.add_argument("--worker", nargs=4, metavar=("RIVAL", "BATCH", "T", "MASK"), help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args(argv)
    if options.worker:
        rival, batch, steps, mask = options.worker
        work(rival, int(batch), int(steps), mask)
        return
    command = harness.command("benchmarks.unroll", argv)
    print(harness.heading(command))
    rate = harness.gemm_peak()
    print(f"torch.mm float32 peak {rate:.0f} GFLOP/s\n")
    rows: list[dict[str, Any]] = []
    problems = [(*point, options.masks[0]) for point in points(options.points)]
    problems += [(*problems[0][:2], mask) for mask in options.masks[1:] if problems]
    print(
        f"{'rival':<22}{'batch':>6}{'T':>5} {'mask':<10}{'ms per step':>12}{'min..max':>18}{'x plain':>9}{'x tuned':>9}"
        f"{'error':>10}{'products ms':>13}"
    )
    rivals = [name for name in options.rivals if installed(name)]
    for name in options.rivals:
        if name not in rivals:
            print(f"{name:<22}not installed")
    for batch, steps, mask in problems:
        for row in time_point(batch, steps, mask, options.rounds, rivals, rate):
            rows.append(row)
            time = row["ms_per_step"]
            ratios = (row.get(f"times_faster_than_{name}") for name in ("plain loop", "plain loop, tuned"))
            plain, tuned = (f"{ratio['median']:>9.2f}" if ratio else " " * 9 for ratio in ratios)
            print(
                f"{row['rival']:<22}{batch:>6}{steps:>5} {mask:<10}{time['median']:>12.2f}"
                f"{time['min']:>9.2f}..{time['max']:<7.2f}{plain}{tuned}{row['error']:>10.1e}"
                + (f"{row['products_ms_per_step']:>13.2f}" if "products_ms_per_step" in row else ""),
                flush=True,
            )
        keep(options.json, command, rows=rows)
    memory: list[dict[str, Any]] = []
    if options.memory:
        print(f"\n{'rival':<22}{'batch':>6}{'T':>5}{'peak MiB above the import':>28}")
    for batch, steps in points(options.memory):
        for row in weigh(batch, steps, rivals):
            memory.append(row)
            print(f"{row['rival']:<22}{batch:>6}{steps:>5}{row['peak_mib']:>28.0f}", flush=True)
    grown = growth(memory)
    if grown:
        vector = 4 * sum(p.numel() for p in ConvNet().parameters()) / 2**20
        print(f"\nMiB that one more step costs (a parameter vector is {vector:.2f} MiB)")
        for row in grown:
            print(f"{row['rival']:<22}{row['batch']:>6}{row['mib_per_step']:>12.2f}   T {row['from']}..{row['to']}")
    keep(options.json, command, memory=memory)


def keep(
    path: Path | None,
    command: str,
    *,
    rows: Sequence[dict[str, Any]] = (),
    memory: Sequence[dict[str, Any]] = (),
) -> None:
    """Add to the result, after every problem: a run that is stopped keeps what it has."""
    sections = {}
    for section, new, keys in (("rows", rows, ("batch", "steps", "mask")), ("memory", memory, ("batch", "steps"))):
        together = harness.merged(path, [{**row, "command": command} for row in new], keys, section=section)
        sections[section] = sorted(
            together, key=lambda row: (row["batch"], row["steps"], row.get("mask", "none") != "none")
        )
    grown = growth(sections["memory"])
    harness.write(path, "unroll", "python -m benchmarks.unroll", **sections, growth=grown)


if __name__ == "__main__":
    main()
