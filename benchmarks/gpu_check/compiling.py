"""The compile stage: how many kernels the stages need, how many Triton's cache has, and as many more as time allows.

    python -m benchmarks.gpu_check.compiling --stages smoke,headline --capability 90 --seconds 60

Needs no GPU; the cache is Triton's own, in `TRITON_CACHE_DIR`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import variants
from benchmarks.gpu_check.results import write_json
from benchmarks.gpu_check.variants import Variant

_CARD = "import torch; print(10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1])"
_wanted: list[Variant] = []


def compile_one(number: int) -> tuple[int, float, str]:
    """(which, seconds, what went wrong)."""
    begin = time.perf_counter()
    try:
        _wanted[number].compile()
    except Exception as error:  # whatever Triton raises, the other kernels are still worth compiling
        return number, time.perf_counter() - begin, f"{type(error).__name__}: {error}"[:500]
    return number, time.perf_counter() - begin, ""


def compile_all(found: dict[str, Any], *, jobs: int, limit: float, file: Path | None) -> None:
    """Compile :data:`_wanted` in that many processes until `limit`, and count in `found`."""
    seconds: list[float] = []
    told = False
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        outcomes = pool.imap_unordered(compile_one, range(len(_wanted)))
        while len(seconds) < len(_wanted):
            try:
                number, took, problem = outcomes.next(timeout=max(0.0, limit - time.monotonic()))
            except (multiprocessing.TimeoutError, KeyboardInterrupt):  # of time that is up
                break
            seconds.append(took)
            found["compiled"] += not problem
            found["left"] -= 1
            found["seconds_per_variant"] = round(statistics.mean(seconds), 3)
            if problem:
                found["failed"].append(f"{_wanted[number].name}: {problem}")
            if file is not None:
                write_json(file, found)
            if not told and len(seconds) >= 2 * jobs:
                told = True
                fits = int((limit - time.monotonic()) * jobs / statistics.mean(seconds))
                print(
                    f"{statistics.mean(seconds):.2f} s a variant on {jobs} cores: of the other {found['left']}, "
                    f"{min(fits, found['left'])} fit into the {limit - time.monotonic():.0f} s that are left",
                    flush=True,
                )


def table(found: dict[str, Any]) -> list[str]:
    """What was found, for readers."""
    each = ", ".join(f"{name} {count}" for name, count in found["stages"].items())
    taken = found["seconds_per_variant"]
    rate = "" if taken is None else f"{taken} s each on {found['jobs']} cores, "
    lines = [f"sm_{found['capability']}, variants by stage: {each}; {found['variants']} different ones"]
    lines.append(
        f"{found['cached']} were compiled already, {found['compiled']} are now, {found['left']} are left; "
        f"{rate}{found['collecting']} s to find them"
    )
    return [*lines, *(f"FAILED {problem}" for problem in found["failed"])]


def main() -> int:
    """Find, say, compile; exit status 1 where a kernel does not compile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", required=True, help=f"of {', '.join(variants.STAGES)}")
    parser.add_argument("--capability", type=int, help="for which card, as 90 (default: the one that is there)")
    parser.add_argument("--seconds", type=float, default=60.0, help="stop then (default: 60)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)")
    parser.add_argument("--tiny", action="store_true", help="of small networks, to try the program itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there, while it comes")
    options = parser.parse_args()
    begin = time.monotonic()
    capability = options.capability
    if capability is None:  # asked elsewhere: a process that has used a card must not fork
        capability = int(subprocess.run([sys.executable, "-c", _CARD], capture_output=True, check=True).stdout)
    torch.set_num_threads(1)
    stages = [name for name in options.stages.split(",") if name in variants.STAGES]
    by_stage, needed = dict[str, int](), dict[str, Variant]()
    for name in stages:
        of_stage = variants.of_stage(name, capability, tiny=options.tiny)
        by_stage[name] = len(of_stage)
        needed |= of_stage
        print(f"{name}: {len(of_stage)} variants", flush=True)
    _wanted[:] = [variant for variant in needed.values() if not variant.cached()]
    found: dict[str, Any] = {"capability": capability, "stages": by_stage, "variants": len(needed)}
    found |= {"cached": len(needed) - len(_wanted), "compiled": 0, "left": len(_wanted), "failed": []}
    found |= {"seconds_per_variant": None, "jobs": options.jobs, "collecting": round(time.monotonic() - begin, 1)}
    print(f"{found['variants']} different ones, {found['cached']} are in the cache", flush=True)
    compile_all(found, jobs=options.jobs, limit=begin + options.seconds, file=options.json)
    if options.json is not None:
        write_json(options.json, found)
    print("\n".join(table(found)))
    return bool(found["failed"])


if __name__ == "__main__":
    raise SystemExit(main())
