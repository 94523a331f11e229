"""Run the suites one after the other, write a JSON file of each, and draw the curves.

    python -m benchmarks                        everything, under 15 minutes on two cores
    python -m benchmarks --quick                every path once, under 2 minutes
    python -m benchmarks --only scoring unroll --out benchmarks/results

A suite whose check fails prints no ratio; the others still run, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.registry import MODULES, suites


def main(argv: Sequence[str] | None = None) -> int:
    """Run them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every path once, on tiny problems")
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES, help="some of the suites")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), metavar="DIR", help="where results go (default: build/bench)"
    )
    options = parser.parse_args(argv)
    failed = []
    known = suites()
    for module in options.only:
        suite, result = known[module], options.out / f"{known[module].name}-cpu.json"
        arguments = suite.quick if options.quick else suite.full
        if arguments is None:
            reason = "has nothing quick" if options.quick else "takes too long, run it by itself"
            print(f"== {suite.name}: left out, it {reason}\n")
            continue
        result.unlink(missing_ok=True)
        print(f"== {suite.name}: {suite.about}", flush=True)
        start = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json", str(result)]
        if subprocess.run(command).returncode != 0:
            failed.append(suite.name)
        print(f"{suite.name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    if "unroll" in options.only and "unroll" not in failed:
        from benchmarks.plots import draw_unroll

        for path in draw_unroll(options.out / "unroll-cpu.json", options.out):
            print(f"written to {path}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
