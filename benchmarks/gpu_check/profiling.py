"""The profile stage: time and rates of every kernel of a gradient beside the least that its launches must do.

    python -m benchmarks.gpu_check.profiling --device cuda --json profile.json

Times are torch's profiler's over one replayed gradient. Bytes and operations are those that the launches state
themselves, counted while the gradient runs plainly; without a GPU nothing is run or timed, and they are still counted.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cases import UNROLLS, VARIANTS
from benchmarks.gpu_check.results import write_json
from benchmarks.gpu_timing import Device, environment
from benchmarks.gpu_unroll import Unroll
from pad_fast.engines import register
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.kernels import launch
from pad_fast.kernels.aot import BANDWIDTH, RATES

STEPS = 16
"""Of each gradient: a step costs what it costs, however many there are. With 16, kernels are those of 80 steps."""
CASES = ("CIFAR-10 IPC 10", "CIFAR-10 IPC 1", "CIFAR-10 IPC 1000")
_METRICS = "gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed"
_METRICS += ",sm__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active"


def problem_of(name: str, device: Device, *, steps: int = STEPS) -> Unroll:
    """A headline case of few steps."""
    return Unroll(replace(UNROLLS[name], steps=steps), device, "triton")


def gradient(problem: Unroll) -> None:
    """One, as users run it."""
    problem.ours(VARIANTS["ours"], problem.case.steps)


def counted(problem: Unroll) -> dict[str, dict[str, float]]:
    """Launches, bytes and operations by kernel, and the seconds that they take at the data sheet's rates."""
    found: dict[str, dict[str, float]] = defaultdict(
        lambda: dict.fromkeys(("launches", "bytes", "flops", "floor"), 0.0)
    )
    on_card = problem.device.type == "cuda"
    with environment({"PAD_FAST_GRAPHS": "0"}), launch.counting() if on_card else launch.dry_run() as count:
        gradient(problem)
    for name, cost in count.launches:
        row = found[name]
        row["launches"] += 1
        row["bytes"] += cost.bytes
        row["flops"] += cost.flops
        row["floor"] += max(cost.bytes / BANDWIDTH, cost.flops / RATES["tf32"])
    return dict(found)


def timed(problem: Unroll) -> dict[str, tuple[int, float]]:
    """(launches, seconds) by kernel of one gradient that is replayed."""
    for _ in range(3):  # plainly, recorded, replayed
        gradient(problem)
    torch.cuda.synchronize()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        gradient(problem)
        torch.cuda.synchronize()
    return {
        event.key: (event.count, event.self_device_time_total / 1e6)
        for event in profiled.key_averages()
        if event.self_device_time_total > 0
    }


def joined(costs: dict[str, dict[str, float]], times: dict[str, tuple[int, float]]) -> list[dict[str, Any]]:
    """A row for each kernel, the slowest first; those of torch and of cuDNN have times alone."""
    rows = []
    for name in [*costs, *(name for name in times if name not in costs)]:
        row: dict[str, Any] = {"kernel": name, **costs.get(name, {})}
        if name in times:
            ran, seconds = times[name]
            row |= {"launched": ran, "seconds": seconds, "us_per_launch": 1e6 * seconds / ran}
            if name in costs:
                row |= {"tflops": row["flops"] / seconds / 1e12, "gbs": row["bytes"] / seconds / 1e9}
                row["times_floor"] = seconds / row["floor"] if row["floor"] else None
        rows.append(row)
    return sorted(rows, key=lambda row: (-row.get("seconds", 0.0), -row.get("floor", 0.0)))


def table(case: str, rows: list[dict[str, Any]]) -> list[str]:
    """Aligned text."""
    total, floor = (sum(row.get(key, 0.0) for row in rows) for key in ("seconds", "floor"))
    took = f"{1e3 * total:.2f} ms in kernels" if total else "not timed"
    head = f"{case}, {STEPS} steps: {took}, floor {1e3 * floor:.2f} ms"
    lines = [
        head,
        f"{'kernel':<44}{'launches':>9}{'us each':>9}{'TFLOP/s':>9}{'GB/s':>7}{'floor us':>10}{'x floor':>9}",
    ]
    for row in rows:
        count = row.get("launched", row.get("launches", 0))
        each = row["floor"] / row["launches"] * 1e6 if row.get("launches") else None
        cells = [(row.get("us_per_launch"), 9, 2), (row.get("tflops"), 9, 1), (row.get("gbs"), 7, 0)]
        cells += [(each, 10, 3), (row.get("times_floor"), 9, 1)]
        text = "".join(f"{'-' if value is None else f'{value:.{digits}f}':>{width}}" for value, width, digits in cells)
        lines.append(f"{row['kernel'][:43]:<44}{count:>9.0f}{text}")
    return lines


def by_ncu(kernels: list[str], seconds: float) -> list[str]:
    """What Nsight Compute says of a launch of each; why not, where it says nothing."""
    tool = shutil.which("ncu")
    if tool is None:
        return ["ncu is not installed"]
    lines: list[str] = []
    limit = time.monotonic() + seconds
    for name in kernels:
        command = [tool, "--csv", "--metrics", _METRICS, "--kernel-name", name, "--launch-count", "1", sys.executable]
        command += ["-m", "benchmarks.gpu_check.profiling", "--plain"]
        try:
            left = max(1.0, limit - time.monotonic())
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            return [*lines, f"ncu: no time for {name}"]
        said = [line for line in done.stdout.splitlines() if line.startswith('"')] or done.stdout.strip().splitlines()
        lines += [f"ncu, {name}:", *(said if done.returncode == 0 else (said or done.stderr.splitlines())[-3:])]
    return lines


def main() -> None:
    """Count, time, print; what is known is written after each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where (default: cuda)")
    parser.add_argument("--seconds", type=float, default=40.0, help="begin nothing more then (default: 40)")
    parser.add_argument("--plain", action="store_true", help="only run one gradient, kernel by kernel, for ncu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    begin, device = time.monotonic(), Device(options.device)
    if options.plain:
        with environment({"PAD_FAST_GRAPHS": "0"}):
            gradient(problem_of(CASES[0], device, steps=1))
        return
    if not device.cuda:
        register(TritonEngine(Operations()))  # on any device, as nothing is run
    found: dict[str, Any] = {"device": options.device, "cases": {}}
    for name in CASES:
        if time.monotonic() > begin + options.seconds / 2:
            print(f"{name}: no time")
            continue
        problem = problem_of(name, device)
        if device.cuda:
            gradient(problem)  # compiles, and measures which convolutions are faster
        rows = joined(counted(problem), timed(problem) if device.cuda else {})
        found["cases"][name] = rows
        print("\n".join(table(name, rows)), flush=True)
        if options.json is not None:
            write_json(options.json, found)
        del problem
        device.clean()
    if not device.cuda:
        print("no GPU: counted, not timed")
        return
    slowest = [row["kernel"] for row in found["cases"].get(CASES[0], []) if "tflops" in row][:3]
    found["ncu"] = by_ncu(slowest, options.seconds - (time.monotonic() - begin) - 1)
    print("\n".join(found["ncu"]))
    if options.json is not None:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
