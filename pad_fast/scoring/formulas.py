"""EL2N and last-layer GraNd of given logits, and the order that scores give."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..runtime import extension
from . import native


def el2n_naive(logits: Tensor, labels: Tensor) -> Tensor:
    """:func:`el2n` in the formula's own words; any floating dtype and device, differentiable."""
    onehot = torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return torch.linalg.vector_norm(logits.softmax(-1) - onehot, dim=1)


def grand_naive(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """:func:`grand` in the formula's own words; any floating dtype and device, differentiable."""
    return el2n_naive(logits, labels) * (1 + features.square().sum(1)).sqrt()


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """`||softmax(z) - onehot(label)||_2` per row (arXiv 2107.07075).

    The compiled extension computes it where it can (float32, float64 or bfloat16, no gradient wanted); otherwise the
    formula is evaluated in float64, so that images which are classified with near certainty keep distinct scores.

    Args:
        logits: `[N, classes]`, floating point.
        labels: int32 or int64 `[N]`, each in [0, classes).

    Returns:
        `[N]`, in [0, sqrt(2)], on the device of `logits`: float64 for float64, else float32 (scores in a half
        precision would be mostly ties).

    Raises:
        InputError: shapes, dtypes or labels that do not fit.

    Example:
        >>> el2n(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        tensor([0.7071])
    """
    _check_scored(logits, labels)
    if native.serves(logits):
        return native.el2n(logits.contiguous(), labels.contiguous())
    return el2n_naive(logits.double(), labels.long()).to(native.score_dtype(logits.dtype))


def grand(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Norm of each image's own gradient of the last layer, weights and bias: `EL2N * sqrt(1 + ||h||^2)`.

    Args:
        logits: `[N, classes]`, floating point.
        features: penultimate features h `[N, F]`, dtype and device of `logits`.
        labels: int32 or int64 `[N]`, each in [0, classes).

    Returns:
        `[N]`, dtype and device as in :func:`el2n`.

    Raises:
        InputError: shapes, dtypes or labels that do not fit.

    Example:
        >>> grand(torch.zeros(1, 2), torch.tensor([[2.0, 2.0, 4.0]]), torch.tensor([1]))
        tensor([3.5355])
    """
    _check_scored(logits, labels)
    if features.dim() != 2 or len(features) != len(logits) or features.dtype != logits.dtype:
        raise InputError(
            f"features are {features.dtype} {list(features.shape)} beside logits {logits.dtype} "
            f"{list(logits.shape)}; expected one row per image and the same dtype"
        )
    if native.serves(logits, features):
        return native.grand(logits.contiguous(), features.contiguous(), labels.contiguous())
    return grand_naive(logits.double(), features.double(), labels.long()).to(native.score_dtype(logits.dtype))


def class_order(scores: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    """Dataset indices per class from easy (low score) to hard, ties by index.

    Args:
        scores: `[N]`, float32 or float64 on the CPU, free of NaN.
        labels: int64 `[N]` on the CPU, each in [0, classes).
        classes: how many; one without images gets an empty tensor.

    Example:
        >>> class_order(torch.tensor([0.5, 0.1, 0.5, 0.2]), torch.tensor([1, 0, 1, 1]), 2)
        [tensor([1]), tensor([3, 0, 2])]
    """
    if extension.available():
        return native.class_order(scores, labels, classes)
    members = [(labels == label).nonzero().flatten() for label in range(classes)]
    return [indices[scores[indices].argsort(stable=True)] for indices in members]


def _check_scored(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] < 1:
        raise InputError(f"logits are {logits.dtype} {list(logits.shape)}; expected floating point [N, classes]")
    if labels.dtype not in native.LABELS or list(labels.shape) != [len(logits)]:
        raise InputError(f"labels are {labels.dtype} {list(labels.shape)}; expected int32 or int64 [{len(logits)}]")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise InputError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}; with {logits.shape[1]} classes they lie "
            f"in [0, {logits.shape[1]})"
        )
