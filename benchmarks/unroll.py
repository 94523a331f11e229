"""One gradient of the matching loss: milliseconds per student step (forward and reverse), and peak memory.

python -m benchmarks.unroll --device cpu
python -m benchmarks.unroll --batches 10 100 --rounds 7 --json benchmarks/results/unroll-cpu.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.rivals import keep_freed_memory, plain_unroll
from pad_fast import ConvNet, trajectory_matching_loss
from pad_fast.engines import record_backends

# Where float32 gradients of a short unroll may differ between correct implementations (a ReLU input near zero
# switches); a wrong one is off by far more.
TOLERANCE = 2e-2


class Case:
    """One problem: ConvNet D3 W128, 32 px, 10 classes, float32, T steps on the whole synthetic set."""

    def __init__(self, batch: int, steps: int) -> None:
        torch.manual_seed(0)
        self.module = ConvNet()
        self.batches = [torch.arange(batch)] * steps
        self.theta = torch.cat([p.detach().flatten() for p in self.module.parameters()])
        self.target = self.theta + 0.01 * torch.randn_like(self.theta)
        self.images, self.labels = torch.randn(batch, 3, 32, 32), torch.randn(batch, 10)
        self.lr = torch.tensor(0.01)

    def plain(self, tuned: bool) -> tuple[Tensor, ...]:
        inputs = (self.theta, self.target, self.images, self.labels, self.lr)
        return plain_unroll(self.module, *inputs, self.batches, tuned=tuned)[1]

    def ours(self, **options: Any) -> tuple[Tensor, ...]:
        learned = [tensor.detach().requires_grad_() for tensor in (self.images, self.labels, self.lr)]
        loss = trajectory_matching_loss(self.module, self.theta, self.target, *learned, batches=self.batches, **options)
        return torch.autograd.grad(loss, learned)


RIVALS: dict[str, Callable[[Case], tuple[Tensor, ...]]] = {
    "plain loop": lambda case: case.plain(False),
    "plain loop, tuned": lambda case: case.plain(True),
    "functional": lambda case: case.ours(backend="autograd"),
    "cpu high, recompute": lambda case: case.ours(backend="cpu", precision="high"),
    "cpu high, cached": lambda case: case.ours(backend="cpu", precision="high", cache="auto"),
    "cpu fast, recompute": lambda case: case.ours(backend="cpu", precision="fast"),
    "cpu fast, cached": lambda case: case.ours(backend="cpu", precision="fast", cache="auto"),
    "TESLA (approximate)": lambda case: case.ours(backend="cpu", gradient="tesla"),
}


def steps_for(batch: int) -> int:
    """T: long enough for the loop, short enough for the plain one's memory."""
    return 5 if batch <= 100 else 3


def time_batch(batch: int, rounds: int) -> list[dict[str, Any]]:
    """Check and time every rival at one batch size."""
    steps = steps_for(batch)
    workers = {name: harness.Worker("benchmarks.unroll", name, str(batch), str(steps)) for name in RIVALS}
    try:
        with tempfile.TemporaryDirectory() as folder:
            truth = f"{folder}/gradients.pt"
            workers["plain loop"].ask(f"save {truth}")
            errors = {name: float(worker.ask(f"compare {truth}")) for name, worker in workers.items()}
        for name, error in errors.items():
            if not error <= TOLERANCE and "TESLA" not in name:
                raise SystemExit(f"{name}: image gradient is off by {error:.1e}; no speed is reported")
        samples = harness.alternate(workers, rounds=rounds)
    finally:
        for worker in workers.values():
            worker.close()
    rows = []
    for name, seconds in samples.items():
        row: dict[str, Any] = {"rival": name, "batch": batch, "steps": steps, "error": errors[name]}
        row["ms_per_step"] = harness.summary(seconds, scale=1e3 / steps)
        # Pair by pair, so that a slow moment of the machine hits both.
        for against in ("plain loop", "plain loop, tuned"):
            ratios = [other / own for other, own in zip(samples[against], seconds, strict=True)]
            row[f"times_faster_than_{against}"] = harness.summary(ratios)
        rows.append(row)
    return rows


def work(name: str, batch: int, steps: int) -> None:
    """Be the worker of one rival."""
    if name == "plain loop, tuned":
        keep_freed_memory()
    case = Case(batch, steps)
    with record_backends() as used:
        RIVALS[name](case)
    if name.startswith("cpu") and used != ["cpu"]:
        raise SystemExit(f"{name} ran on {used}")
    harness.serve(lambda: RIVALS[name](case))


def peak_memory(rival: str, batch: int, steps: int) -> float:
    """Peak of one gradient above imports and inputs, in MiB, measured in a process of its own."""
    code = (
        "import sys\nfrom benchmarks.unroll import RIVALS, Case\n"
        "def peak():\n"
        "    with open('/proc/self/status') as f:\n"
        "        return next(int(l.split()[1]) for l in f if l.startswith('VmHWM'))\n"
        "from benchmarks.rivals import keep_freed_memory\n"
        "if sys.argv[1] == 'plain loop, tuned':\n    keep_freed_memory()\n"
        "case = Case(int(sys.argv[2]), int(sys.argv[3]))\nbefore = peak()\nRIVALS[sys.argv[1]](case)\n"
        "print((peak() - before) / 1024)\n"
    )
    command = [sys.executable, "-c", code, rival, str(batch), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else float("nan")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="where (default: cpu)")
    parser.add_argument("--batches", type=int, nargs="+", default=[10, 100, 256], help="batch sizes")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory table out")
    parser.add_argument("--worker", nargs=3, metavar=("RIVAL", "BATCH", "T"), help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], int(options.worker[1]), int(options.worker[2]))
        return
    command = "python -m benchmarks.unroll " + " ".join(sys.argv[1:])
    print(harness.heading(command))
    peak = harness.gemm_peak()
    print(f"torch.mm float32 peak {peak:.0f} GFLOP/s\n")
    rows: list[dict[str, Any]] = []
    print(f"{'rival':<22}{'batch':>6}{'ms per step':>13}{'min..max':>18}{'x plain':>9}{'x tuned':>9}{'error':>10}")
    for batch in options.batches:
        for row in time_batch(batch, options.rounds):
            rows.append(row)
            time, plain = row["ms_per_step"], row["times_faster_than_plain loop"]
            tuned = row["times_faster_than_plain loop, tuned"]
            print(
                f"{row['rival']:<22}{batch:>6}{time['median']:>13.2f}{time['min']:>9.2f}..{time['max']:<7.2f}"
                f"{plain['median']:>9.2f}{tuned['median']:>9.2f}{row['error']:>10.1e}"
            )
    memory: list[dict[str, Any]] = []
    if not options.no_memory:
        print(f"\n{'rival':<22}{'batch':>6}{'T':>5}{'peak MiB above the import':>28}")
        cases = [(name, 100, 5) for name in ("plain loop", "plain loop, tuned", "functional", "cpu high, recompute")]
        cases += [("cpu high, recompute", 100, 80), ("functional", 10, 10), ("functional", 10, 80)]
        cases += [("cpu high, recompute", 10, 10), ("cpu high, recompute", 10, 80)]
        for name, batch, steps in cases:
            mebibytes = peak_memory(name, batch, steps)
            memory.append({"rival": name, "batch": batch, "steps": steps, "peak_mib": mebibytes})
            print(f"{name:<22}{batch:>6}{steps:>5}{mebibytes:>28.0f}")
    harness.write(options.json, "unroll", command, rows, memory=memory, gemm_peak_gflops=peak)


if __name__ == "__main__":
    main()
