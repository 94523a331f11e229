"""The section on test accuracy: the set beside its baselines, other networks, robustness."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from markupsafe import Markup

from ..evaluation import AccuracyRow, RobustScore
from ..evaluation.table import mean_text
from .html.charts import accuracy_axis, accuracy_dot, accuracy_span
from .html.page import hint, section, table
from .html.render import part


def accuracy_section(
    rows: Sequence[AccuracyRow],
    own: Collection[AccuracyRow],
    *,
    heading: str = "Test accuracy",
    what: str = "Trained on",
    name: str = "accuracy",
) -> Markup:
    """The table of accuracies, best first, with dots and error bars on one axis; nothing without rows.

    Args:
        own: those of distilled images, which are marked.
        what: heading of the rows.
        name: what links on the page call the section.
    """
    if not rows:
        return Markup()
    spreads = [row.std if row.networks > 1 and math.isfinite(row.std) else 0.0 for row in rows]
    pairs = list(zip(rows, spreads, strict=True))
    span = accuracy_span([end for row, spread in pairs for end in (row.mean - spread, row.mean + spread)])
    pairs.sort(key=lambda pair: -pair[0].mean if math.isfinite(pair[0].mean) else math.inf)
    shown = [
        {
            "name": row.name,
            "model": row.model,
            "accuracy": accuracy_cell(row),
            "dot": accuracy_dot(row.mean, spread, span, own=row in own),
            "networks": row.networks,
            "own": row in own,
        }
        for row, spread in pairs
    ]
    words = f"Best first; the axis goes from {span[0]:.0f} to {span[1]:.0f} %."
    if any(row.networks > 1 for row in rows):
        words += " ± is the standard deviation over the networks trained; each was tested once, after training."
    return section(heading, part("accuracies", shown, accuracy_axis(span), what) + hint(words), name=name)


def accuracy_cell(row: AccuracyRow | None) -> Markup | str:
    """Mean and standard deviation."""
    if row is None:
        return ""
    if not math.isfinite(row.mean):
        return "n/a"
    known = row.networks > 1 and math.isfinite(row.std)
    return part("accuracy", f"{row.mean:.1f}", f"{row.std:.1f}" if known else "")


def cross_architecture(rows: Sequence[AccuracyRow]) -> Markup:
    """The table of networks by what they were trained on; nothing where there is one network."""
    models, sets = list(dict.fromkeys(row.model for row in rows)), list(dict.fromkeys(row.name for row in rows))
    if len(models) < 2:
        return Markup()
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
