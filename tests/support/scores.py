"""Logits, features and labels to score."""

from __future__ import annotations

import torch
from torch import Tensor


def problem(rows: int, classes: int, dtype: torch.dtype, *, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that leave no probability near 1, features and labels; other numbers for every shape."""
    draws = torch.Generator().manual_seed(1000 * rows + classes)
    logits = 2 * torch.randn(rows, classes, generator=draws, dtype=torch.float64)
    features = torch.randn(rows, width, generator=draws, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=draws)
    return logits.to(dtype), features.to(dtype), labels
