"""Scale-free comparison of gradients: no absolute floor, because meta-gradients are tiny."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """`||actual - expected|| / ||expected||`; infinite for NaN, for another shape, and for an all-zero expectation."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    if actual.shape != expected.shape or not bool(actual.isfinite().all()) or float(expected.norm()) == 0:
        return float("inf")
    return float((actual - expected).norm() / expected.norm())


def describe_difference(actual: Tensor, expected: Tensor) -> str:
    """Relative L2 error, cosine, worst entry and share of non-zero entries, for a failing assertion."""
    a, e = actual.detach().double().cpu().flatten(), expected.detach().double().cpu().flatten()
    worst = int((a - e).abs().argmax())
    cosine = float(torch.dot(a, e) / (a.norm() * e.norm()))
    return (
        f"relative error {relative_error(actual, expected):.3e}, cosine {cosine:.9f}, "
        f"worst at {worst}: {float(a[worst]):.6e} instead of {float(e[worst]):.6e}, "
        f"non-zero {float((a != 0).double().mean()):.3f}"
    )
