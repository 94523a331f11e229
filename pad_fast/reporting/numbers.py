"""Numbers as report and comparison show them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..evaluation import AccuracyRow
from ..settings.choices import TRAJECTORY_METHODS

History = Sequence[Mapping[str, float]]


def own_rows(rows: Sequence[AccuracyRow], settings: Mapping[str, object]) -> list[AccuracyRow]:
    """The rows of a run's own images: all called after its method, "PAD" or "PAD, best" and "PAD, last"."""
    method = str(settings.get("method", "")).upper()
    return [row for row in rows if row.name == method or row.name.startswith(f"{method}, ")]


def of_another(row: AccuracyRow, other: AccuracyRow) -> str:
    """The accuracy of one in percent of the other's; with a standard deviation where both have one.

    The two are of different networks, so the relative deviations of a ratio add as squares.

    Example:
        >>> of_another(AccuracyRow("PAD", "MLP", (48.0, 52.0)), AccuracyRow("full data", "MLP", (98.0, 102.0)))
        '50.0 ± 3.2'
    """
    ratio = 100 * row.mean / other.mean
    return _with_deviation(f"{ratio:.1f}", ratio * math.hypot(row.std / row.mean, other.std / other.mean), row, other)


def points_above(row: AccuracyRow, other: AccuracyRow) -> str:
    """How many percentage points one is above the other; with a standard deviation where both have one."""
    return _with_deviation(f"{row.mean - other.mean:+.1f}", math.hypot(row.std, other.std), row, other)


def _with_deviation(words: str, deviation: float, *rows: AccuracyRow) -> str:
    return f"{words} ± {deviation:.1f}" if min(row.networks for row in rows) > 1 else words


def loss_label(settings: Mapping[str, object]) -> str:
    """Name of the quantity that the matching loss of a run's method measures."""
    method = str(settings.get("method"))
    known = TRAJECTORIES if method in TRAJECTORY_METHODS else "matching loss"
    return LOSSES.get(method, known)


def duration(seconds: float) -> str:
    """Seconds as a reader says them.

    Example:
        >>> duration(0.614), duration(80.2), duration(7500)
        ('0.6 s', '1 min 20 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def late_median(values: Sequence[float]) -> float:
    """Median of the last tenth, at least one value: what a noisy curve ends at."""
    return median(values[-max(1, len(values) // 10) :])


def column(history: History, key: str) -> tuple[list[float], list[float]]:
    """Iterations and values of the rows that have a finite one."""
    found = [
        (iteration_of(row, n), float(row[key]))
        for n, row in enumerate(history)
        if math.isfinite(row.get(key, math.nan))
    ]
    return [x for x, _ in found], [y for _, y in found]


def iteration_of(row: Mapping[str, float], position: int) -> float:
    """The iteration a row says it is of, else its position."""
    return float(row.get("iteration", position))


TRAJECTORIES = "distance to the expert, relative to the start"

LOSSES = {
    "dc": "distance between the gradients of real and synthetic images",
    "dsa": "distance between the gradients of real and synthetic images",
    "dm": "distance between the mean features of real and synthetic images",
}


def images_per_class(settings: Mapping[str, Any]) -> str:
    """Synthetic images per class, "1 to 5" where some classes have numbers of their own.

    Example:
        >>> images_per_class({"ipc": 1}), images_per_class({"ipc": 1, "ipc_per_class": '{"cat": 5, "dog": 2}'})
        ('1', '1 to 5')
    """
    ipc, own = settings.get("ipc", "?"), settings.get("ipc_per_class")
    if own is None:
        return f"{ipc:,}" if isinstance(ipc, int) else str(ipc)
    numbers = [ipc, *json.loads(own).values()]
    return f"{min(numbers):,} to {max(numbers):,}"
