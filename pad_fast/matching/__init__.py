"""Trajectory matching: masks, the normalised distance, and the gradient of an unrolled training run."""

from .distance import normalized_distance
from .loss import trajectory_matching_loss
from .masks import ParameterMask

__all__ = ["ParameterMask", "normalized_distance", "trajectory_matching_loss"]
