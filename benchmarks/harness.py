"""What every suite shares: alternating timing, the machine's description, the check before any ratio, the JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_fast.environment import environment

RESULTS = Path(__file__).parent / "results"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """`||actual - expected|| / ||expected||` in double."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def alternate(rivals: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds per call of every rival, `rounds` times in turn after one warm-up each, so that drift hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    for round_ in range(rounds + 1):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            if round_:
                samples[name].append(time.perf_counter() - start)
    return samples


def summary(samples: list[float], *, scale: float = 1.0) -> dict[str, float]:
    """Median, minimum and maximum of `samples`, times `scale`."""
    scaled = [value * scale for value in samples]
    return {"median": statistics.median(scaled), "min": min(scaled), "max": max(scaled), "n": len(scaled)}


def gemm_peak(*, size: int = 2048, repeats: int = 8) -> float:
    """float32 matrix product rate of torch in GFLOP/s, best of `repeats`: the yardstick for a convolution's rate."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def machine() -> dict[str, Any]:
    """Hardware, versions, threads and commit, as they belong beside every number."""
    kept = ("pad_fast", "python", "torch", "numpy", "cpu", "cpu_instructions", "threads")
    described = {key: value for key, value in environment().items() if key in kept}
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        described["commit"] = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        described["commit"] = "unknown"
    return described


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every suite."""
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after the warm-up (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")


def write(path: Path | None, suite: str, command: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write one result with everything needed to judge it."""
    if path is None:
        return
    content = {"suite": suite, "command": command, "machine": machine(), **more, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def heading(command: str) -> str:
    """Command and machine on top of a table."""
    return f"$ {command}\n" + ", ".join(f"{key} {value}" for key, value in machine().items())
