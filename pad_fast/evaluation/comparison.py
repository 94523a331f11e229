"""Distilled sets beside their baselines: the rows before they are trained, and the report afterwards."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ..data import Normalization
from ..data.distilled import DistilledDataset
from ..scoring.difficulty import Difficulty
from .network import EvaluationRecipe
from .outcome import Outcome
from .results import digest
from .robustness import robust_scores
from .sets import FULL, RANDOM, RANDOM_SOFT, RealBaselines, TrainingSet
from .settings import EvaluationSettings
from .table import AccuracyRow, EvaluationReport, RobustScore
from .trial import Job


class Comparison:
    """Everything that networks are trained on in an evaluation.

    Args:
        sets: distilled sets by the names of their rows; the first gives the baselines their recipe.
        normalizations: of their images, by the same names.
        real: baselines of its size.
        settings: of the evaluation.
    """

    def __init__(
        self,
        sets: Mapping[str, DistilledDataset],
        normalizations: Mapping[str, Normalization],
        real: RealBaselines,
        settings: EvaluationSettings,
    ) -> None:
        self.sets, self.normalizations, self.real, self.settings = sets, normalizations, real, settings
        self.recipe = settings.recipe(next(iter(sets.values())))

    @property
    def soft(self) -> bool:
        """Whether a distilled set has soft labels."""
        return any(each.label_logits is not None for each in self.sets.values())

    @functools.cached_property
    def full(self) -> TrainingSet:
        """All real images, on which an epoch has more steps."""
        return self.real.full(replace(self.recipe, epochs=self.settings.full_epochs, teacher=False))

    def rows(self, difficulty: Callable[[], Difficulty]) -> list[TrainingSet]:
        """The rows of the table, in its order.

        Args:
            difficulty: gives the scores that choose the easiest images; called where that row was asked for.
        """
        wanted, robust = self.settings.baselines, self.settings.robust
        rows: list[TrainingSet] = []
        if "random" in wanted or robust:
            rows.append(self.real.random(self.recipe))
        if "easiest" in wanted:
            rows.append(self.real.easiest(self.recipe, difficulty()))
        if "kmeans" in wanted:
            rows.append(self.real.kmeans(self.recipe))
        for name, each in self.sets.items():
            rows.append(self._distilled_row(name, self.settings.recipe(each)))
        if "full" in wanted or robust:
            rows.append(self.full)
        return rows

    def robust_rows(self, teacher: Tensor | None) -> Iterator[TrainingSet]:
        """The rows that robust scores need besides, for one architecture.

        Args:
            teacher: its logits `[N, classes]` for all real images, where a distilled set has soft labels.
        """
        for name, each in self.sets.items():
            recipe = self.settings.recipe(each)
            if each.label_logits is not None:
                yield replace(self._distilled_row(name, recipe, hard=True), name=_hard(name))
            yield replace(self._distilled_row(name, replace(recipe, dsa="none")), name=_plain(name))
        for soft in sorted({each.label_logits is not None for each in self.sets.values()}):
            labels = teacher if soft else None
            if soft:
                yield self.real.random(self.recipe, teacher=labels)
            plain = self.real.random(replace(self.recipe, dsa="none"), teacher=labels)
            yield replace(plain, name=_plain(_random(soft)))

    def _distilled_row(self, name: str, recipe: EvaluationRecipe, *, hard: bool = False) -> TrainingSet:
        each, device = self.sets[name], self.real.device
        images, targets = each.images.to(device), (each.labels if hard else each.targets).to(device)
        # "distilled", not the method's name: every method's set is tested on the same networks.
        identity, normalization = digest(images, targets), self.normalizations[name]
        return TrainingSet(name, "distilled", recipe, identity, normalization, lambda index: (images, targets))

    def report(self, jobs: Sequence[Job], outcomes: Mapping[Job, Outcome]) -> EvaluationReport:
        """The table and, where they were asked for, the robust scores, from the outcome of every job."""
        found: dict[tuple[str, str], list[Outcome]] = {}
        for job in jobs:
            found.setdefault((job.trained_on.name, job.network.spec.model), []).append(outcomes[job])
        table = {row: [each.accuracy for each in networks] for row, networks in found.items()}
        scores: list[RobustScore] = []
        if self.settings.robust:
            models = dict.fromkeys(model for _, model in table)
            for name, each in self.sets.items():
                scores += [score for model in models for score in _scores(name, model, each, table)]
        rows = (_row(name, model, networks) for (name, model), networks in found.items())
        return EvaluationReport(tuple(rows), tuple(scores))


def _row(name: str, model: str, networks: Sequence[Outcome]) -> AccuracyRow:
    classes = tuple(each.by_class for each in networks)
    areas = tuple(each.auc for each in networks)
    return AccuracyRow(
        name,
        model,
        tuple(each.accuracy for each in networks),
        by_class=classes if all(classes) else (),
        auc=() if any(math.isnan(area) for area in areas) else areas,
    )


def _scores(
    name: str, model: str, each: DistilledDataset, table: Mapping[tuple[str, str], Sequence[float]]
) -> tuple[RobustScore, RobustScore]:
    soft = each.label_logits is not None
    return robust_scores(
        name,
        model,
        full=table[FULL, model],
        hard=table[_hard(name) if soft else name, model],
        own=table[name, model],
        random=table[_random(soft), model],
        own_plain=table[_plain(name), model],
        random_plain=table[_plain(_random(soft)), model],
    )


def _hard(name: str) -> str:
    return f"{name}, hard labels"


def _plain(name: str) -> str:
    return f"{name}, no augmentation"


def _random(soft: bool) -> str:
    return RANDOM_SOFT if soft else RANDOM
