"""The tests that need a GPU: their list, how they are dealt out to processes, and what became of them.

Most of their time goes into compiling kernels, on processor cores. Each process has its own share, and a test that
hangs or takes its process down with it costs only itself: what is left of the share goes on in a new process.
"""

from __future__ import annotations

import collections
import heapq
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import processes
from benchmarks.gpu_check.processes import Part, Surroundings

LIST = Path(__file__).with_name("tests.json")
ENGINE_TESTS = "tests/engines/gpu"
EVENTS, SECONDS = "GPU_CHECK_EVENTS", "GPU_CHECK_SECONDS"
"""Environment variables of :mod:`benchmarks.gpu_check.each_test`."""
WORKERS = 12
PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-v",
    "-p",
    "no:cacheprovider",
    "--no-summary",
    "--tb=short",
    "-o",
    "addopts=",
]
COUNTED = ("passed", "failed", "error", "skipped", "died")
"""States of a test; one that "died" hung for too long, took its process down, or was stopped with it."""
_UNKNOWN = 8  # kernel variants of a test whose file has none that were counted


def listed(path: Path = LIST) -> dict[str, int | None]:
    """Names of the `gpu` tests in the order of their files, the engine's first, with the kernel variants of each."""
    files: dict[str, dict[str, int | None]] = json.loads(path.read_text(encoding="utf-8"))
    order = sorted(files, key=lambda name: not name.startswith(ENGINE_TESTS))
    return {f"{file}::{test}": count for file in order for test, count in files[file].items()}


def as_files(tests: dict[str, int | None]) -> dict[str, dict[str, int | None]]:
    """The other way round: what :data:`LIST` holds."""
    files: dict[str, dict[str, int | None]] = {}
    for name, count in sorted(tests.items()):
        file, _, test = name.partition("::")
        files.setdefault(file, {})[test] = count
    return files


def collect(*, folder: Path, environment: dict[str, str]) -> list[str]:
    """The names of the `gpu` tests as pytest finds them, which takes half a minute."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-o", "addopts=", "tests"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "::" in line and " " not in line.partition("[")[0]]


def deal(tests: dict[str, int | None], count: int) -> list[list[str]]:
    """Shares with about equally many kernel variants each; within a share, tests keep their order."""
    of_file: dict[str, list[int]] = collections.defaultdict(list)
    for name, variants in tests.items():
        if variants is not None:
            of_file[name.partition("::")[0]].append(variants)

    def weight(name: str) -> float:
        known = tests[name]
        alike = of_file.get(name.partition("::")[0], [_UNKNOWN])
        return 1 + (sum(alike) / len(alike) if known is None else known)

    shares: list[list[str]] = [[] for _ in range(count)]
    loads = [(0.0, number) for number in range(count)]
    for name in sorted(tests, key=weight, reverse=True):
        load, number = heapq.heappop(loads)
        shares[number].append(name)
        heapq.heappush(loads, (load + weight(name), number))
    order = {name: index for index, name in enumerate(tests)}
    return [sorted(share, key=order.__getitem__) for share in shares if share]


def forecast(tests: dict[str, int | None], seconds: float, given: float) -> str:
    """Whether compiling them fits, at so many seconds a variant; those that several tests share are compiled once."""
    count, workers = sum(known or 0 for known in tests.values()), min(WORKERS, os.cpu_count() or 1)
    needed = f"{count * seconds / workers:.0f} s on {workers} cores"
    return f"tests: at most {count} variants, {needed}; they have {given:.0f} s"


@dataclass
class Worker:
    """One share, and the processes that were at it; the last of them may still be."""

    left: list[str]
    log: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return bool(self.started) and self.started[-1].poll() is None

    def go_on(self, where: Surroundings, limit: float) -> bool:
        """See to it that a process is at what is left; whether there is one."""
        if self.running:
            return True
        before = len(self.left)
        self.read()
        # One that ended without having begun a test would do so again.
        if not self.left or (self.started and len(self.left) == before):
            return False
        command = [*PYTEST, "-p", "benchmarks.gpu_check.each_test", *self.left]
        given = {EVENTS: str(self._events), SECONDS: str(limit)}
        self.started.append(where.start(command, self.log, **given))
        return True

    @property
    def _events(self) -> Path:
        return self.log.with_suffix(".events")

    def read(self) -> None:
        """Take what processes wrote; a test that was begun and never ended died with its process."""
        began: list[str] = []
        for line in _lines(self._events):
            event = json.loads(line)
            if event["state"] == "started":
                began.append(event["test"])
            else:
                self.found[event["test"]] = event
        for name in began:
            self.found.setdefault(name, {"test": name, "state": "died"})
        self.left = [name for name in self.left if name not in self.found]


def _lines(path: Path) -> list[str]:
    """Whole lines; the last one of a killed process may not be."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def run_tests(
    name: str, tests: dict[str, int | None], logs: Path, where: Surroundings, *, seconds: float, limit: float
) -> Part:
    """Run tests dealt out to several processes, and add up what became of them.

    Args:
        limit: seconds of one test.
    """
    begin = time.monotonic()
    count = max(1, min(WORKERS, os.cpu_count() or 1, len(tests)))
    workers = [Worker(share, logs / f"{name}-{number}.log") for number, share in enumerate(deal(tests, count))]
    try:
        while any([worker.go_on(where, limit) for worker in workers]) and time.monotonic() < begin + seconds:
            where.meanwhile()
            time.sleep(processes.POLL)
        late = any(worker.running for worker in workers)
        processes.interrupt(process for worker in workers for process in worker.started)
    finally:
        processes.end(process for worker in workers for process in worker.started)
    for worker in workers:
        worker.read()
    return _judged(name, tests, workers, time.monotonic() - begin, late=seconds if late else None)


def _judged(
    name: str, tests: dict[str, int | None], workers: Sequence[Worker], seconds: float, *, late: float | None
) -> Part:
    found = {test: event for worker in workers for test, event in worker.found.items()}
    counts = collections.Counter(event["state"] for event in found.values())
    ran = sum(counts[state] for state in ("passed", "failed", "error", "skipped"))
    bad = [
        f"{test.partition('::')[2]}: {event.get('message') or 'its process ended with it, see the log'}"
        for test, event in found.items()
        if event["state"] in ("failed", "error", "died")
    ]
    part = Part(name, "ok", seconds)
    part.found = {"asked for": len(tests), **{state: counts[state] for state in COUNTED}, "bad": bad}
    part.found["said"] = [line for event in found.values() for line in event.get("said", [])]
    part.found["seconds"] = {test: event["seconds"] for test, event in found.items() if "seconds" in event}
    part.table = [", ".join(f"{counts[state]} {state}" for state in COUNTED) + f" of {len(tests)} asked for", *bad]
    part.table += part.found["said"]
    if bad:
        part.state, part.detail = "failed", f"{len(bad)} tests"
    if late is not None:
        part.state, part.detail = "timed out", f"after {late:.0f} s"
    if part.state == "ok" and ran == counts["skipped"]:
        part.state, part.detail = "failed", "every test was skipped: is there a GPU?"
    if part.state == "ok" and ran < len(tests):
        part.state, part.detail = "failed", f"only {ran} of {len(tests)} tests ran"
    return part
