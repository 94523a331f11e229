"""Trajectory matching: masks, the normalised distance, and the gradient of an unrolled training run."""

from .distance import normalized_distance
from .loss import trajectory_matching_loss
from .masks import ParameterMask
from .reduce import require_divisible

__all__ = ["ParameterMask", "normalized_distance", "require_divisible", "trajectory_matching_loss"]
