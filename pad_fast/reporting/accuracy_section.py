"""The section on test accuracy: the set beside its baselines, other networks, robustness."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from ..evaluation import AccuracyRow, RobustScore
from ..evaluation.table import mean_text
from .html.charts import accuracy_bar
from .html.page import empty, hint, section, table
from .html.render import part


def accuracy_section(rows: Sequence[AccuracyRow], heading: str = "Test accuracy") -> Markup:
    """The table of accuracies with a bar and an error bar each."""
    if not rows:
        return section(heading, empty("Not evaluated yet."), name="accuracy")
    shown = [
        {
            "name": row.name,
            "model": row.model,
            "accuracy": accuracy_cell(row),
            "bar": accuracy_bar(row.mean, row.std if row.networks > 1 else None),
            "networks": row.networks,
        }
        for row in rows
    ]
    words = ""
    if any(row.networks > 1 for row in rows):
        words = "± is the standard deviation over the networks trained; each was tested once, after training."
    return section(heading, part("accuracies", shown) + hint(words), name="accuracy")


def accuracy_cell(row: AccuracyRow | None) -> Markup | str:
    """Mean and standard deviation."""
    if row is None:
        return ""
    if not math.isfinite(row.mean):
        return "n/a"
    known = row.networks > 1 and math.isfinite(row.std)
    return part("accuracy", f"{row.mean:.1f}", f"{row.std:.1f}" if known else "")


def cross_architecture(rows: Sequence[AccuracyRow]) -> Markup:
    """The table of networks by what they were trained on; how to fill it while there is one network."""
    models, sets = list(dict.fromkeys(row.model for row in rows)), list(dict.fromkeys(row.name for row in rows))
    if not rows:
        return Markup()
    if len(models) < 2:
        return section(
            "Other networks",
            empty(
                f"Evaluated on {models[0]} only. To add another to the next report: "
                "pad-fast evaluate RUN --model MLP --out RUN/evaluation-mlp.json"
            ),
            name="networks",
        )
    found = {(row.name, row.model): row for row in reversed(rows)}
    cells = [[model, *(accuracy_cell(found.get((name, model))) or "–" for name in sets)] for model in models]
    body = table(["Network", *sets], cells, numbers=range(1, len(sets) + 1))
    return section(
        "Across networks", body + hint("Test accuracy in % by network and by what it was trained on."), name="networks"
    )


def robust_section(scores: Sequence[RobustScore]) -> Markup:
    """The table of LRS and ARS; nothing without them."""
    if not scores:
        return Markup()
    rows = [[score.name, score.trained_on, score.model, mean_text(score.values, 3, "±")] for score in scores]
    words = "Of DD-Ranking, computed from our networks: label-robust (LRS) and augmentation-robust (ARS), at most 1."
    body = table(["Score", "Trained on", "Network", "Value"], rows, numbers=(3,))
    return section("Robust scores", body + hint(words), name="robust")
