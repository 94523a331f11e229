"""The table an evaluation ends in."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from ..runtime import files


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); the latter is 0 for a single value. Of NaN, NaN."""
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return mean, math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else 0.0


def mean_text(values: Sequence[float], digits: int = 1, sign: str = "+-") -> str:
    """Mean and standard deviation in words; a single value has no deviation.

    Example:
        >>> mean_text([61.0, 63.0]), mean_text([61.0])
        ('62.0 +- 1.4', '61.0')
    """
    mean, std = mean_std(values)
    return f"{mean:.{digits}f}" + (f" {sign} {std:.{digits}f}" if len(values) > 1 else "")


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
        by_class: the same for the test images of each class, a tuple per network, NaN for a class without any; empty
            where it is not known.
        auc: area under the ROC curve per network, for two classes.
    """

    name: str
    model: str
    accuracies: tuple[float, ...]
    by_class: tuple[tuple[float, ...], ...] = ()
    auc: tuple[float, ...] = ()

    @property
    def balanced(self) -> tuple[float, ...]:
        """Balanced accuracy per network: the mean over the classes that have test images, percent."""
        return tuple(statistics.fmean(value for value in classes if not math.isnan(value)) for classes in self.by_class)

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
        """Write everything that is known as JSON; a class without test images has null."""
        content = asdict(self)
        for row in content["rows"]:
            classes = row.pop("by_class")
            if classes:
                row["by_class"] = [[None if math.isnan(value) else value for value in each] for each in classes]
            if not row["auc"]:
                del row["auc"]
        files.write_json(path, content)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> EvaluationReport:
        """Read a file of :meth:`write`; from older versions also a list of rows alone, or rows without scores.

        Raises:
            StoreError: no such file, or something else in it.
        """
        stored = files.read_json(path, "evaluation")
        stored = {"rows": stored} if isinstance(stored, list) else stored
        with files.reading(path, "evaluation"):
            rows = (_row(r) for r in stored["rows"])
            scores = (
                RobustScore(str(s["name"]), str(s["trained_on"]), str(s["model"]), numbers(s["values"]))
                for s in stored.get("scores", ())
            )
            return cls(tuple(rows), tuple(scores), str(stored.get("key", "")))

    def table(self) -> str:
        """The rows as aligned text, the scores below them."""
        width = max([len(row.name) for row in self.rows] + [8])
        model = max([len(row.model) for row in self.rows] + [7])
        numbers_width = max([len(mean_text(row.accuracies)) for row in self.rows] + [5])
        heading = "test accuracy, %"
        # Where classes have as many test images each, the balanced accuracy is the same.
        uneven = any(abs(mean_std(row.balanced)[0] - row.mean) > 1e-6 for row in self.rows if row.balanced)
        heading += "  balanced" * uneven + "  AUC" * any(row.auc for row in self.rows)
        lines = [f"{'trained on':<{width}}  {'network':<{model}}  {heading}"]
        for row in self.rows:
            value = f"{mean_text(row.accuracies):>{numbers_width}}"
            if uneven and row.balanced:
                value += f"  {mean_std(row.balanced)[0]:5.1f}"
            if row.auc:
                value += f"  {mean_std(row.auc)[0]:.3f}"
            lines.append(f"{row.name:<{width}}  {row.model:<{model}}  {value}  ({_networks(row.accuracies)})")
        for score in self.scores:
            value = f"{score.name} {mean_text(score.values, 3)}"
            lines.append(f"{score.trained_on:<{width}}  {score.model:<{model}}  {value}  ({_networks(score.values)})")
        return "\n".join(lines)


def _networks(values: Sequence[float]) -> str:
    return f"{len(values)} network{'s' * (len(values) > 1)}"


def _row(stored: Mapping[str, Any]) -> AccuracyRow:
    """A row of a file; those of earlier versions have no more than accuracies."""
    return AccuracyRow(
        str(stored["name"]),
        str(stored["model"]),
        numbers(stored["accuracies"]),
        by_class=tuple(
            numbers(math.nan if value is None else value for value in values) for values in stored.get("by_class", ())
        ),
        auc=tuple(float(value) for value in stored.get("auc", ())),
    )
