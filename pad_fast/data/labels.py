"""Soft labels: logits, or already probabilities."""

from __future__ import annotations

from torch import Tensor


def are_probabilities(labels: Tensor) -> bool:
    """Whether every row `[classes]` of floating labels `[N, classes]` is a probability distribution, to rounding."""
    if not labels.numel() or float(labels.detach().min()) < 0:
        return False
    return bool(((labels.detach().sum(-1) - 1).abs() <= 1e-3).all())
