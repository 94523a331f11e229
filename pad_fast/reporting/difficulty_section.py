"""The part of a report about difficulty: who is easy, who is hard, and when an expert sees whom (PAD, figure 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from markupsafe import Markup
from torch import Tensor

from ..experts import Curriculum, prune
from .html.charts import Band, Group, band_chart, stacked_histogram
from .html.gallery import PictureRow, gallery
from .html.page import hint, section
from .html.render import part


@dataclass(frozen=True)
class DifficultyView:
    """Contents of the section.

    Attributes:
        method: name of the scores.
        scores: class name -> scores of its training images, easy to hard.
        curriculum: which of them experts see in which of `epochs` epochs, after `prune` has dropped some for good.
        pictures: the easiest and the hardest images of each class.
    """

    method: str
    scores: Mapping[str, Sequence[float]]
    curriculum: Curriculum
    epochs: int
    prune: str = "none"
    pictures: Sequence[PictureRow] = ()


def difficulty_section(view: DifficultyView | None) -> Markup:
    """The section; nothing without scores."""
    if view is None or not any(view.scores.values()):
        return Markup()
    label = "rank in its class" if view.method == "order" else f"difficulty score ({view.method})"
    body = stacked_histogram(
        stage_groups(view),
        x_label=f"{label}, easy to hard",
        y_label="training images",
        description="Difficulty of the training images, by when experts see them",
    )
    body += hint(_ranking(view.scores))
    band = _curriculum_band(view)
    if band is not None:
        body += part("subheading", "What experts see") + band_chart(
            band,
            x_label="epoch of the expert",
            y_label="% of each class, easiest at the bottom",
            description="The part of each class, ordered by difficulty, that experts see in each epoch",
            y_span=(0.0, 100.0),
        )
    if view.pictures:
        body += part("subheading", "Easiest and hardest of each class") + gallery(view.pictures)
    return section("Difficulty and curriculum", body, name="difficulty")


def stage_groups(view: DifficultyView) -> list[Group]:
    """The scores by when an expert sees their images; one group where it always sees all."""
    values: dict[str, list[float]] = {}
    styles: dict[str, str] = {}
    for scores in view.scores.values():
        first, last = epochs_shown(view, len(scores))
        for score, begins, ends in zip(scores, first.tolist(), last.tolist(), strict=True):
            label, style = _stage(view, begins, ends)
            values.setdefault(label, []).append(float(score))
            styles[label] = style
    if len(values) == 1:
        return [Group("", next(iter(values.values())))]
    # Easy to hard, which is how the stages lie in the histogram.
    ordered = sorted(values, key=lambda label: median(values[label]))
    return [Group(label, values[label], styles[label]) for label in ordered]


def epochs_shown(view: DifficultyView, count: int) -> tuple[Tensor, Tensor]:
    """First and last epoch in which experts see each of a class's `count` images, easy to hard; -1 for never."""
    first, last = torch.full((count,), -1), torch.full((count,), -1)
    kept = prune([torch.arange(count)], view.prune)[0]
    for epoch in range(view.epochs):
        seen = kept[slice(*view.curriculum.span(epoch, len(kept)))]
        first[seen] = torch.where(first[seen] < 0, epoch, first[seen])
        last[seen] = epoch
    return first, last


def _stage(view: DifficultyView, first: int, last: int) -> tuple[str, str]:
    """Legend and style of the images that are seen from one epoch to another."""
    if last < 0:
        return "never shown", "part c3"
    if last < view.epochs - 1:
        return f"shown up to epoch {last}", "part c0" if last <= view.curriculum.removal1_epoch else "part c4"
    if first > 0:
        return f"added in epochs 1 to {view.curriculum.add_end_epoch}", "part c1"
    return "always shown", "part still"


def _curriculum_band(view: DifficultyView) -> Band | None:
    """The share of the largest class that is shown in each epoch; None where it is always everything."""
    count = max(map(len, view.scores.values()))
    kept = prune([torch.arange(count)], view.prune)[0].tolist()
    epochs = list(range(view.epochs))
    spans = [view.curriculum.span(epoch, len(kept)) for epoch in epochs]
    low = [100 * kept[start] / count for start, _ in spans]
    high = [100 * (kept[stop - 1] + 1) / count for _, stop in spans]
    if not epochs or (set(low), set(high)) == ({0.0}, {100.0}):
        return None
    return Band(epochs, low, high)


def _ranking(scores: Mapping[str, Sequence[float]]) -> str:
    ranked = sorted(
        (median(values), name)
        for name, values in scores.items()
        if len(values) and all(math.isfinite(value) for value in values)
    )
    if len(ranked) < 2:
        return ""
    shown = min(3, len(ranked) // 2)
    easy = ", ".join(f"{name} ({score:.3g})" for score, name in ranked[:shown])
    hard = ", ".join(f"{name} ({score:.3g})" for score, name in ranked[: -shown - 1 : -1])
    return f"Easiest by class median: {easy}. Hardest: {hard}."
