"""The normalised squared distance between a student and the expert it should land on."""

from __future__ import annotations

from torch import Tensor

from ..models.selection import keep_largest
from ..runtime.shapes import Float


def normalized_distance(
    theta_end: Float[Tensor, "... P"],
    theta_start: Float[Tensor, "... P"],
    theta_target: Float[Tensor, "... P"],
    *,
    first_kept: int = 0,
    dropped: int = 0,
) -> Float[Tensor, " ..."]:
    r"""`sum_m (theta_T - theta*)^2 / sum_m (theta_s - theta*)^2` over the unmasked entries `m` (MTT, eq. 2; PAD).

    Reads like the formula: the truth that every kernel is compared with. Differentiable in all three vectors.

    Args:
        theta_end: where the student landed, `[..., P]`.
        theta_start: where it started (expert snapshot s), `[..., P]`.
        theta_target: where it should land (expert snapshot s + M), `[..., P]`.
        first_kept: entries in front of this offset are left out (depth and layer masks).
        dropped: this many entries with the smallest `(theta_T - theta*)^2` are left out as well (loss mask);
            the choice is a constant for the gradient.

    Returns:
        `[...]`, one value per trajectory. It is infinite when start and target coincide on the mask.
    """
    reached = (theta_end[..., first_kept:] - theta_target[..., first_kept:]).square()
    required = (theta_start[..., first_kept:] - theta_target[..., first_kept:]).square()
    if dropped:
        keep = keep_largest(reached.detach(), dropped)
        reached, required = reached * keep, required * keep
    return reached.sum(-1) / required.sum(-1)
