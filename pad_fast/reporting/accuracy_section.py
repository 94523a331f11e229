"""The section on test accuracy: the set beside its baselines, other networks, robustness."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..evaluation import AccuracyRow, RobustScore
from .html.page import empty, hint, section, table, text


def accuracy_section(rows: Sequence[AccuracyRow], heading: str = "Test accuracy") -> str:
    """The table of accuracies with a bar and an error bar each."""
    if not rows:
        return section(heading, empty("Not evaluated yet."), name="accuracy")
    cells = "".join(_accuracy_row(row) for row in rows)
    body = (
        '<div class="scroll"><table class="accuracy"><thead><tr><th scope="col">Trained on</th>'
        '<th scope="col">Network</th><th scope="col" class="number">Accuracy, %</th>'
        '<th scope="col" class="wide"><span class="hidden">0 to 100 %</span></th>'
        '<th scope="col" class="number">Networks</th>'
        f"</tr></thead><tbody>{cells}</tbody></table></div>"
    )
    if any(row.networks > 1 for row in rows):
        body += hint("± is the standard deviation over the networks trained; each was tested once, after training.")
    return section(heading, body, name="accuracy")


def _accuracy_row(row: AccuracyRow) -> str:
    known = math.isfinite(row.mean)
    spread = row.std if known and row.networks > 1 and math.isfinite(row.std) else None
    bar = ""
    if known:
        length = min(max(row.mean, 0.0), 100.0)
        bar = f'<rect class="bar" x="0" y="3" width="{length:.2f}" height="10"/>'
        if spread:
            left, right = max(0.0, length - spread), min(100.0, length + spread)
            bar += f'<path class="whisker" d="M{left:.2f} 8H{right:.2f}"/>'
    return (
        f'<tr><th scope="row">{text(row.name)}</th><td>{text(row.model)}</td>'
        f'<td class="number">{accuracy_cell(row)}</td>'
        '<td class="wide"><svg viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" x="0" y="3" width="100" height="10"/>{bar}</svg></td>'
        f'<td class="number">{row.networks}</td></tr>'
    )


def accuracy_cell(row: AccuracyRow | None) -> str:
    """Mean and standard deviation as HTML."""
    if row is None:
        return ""
    if not math.isfinite(row.mean):
        return "n/a"
    deviation = f' <span class="std">± {row.std:.1f}</span>' if row.networks > 1 and math.isfinite(row.std) else ""
    return f"<strong>{row.mean:.1f}</strong>{deviation}"


def _cross_architecture(rows: Sequence[AccuracyRow]) -> str:
    models, sets = list(dict.fromkeys(row.model for row in rows)), list(dict.fromkeys(row.name for row in rows))
    if not rows:
        return ""
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
    cells = [[text(model), *(accuracy_cell(found.get((name, model))) or "–" for name in sets)] for model in models]
    body = table(["Network", *sets], cells, numbers=range(1, len(sets) + 1))
    return section(
        "Across networks", body + hint("Test accuracy in % by network and by what it was trained on."), name="networks"
    )


def _robust(scores: Sequence[RobustScore]) -> str:
    if not scores:
        return ""
    rows = [
        [text(score.name), text(score.trained_on), text(score.model), f"{score.mean:.3f} ± {score.std:.3f}"]
        for score in scores
    ]
    words = "Of DD-Ranking, computed from our networks: label-robust (LRS) and augmentation-robust (ARS), at most 1."
    body = table(["Score", "Trained on", "Network", "Value"], rows, numbers=(3,))
    return section("Robust scores", body + hint(words), name="robust")
