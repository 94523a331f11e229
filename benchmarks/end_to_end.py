"""From raw data to a distilled set: seconds of every stage and the accuracy it reaches, on the scikit-learn digits.

    python -m benchmarks.end_to_end
    python -m benchmarks.end_to_end --backends cpu autograd --json benchmarks/results/end_to_end-cpu.json

"autograd" runs the same stages in torch alone: networks are trained by autograd, and the gradient comes from the
constant-memory engine for any network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pad_fast
from benchmarks import harness
from benchmarks.registry import Suite
from pad_fast.runs.timing import read_timing
from pad_fast.runtime.progress import Progress

# Every stage once, and an accuracy that is still above chance.
_SMALL: dict[str, Any] = {"num_experts": 2, "score_networks": 1, "iterations": 30}
_SMALL |= {"eval_networks": 1, "eval_epochs": 200, "eval_full_epochs": 2}

SUITE = Suite(
    name="end_to_end",
    about="digits, from raw data to an evaluated distilled set",
    quick=("--small", "--backends", "cpu"),
    full=("--backends", "cpu"),
)

# Per cent; chance is 10. What distils nothing gets no time reported.
LEAST = 30.0


def run(backend: str, ipc: int, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Distil once; what it took and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = pad_fast.distill(
            "digits", ipc=ipc, out=folder, backend=backend, seed=seed, progress=Progress(quiet=True), **settings
        )
        seconds = time.perf_counter() - start
        costs = read_timing(Path(folder)).stages
    stages = {name: {"seconds": cost.seconds, "peak_mib": cost.peak_mib} for name, cost in costs.items()}
    accuracy = {row.name: {"mean": row.mean, "std": row.std} for row in result.evaluation}
    if not accuracy["PAD"]["mean"] >= LEAST:
        raise SystemExit(f"{backend}: the distilled set reaches {accuracy['PAD']['mean']:.1f}%; no speed is reported")
    return {"rival": backend, "ipc": ipc, "seed": seed, "seconds": seconds, "stages": stages, "accuracy": accuracy}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["cpu"], help="engines, one run each (default: cpu)")
    parser.add_argument("--ipc", type=int, default=1, help="images per class (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")
    parser.add_argument("--small", action="store_true", help="few iterations, experts and epochs: a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args(argv)
    command = harness.command("benchmarks.end_to_end", argv)
    print(harness.heading(command) + "\n")
    rows = []
    for backend in options.backends:
        row = run(backend, options.ipc, options.seed, _SMALL if options.small else {})
        rows.append(row)
        stages = ", ".join(f"{name} {cost['seconds']:.1f}" for name, cost in row["stages"].items())
        reached = ", ".join(f"{name} {a['mean']:.1f} +- {a['std']:.1f}" for name, a in row["accuracy"].items())
        print(f"{backend:<10} {row['seconds']:.1f} s ({stages}); accuracy in %: {reached}", flush=True)
    harness.write(options.json, "end_to_end", command, rows)


if __name__ == "__main__":
    main()
