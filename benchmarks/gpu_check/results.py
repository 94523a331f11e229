"""The folder of a check's results, complete at any moment.

It holds four files, because some machines hand no more than a few back: `summary.txt`, `gpu-check.json` (what
happened), `gpu.json` (the numbers, as `benchmarks.gpu` writes them) and `gpu-check.tar.gz` (all logs and single
results). They are written after each part and every few seconds while one runs, each of them whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.processes import Part

ARCHIVE, SUMMARY, REPORT, NUMBERS = "gpu-check.tar.gz", "summary.txt", "gpu-check.json", "gpu.json"
REFRESH = 5.0
"""Seconds between two writings while a part runs."""


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Not :func:`pad_fast.runtime.files.write_bytes`, which needs a Python that can import torch.
    """
    part = _part_of(path)
    part.write_bytes(content)
    os.replace(part, path)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def write_json(path: Path, value: Any) -> None:
    """Indented JSON through :func:`replace`."""
    replace(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A single result; empty where there is none, or one that was being written when its process was killed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Results:
    """What is known so far.

    Args:
        out: the folder of the four files.
        logs: a folder of this check alone, for logs and the JSON files of single parts.
        described: goes to the head of `gpu-check.json`.
    """

    def __init__(self, out: Path, logs: Path, described: dict[str, Any]) -> None:
        self.out, self.logs, self.described = out, logs, described
        self.parts: list[Part] = []
        self._running: tuple[str, float] | None = None
        self._written = float("-inf")
        out.mkdir(parents=True, exist_ok=True)
        logs.mkdir(parents=True, exist_ok=True)
        for name in (ARCHIVE, SUMMARY, REPORT, NUMBERS):
            _part_of(out / name).unlink(missing_ok=True)  # of a process that was killed

    def begin(self, name: str) -> None:
        """A part runs from now on."""
        self._running = name, time.monotonic()
        self.write()

    def note(self, part: Part) -> None:
        """A part has ended: keep it, and say so."""
        self._running = None
        self.parts.append(part)
        self.write()
        print("\n".join([line_of(part), *part.table]), flush=True)

    def stopped(self, reason: str) -> None:
        """The check ends here, in the middle of a part or between two."""
        name, begun = self._running or ("check", time.monotonic())
        self.note(Part(name, "stopped", time.monotonic() - begun, reason))

    def refresh(self) -> None:
        """:meth:`write`, unless that was a moment ago."""
        if time.monotonic() > self._written + REFRESH:
            self.write()

    def write(self) -> None:
        """Write the four files."""
        self._written = time.monotonic()
        parts = [*self.parts]
        if self._running is not None:
            name, begun = self._running
            parts.append(Part(name, "running", time.monotonic() - begun))
        write_json(self.out / REPORT, {**self.described, "parts": [asdict(part) for part in parts]})
        write_json(self.out / NUMBERS, self.numbers())
        replace(self.out / SUMMARY, summarise(parts).encode())
        replace(self.out / ARCHIVE, self._archive())

    def numbers(self) -> dict[str, Any]:
        """Single results by name; rows of `benchmarks.gpu` together, in the form in which that writes them."""
        single = {path.stem: read_json(path) for path in sorted(self.logs.glob("*.json"))}
        benchmarks = {name: found for name, found in single.items() if found.get("suite") == "gpu"}
        heads = [{key: found.get(key) for key in ("machine", "gpu")} for found in benchmarks.values()]
        return {
            "suite": "gpu",
            "command": " ".join(["python -m benchmarks.gpu_check", *self.described.get("arguments", [])]),
            **(heads[0] if heads else {}),
            "rows": [{"stage": name, **row} for name, found in benchmarks.items() for row in found.get("rows", [])],
            **{name: found for name, found in single.items() if name not in benchmarks},
        }

    def _archive(self) -> bytes:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for path in sorted(self.logs.rglob("*")):
                if path.is_file() and not path.name.endswith(".part"):
                    data = path.read_bytes()  # at once: somebody may be writing
                    described = tarfile.TarInfo(f"gpu-check/{path.relative_to(self.logs)}")
                    described.size, described.mtime = len(data), int(path.stat().st_mtime)
                    archive.addfile(described, io.BytesIO(data))
        return content.getvalue()


def line_of(part: Part) -> str:
    """Name, state, seconds and detail."""
    return f"{part.name:<14}{part.state:<11}{part.seconds:>6.0f} s  {part.detail}".rstrip()


def summarise(parts: list[Part]) -> str:
    """All parts in a line each, then their tables."""
    lines = [line_of(part) for part in parts]
    for part in parts:
        if part.table:
            lines += ["", f"{part.name}:", *part.table]
    return "\n".join(lines) + "\n"
