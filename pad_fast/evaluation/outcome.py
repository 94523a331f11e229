"""What testing a network comes to: accuracy, accuracy of every class, and the area under the curve for two classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """Of one network, in percent but for the area.

    Attributes:
        by_class: accuracy on the test images of each class, NaN for a class without any; empty where results of earlier
            versions do not say it.
        auc: area under the ROC curve of the second class's logit above the first one's; NaN but for two classes.
    """

    accuracy: float
    by_class: tuple[float, ...]
    auc: float


def by_class(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Percentage `[classes]` of each class's images that is predicted right; NaN without images."""
    total = torch.bincount(labels, minlength=classes).double()
    right = torch.bincount(labels[predictions == labels], minlength=classes).double()
    return right / total * 100


def area_under_curve(scores: Tensor, labels: Tensor) -> Tensor:
    """Probability that a random image of class 1 has a higher score than one of class 0; ties count half."""
    order = scores.double()
    positive, negative = order[labels == 1], order[labels == 0].sort().values
    below = torch.searchsorted(negative, positive, right=False)
    not_above = torch.searchsorted(negative, positive, right=True)
    return (below + not_above).double().mean() / (2 * len(negative))


def unpacked(values: Tensor) -> Outcome:
    """The outcome out of a row of accuracy, area and accuracies by class."""
    accuracy, auc, *classes = values.tolist()
    known = [value for value in classes if value == value]
    return Outcome(accuracy, tuple(classes) if known else (), auc)
