"""Common parts of the suites: alternating timing, the machine's description, the check before any ratio, the JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_fast.runtime.environment import environment

RESULTS = Path(__file__).parent / "results"
Content = dict[str, Any]
"""A result as its JSON holds it."""

# Seconds before a rival's turn: OpenMP threads of the one before spin for some milliseconds after their last work, and
# would take a core from it.
_SETTLE = 0.05


def load(name: str, folder: Path = RESULTS) -> Content:
    """A kept result."""
    content: Content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """`||actual - expected|| / ||expected||` in double."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


class Worker:
    """One rival in a process of its own.

    Allocator settings, heaps and thread pools of one rival would otherwise change the times of the others. All workers
    stay alive and take turns; whoever is not asked waits for a line and, once settled, uses no processor.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, "--worker", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: str) -> str:
        """Send one line, wait for the one that answers it.

        Raises:
            RuntimeError: the worker died, for example out of memory.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"worker {self._process.args!r} ended with status {self._process.wait()}")
        return answer.strip()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(run: Callable[[], Sequence[Tensor]], *, check: Callable[[], Sequence[Tensor]] | None = None) -> None:
    """Answer a :class:`Worker`'s requests: `save FILE`, `compare FILE` (error of the first result), `time`.

    `check` is what is saved and compared where `run` would take too long for it.
    """
    check = check or run
    for line in sys.stdin:
        request, _, path = line.strip().partition(" ")
        if request == "time":
            start = time.perf_counter()
            run()
            print(time.perf_counter() - start, flush=True)
        elif request == "save":
            torch.save([tensor.detach() for tensor in check()], path)
            print("saved", flush=True)
        else:
            truth = torch.load(path, weights_only=True)
            print(relative_error(check()[0], truth[0]), flush=True)


def alternate(workers: Mapping[str, Worker], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every rival, `rounds` times in turn after one warm-up each, so that drift hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in workers}
    for round_ in range(rounds + 1):
        for name, worker in workers.items():
            time.sleep(_SETTLE)
            seconds = float(worker.ask("time"))
            if round_:
                samples[name].append(seconds)
    return samples


@contextmanager
def ending(workers: Mapping[str, Worker]) -> Iterator[None]:
    """End the workers behind the block, whatever happens in it."""
    try:
        yield
    finally:
        for worker in workers.values():
            worker.close()


def race(
    workers: Mapping[str, Worker], *, rounds: int, check: Callable[[str, float], None], apart: Collection[str] = ()
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Compare every rival's first result with the first rival's, then time them by turns; ends the workers.

    Args:
        check: is given each rival and its error before anything is timed; :func:`require` is what it calls.
        apart: rivals that compute something else, and are only timed.

    Returns:
        Errors, and seconds as :func:`alternate` gives them.
    """
    truth, *others = workers
    errors = {truth: 0.0}
    with ending(workers):
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/result.pt"
            workers[truth].ask(f"save {file}")
            errors |= {name: float(workers[name].ask(f"compare {file}")) for name in others if name not in apart}
        for name, error in errors.items():
            check(name, error)
        return errors, alternate(workers, rounds=rounds)


def times_faster(samples: Mapping[str, Sequence[float]], name: str, rivals: Sequence[str]) -> dict[str, Any]:
    """Ratios against those of `rivals` that took part, pair by pair: a slow moment of the machine hits both."""
    found = {}
    for rival in rivals:
        if rival in samples:
            ratios = [other / own for other, own in zip(samples[rival], samples[name], strict=True)]
            found[f"times_faster_than_{rival}"] = summary(ratios)
    return found


def take_turns(runs: Mapping[str, Callable[[], object]], *, rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """As :func:`alternate`, for rivals that can share a process: seconds of one call, the mean of `calls`."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(_SETTLE)
            start = time.perf_counter()
            for _ in range(calls):
                run()
            if round_:
                samples[name].append((time.perf_counter() - start) / calls)
    return samples


def summary(samples: Sequence[float], *, scale: float = 1.0) -> dict[str, Any]:
    """The `samples` times `scale` with their median, minimum and maximum."""
    scaled = [value * scale for value in samples]
    ends = {"median": statistics.median(scaled), "min": min(scaled), "max": max(scaled), "n": len(scaled)}
    return {**ends, "samples": [float(f"{value:.6g}") for value in scaled]}


def require(error: float, tolerance: float, what: str) -> None:
    """The gate in front of every ratio.

    Raises:
        SystemExit: the check of `what` failed, also by NaN.
    """
    if not error <= tolerance:
        raise SystemExit(f"{what} is off by {error:.1e}; no speed is reported")


def peak_memory(module: str, *arguments: str) -> float:
    """MiB that `module.peak(*arguments)` needs at its peak above what it began with, in a process of its own.

    `peak` prepares its inputs and returns the call that is measured. NaN where the process did not survive it.
    """
    code = (
        "import importlib, sys\n"
        "call = importlib.import_module(sys.argv[1]).peak(*sys.argv[2:])\n"
        "def highest():\n"
        "    with open('/proc/self/status') as f:\n"
        "        return next(int(l.split()[1]) for l in f if l.startswith('VmHWM'))\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # what making the inputs took does not count
        "before = highest()\ncall()\nprint((highest() - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, module, *arguments], capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else float("nan")


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
    kept = ("pad_fast", "python", "torch", "numpy", "cpu", "cpu_instructions", "torch_instructions", "threads")
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


def merged(
    path: Path | None, rows: list[dict[str, Any]], keys: Sequence[str], *, section: str = "rows"
) -> list[dict[str, Any]]:
    """These rows, after those of an earlier piece in the same section of the same file whose `keys` are others."""
    if path is None or not path.exists():
        return rows
    mine = {tuple(row.get(key) for key in keys) for row in rows}
    earlier = json.loads(path.read_text(encoding="utf-8"))[section]
    return [row for row in earlier if tuple(row.get(key) for key in keys) not in mine] + rows


def write(path: Path | None, suite: str, command: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write one result with everything needed to judge it."""
    if path is None:
        return
    content = {"suite": suite, "command": command, "machine": machine(), **more, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def command(module: str, argv: Sequence[str] | None) -> str:
    """The call of `module`, as it can be typed again."""
    given = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "-m", module, *given])


def heading(command: str) -> str:
    """Command and machine on top of a table."""
    return f"$ {command}\n" + ", ".join(f"{key} {value}" for key, value in machine().items())
