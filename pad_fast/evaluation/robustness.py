"""DD-Ranking's scores (Li et al. 2025, arXiv 2505.13300): what is left without soft labels or augmentation.

With accuracies as fractions of one, and for one network index at a time:

    LRS = s(w IOR - (1 - w) HLR),  HLR = full(hard) - set(hard),  IOR = set(own labels) - random(the same kind)     (1)
    ARS = s(g (set - random with augmentation) + (1 - g) (set - random without)),   w = g = 1/2                     (2)
    s(a) = (exp(a) - exp(-1)) / (exp(1) - exp(-1))                                                                 (3)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .table import RobustScore


def normalised(weighted: float) -> float:
    """Equation (3): [-1, 1] onto [0, 1]."""
    return (math.exp(weighted) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def label_robust_score(*, full: float, hard: float, own: float, random: float, weight: float = 0.5) -> float:
    """Equation (1) from accuracies in percent.

    Args:
        full: the full set with hard labels.
        hard: the distilled set with hard labels.
        own: the distilled set with its own labels.
        random: random real images with labels of the same kind.
        weight: w, of the improvement over random.

    Example:
        >>> round(label_robust_score(full=85, hard=60, own=67, random=50), 3)
        0.252
    """
    improvement, recovery = own - random, full - hard
    return normalised((weight * improvement - (1 - weight) * recovery) / 100)


def augmentation_robust_score(
    *, own: float, random: float, own_plain: float, random_plain: float, weight: float = 0.5
) -> float:
    """Equation (2) from accuracies in percent; `_plain` is without augmentation.

    Example:
        >>> round(augmentation_robust_score(own=67, random=50, own_plain=60, random_plain=45), 3)
        0.343
    """
    return normalised((weight * (own - random) + (1 - weight) * (own_plain - random_plain)) / 100)


def robust_scores(
    name: str,
    model: str,
    *,
    full: Sequence[float],
    hard: Sequence[float],
    own: Sequence[float],
    random: Sequence[float],
    own_plain: Sequence[float],
    random_plain: Sequence[float],
) -> tuple[RobustScore, RobustScore]:
    """Both scores of one distilled set, network by network."""
    label = [
        label_robust_score(full=f, hard=h, own=o, random=r) for f, h, o, r in zip(full, hard, own, random, strict=True)
    ]
    augmentation = [
        augmentation_robust_score(own=o, random=r, own_plain=p, random_plain=q)
        for o, r, p, q in zip(own, random, own_plain, random_plain, strict=True)
    ]
    return RobustScore("LRS", name, model, tuple(label)), RobustScore("ARS", name, model, tuple(augmentation))
