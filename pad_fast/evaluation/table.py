"""The table an evaluation ends in."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from ..errors import InputError
from ..runtime import files


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); the latter is 0 for a single value. Of NaN, NaN."""
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return mean, math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else 0.0


def numbers(values: Iterable[float | str]) -> tuple[float, ...]:
    """At least one number.

    Raises:
        TypeError, ValueError: something else.
    """
    found = tuple(float(value) for value in values)
    if not found:
        raise ValueError("no values")
    return found


@dataclass(frozen=True)
class AccuracyRow:
    """Test accuracy in percent of networks trained on one set.

    Attributes:
        name: what was trained on.
        model: network.
        accuracies: one value per network, each taken once, at the end of training.
    """

    name: str
    model: str
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over networks, percent."""
        return mean_std(self.accuracies)[0]

    @property
    def std(self) -> float:
        """Standard deviation over networks (n - 1), percentage points; 0 for one network."""
        return mean_std(self.accuracies)[1]

    @property
    def networks(self) -> int:
        """Number of networks."""
        return len(self.accuracies)


@dataclass(frozen=True)
class RobustScore:
    """A score of DD-Ranking (arXiv 2505.13300), computed from our rows; see docs/evaluation.md.

    Attributes:
        name: "LRS" (label-robust) or "ARS" (augmentation-robust).
        trained_on: the distilled set.
        model: network.
        values: one per network index, each in [0, 1] where the accuracies allow no more.
    """

    name: str
    trained_on: str
    model: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over networks."""
        return mean_std(self.values)[0]

    @property
    def std(self) -> float:
        """Standard deviation over networks (n - 1); 0 for one network."""
        return mean_std(self.values)[1]


@dataclass(frozen=True)
class EvaluationReport:
    """Rows of the final table, and the scores computed from them.

    Attributes:
        rows, scores: as they are shown.
        key: names everything the rows depend on, so that a run knows its own; empty where nobody asks.
    """

    rows: tuple[AccuracyRow, ...]
    scores: tuple[RobustScore, ...] = ()
    key: str = ""

    def __repr__(self) -> str:
        return self.table()

    def row(self, name: str, model: str | None = None) -> AccuracyRow:
        """The first row of that name (and model).

        Raises:
            InputError: no such row.
        """
        for row in self.rows:
            if row.name == name and model in (None, row.model):
                return row
        raise InputError(f"no row {name!r}; there are {', '.join(sorted({row.name for row in self.rows}))}")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON."""
        files.write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> EvaluationReport:
        """Read a file of :meth:`write`; from older versions also a list of rows alone, or rows without scores.

        Raises:
            StoreError: no such file, or something else in it.
        """
        stored = files.read_json(path, "evaluation")
        stored = {"rows": stored} if isinstance(stored, list) else stored
        with files.reading(path, "evaluation"):
            rows = (AccuracyRow(str(r["name"]), str(r["model"]), numbers(r["accuracies"])) for r in stored["rows"])
            scores = (
                RobustScore(str(s["name"]), str(s["trained_on"]), str(s["model"]), numbers(s["values"]))
                for s in stored.get("scores", ())
            )
            return cls(tuple(rows), tuple(scores), str(stored.get("key", "")))

    def table(self) -> str:
        """The rows as aligned text, the scores below them."""
        width = max([len(row.name) for row in self.rows] + [8])
        model = max([len(row.model) for row in self.rows] + [7])
        lines = [f"{'trained on':<{width}}  {'network':<{model}}  test accuracy, %"]
        for row in self.rows:
            accuracy = f"{row.mean:5.1f} +- {row.std:.1f}"
            lines.append(f"{row.name:<{width}}  {row.model:<{model}}  {accuracy}  ({row.networks} networks)")
        for score in self.scores:
            value = f"{score.name} {score.mean:.3f} +- {score.std:.3f}"
            lines.append(
                f"{score.trained_on:<{width}}  {score.model:<{model}}  {value}  ({len(score.values)} networks)"
            )
        return "\n".join(lines)
