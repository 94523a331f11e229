"""Labels as files hold them: classes, one-hot rows, logits, or already probabilities."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..errors import StoreError, require_one_of

LABELS_ARE = ("logits", "probabilities")
"""What soft labels may be."""


def are_probabilities(labels: Tensor) -> bool:
    """Whether every row `[classes]` of floating labels `[N, classes]` is a probability distribution, to rounding."""
    if not labels.numel() or float(labels.detach().min()) < 0:
        return False
    return bool(((labels.detach().sum(-1) - 1).abs() <= 1e-3).all())


def targets_of(labels: Tensor, path: Path, labels_are: str | None = None) -> Tensor:
    """What networks are trained on: classes int64 `[N]`, or logits float32 `[N, classes]`.

    Args:
        labels: classes `[N]` or `[N, 1]`, one-hot rows, logits or probabilities `[N, classes]`.
        path: they were read from, for messages.
        labels_are: which of :data:`LABELS_ARE` soft ones are. None takes them for logits, which published programs
            save, but for what can only be probabilities, which a softmax would flatten.

    Raises:
        ConfigError: an unknown kind.
        StoreError: labels of another shape, or no probabilities although they are said to be.

    Warns:
        UserWarning: one-hot rows or probabilities were recognised.
    """
    if labels_are is not None:
        require_one_of("labels_are", labels_are, LABELS_ARE)
    if labels.is_floating_point() and labels.dim() == 2 and labels.shape[1] > 1:
        return _soft(labels.float(), path, labels_are)
    if not labels.is_floating_point() and labels.dtype != torch.bool:
        if labels.dim() == 2 and labels.shape[1] == 1:
            return labels[:, 0].long()
        if labels.dim() == 1:
            return labels.long()
        if _one_hot(labels):
            return _hard(labels, path)
    raise StoreError(
        f"the labels of {path} are {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}; expected integer "
        "classes [N], or logits, probabilities or one-hot rows [N, classes]"
    )


def _soft(labels: Tensor, path: Path, labels_are: str | None) -> Tensor:
    if labels_are == "logits" or (labels_are is None and not are_probabilities(labels)):
        return labels
    if not are_probabilities(labels):
        sums = labels.sum(-1)
        raise StoreError(
            f"labels_are='probabilities', but the labels of {path} begin at {float(labels.min()):.4g} and their rows "
            f"add up to {float(sums.min()):.4g} to {float(sums.max()):.4g}; leave it out (--labels), or pass "
            "labels_are='logits'"
        )
    if labels_are is None:
        if _one_hot(labels):
            return _hard(labels, path)
        warnings.warn(f"the labels of {path} are probabilities, and are read as such, not as logits", stacklevel=7)
    return labels.clamp_min(torch.finfo(labels.dtype).tiny).log()


def one_hot_rows(labels: Tensor) -> Tensor:
    """Which rows of `[N, classes]` have a single one among zeros: bool `[N]`."""
    return ((labels == 0) | (labels == 1)).all(1) & (labels.sum(1) == 1)


def _one_hot(labels: Tensor) -> bool:
    return labels.dim() == 2 and labels.shape[1] > 1 and bool(one_hot_rows(labels).all())


def _hard(labels: Tensor, path: Path) -> Tensor:
    warnings.warn(f"the labels of {path} are one-hot rows, and are read as hard labels", stacklevel=7)
    return labels.argmax(1)
