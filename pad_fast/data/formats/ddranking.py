"""The tensors that DD-Ranking's metrics read (arXiv 2505.13300, version 0.2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...errors import DatasetError
from . import tensors


def write(folder: Path, images: Tensor, targets: Tensor, labels: Tensor, classes: int, lr: float) -> Path:
    """Write `images.pt`, `labels.pt` and `lr.pt`, class after class, because its metrics number hard labels that way.

    Labels are logits `[N, classes]` float32 for its soft-label metric (soft cross entropy, temperature 1), or int64
    `[N]`; the learning rate is a float64 scalar. docs/evaluation.md has the settings that reproduce our recipe there.

    Args:
        images: float32 `[N, C, H, W]` as networks are trained on them (whitened).
        labels: class each image was made for.

    Raises:
        DatasetError: classes of unequal size, which its metrics cannot number.
    """
    counts = labels.bincount(minlength=classes).tolist()
    if len(set(counts)) != 1:
        raise DatasetError(
            f"DD-Ranking numbers labels by a single count of images per class, but this set has {min(counts)} to "
            f"{max(counts)}; distil the same number for every class"
        )
    order = labels.argsort(stable=True)
    rate = torch.tensor(lr, dtype=torch.float64)
    tensors.write(folder, {"images": images[order], "labels": targets[order], "lr": rate})
    return folder
