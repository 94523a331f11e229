"""Rows of metrics.jsonl, one per iteration."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, TextIO

from ..errors import StoreError
from ..runtime import files

METRICS = "metrics.jsonl"
LAYER_LOSS = "layer_loss."
"""Begins the keys of a row of metrics.jsonl that hold the matching loss of one layer; its name follows."""


class MetricsLog:
    """`metrics.jsonl`: one row per iteration. Opening it cuts rows the checkpoint does not know about.

    Without a path, rows are only added to the history.
    """

    def __init__(self, path: Path | None, history: list[dict[str, float]]) -> None:
        self.path, self.history = path, history
        self._file: TextIO | None = None

    def __enter__(self) -> MetricsLog:
        if self.path is not None:
            files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.history))
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return self

    def append(self, row: dict[str, float]) -> None:
        """Add one row."""
        self.history.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Make the rows so far durable: a checkpoint must never be ahead of its log."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path, notes: list[str]) -> tuple[dict[str, float], ...]:
    """The whole rows of a log: as far as it goes, of a run that may be writing it, or was killed while it did.

    A last line without an end is a row being written, which is nothing to speak of; a damaged one ends the rows.

    Args:
        notes: gets to know what could not be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return ()
    except OSError as error:
        notes.append(f"cannot read {path.name}: {error.strerror or error}")
        return ()
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append({str(key): _number(value) for key, value in json.loads(line).items()})
        except (ValueError, TypeError, AttributeError):
            notes.append(f"{path.name}: line {number} is damaged; it and what follows are not shown")
            break
    return tuple(rows)


def read_history(path: Path, iterations: int) -> list[dict[str, float]]:
    """The first `iterations` rows of a log, for a run that goes on after them.

    Raises:
        StoreError: fewer complete rows than the checkpoint says there were.
    """
    rows = read_metrics(path, [])
    if len(rows) < iterations:
        raise StoreError(
            f"{path} has {len(rows)} rows, but the checkpoint was taken after {iterations} iterations; "
            "begin anew with overwrite=True (--overwrite)"
        )
    return list(rows[:iterations])


def _number(value: Any) -> float:
    """A number as it was written, so that a log that is continued keeps its bytes; null is NaN."""
    if isinstance(value, int | float):
        return value
    return math.nan if value is None else float(value)
