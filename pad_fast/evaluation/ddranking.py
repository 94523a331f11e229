"""Distilled sets as the tensors DD-Ranking's metrics read."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..data.distilled import DistilledDataset
from ..errors import DatasetError
from ..runtime import files

EXPORT = ("images.pt", "labels.pt", "lr.pt")


def export_ddranking(distilled: DistilledDataset, folder: str | os.PathLike[str]) -> Path:
    """Write `images.pt`, `labels.pt` and `lr.pt` for DD-Ranking (arXiv 2505.13300, version 0.2).

    Images are float32 `[N, C, H, W]` as networks are trained on them (whitened), class after class, because its metrics
    number hard labels that way; labels are logits `[N, classes]` float32 for its soft-label metric (soft cross entropy,
    temperature 1), or int64 `[N]`; the learning rate is a float64 scalar. docs/evaluation.md has the settings that
    reproduce our recipe there.

    Returns:
        The folder.

    Raises:
        DatasetError: classes of unequal size, which its metrics cannot number.
        StoreError: the folder cannot be written to.
    """
    counts = distilled.labels.bincount(minlength=distilled.classes).tolist()
    if len(set(counts)) != 1:
        raise DatasetError(
            f"DD-Ranking numbers labels by a single count of images per class, but this set has {min(counts)} to "
            f"{max(counts)}; distil the same number for every class"
        )
    order = distilled.labels.argsort(stable=True)
    lr = torch.tensor(distilled.lr, dtype=torch.float64)
    for name, tensor in zip(EXPORT, (distilled.images[order], distilled.targets[order], lr), strict=True):
        files.write_torch(Path(folder) / name, tensor)
    return Path(folder)
