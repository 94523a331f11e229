"""Processes with a time limit that leave nothing behind, whatever stops them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE = 5
"""Seconds in which a process that is out of time may write down what it has."""
POLL = 0.05


@dataclass
class Part:
    """Outcome of one part of a check.

    Attributes:
        state: "ok", "failed", "timed out", "skipped", or "running" and "stopped" in a check that did not end.
        found: what the part found, for the JSON.
        table: the same for readers, a line each.
    """

    name: str
    state: str
    seconds: float = 0.0
    detail: str = ""
    found: dict[str, Any] = field(default_factory=dict)
    table: list[str] = field(default_factory=list)


@dataclass
class Surroundings:
    """Where processes run, and what is done every now and then while they do."""

    folder: Path
    environment: Mapping[str, str]
    meanwhile: Callable[[], None] = lambda: None

    def start(self, command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command whose whole output is added to `log`."""
        with log.open("a", encoding="utf-8") as output:
            output.write("$ " + " ".join(command)[:300] + "\n")
            output.flush()
            # A session of its own, so that what the command started ends with it.
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, name: str, command: list[str], log: Path, *, seconds: float, **environment: str) -> Part:
        """Run one command.

        When its time is up it is interrupted, so that it can write down what it has, and killed if that does not help.
        """
        begin = time.monotonic()
        process = self.start(command, log, **environment)
        try:
            while process.poll() is None and time.monotonic() < begin + seconds:
                self.meanwhile()
                time.sleep(POLL)
            late = process.poll() is None
            if late:
                interrupt([process])
        finally:
            end([process])
        state, detail = "ok", ""
        if late:
            state, detail = "timed out", f"after {seconds:.0f} s"
        elif process.returncode:
            state, detail = "failed", f"exit status {process.returncode}: {last_line(log)}"
        return Part(name, state, time.monotonic() - begin, detail)


def interrupt(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, and give them :data:`GRACE` for it."""
    late = [process for process in processes if process.poll() is None]
    for process in late:
        process.send_signal(signal.SIGINT)
    limit = time.monotonic() + GRACE
    for process in late:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.0, limit - time.monotonic()))


def end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Kill processes and what they have left behind."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_line(log: Path) -> str:
    """What a program said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if len(lines) > 1 else "no output"
