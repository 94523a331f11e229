"""Trajectory matching: masks, the normalised distance, and the gradient of an unrolled training run.

Imported by distillation and by users' own scripts; stands on engines and models.
"""

from .distance import normalized_distance
from .layers import layer_distances, student_end
from .loss import trajectory_matching_loss
from .masks import ParameterMask
from .reference_batches import reference_batches
from .split_batches import require_divisible

__all__ = [
    "ParameterMask",
    "layer_distances",
    "normalized_distance",
    "reference_batches",
    "require_divisible",
    "student_end",
    "trajectory_matching_loss",
]
