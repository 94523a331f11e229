"""The loop that learns the synthetic set: initial images, the iterations of each criterion, checkpoints and metrics.

Imported by runs, reporting and the pipeline; stands on matching, experts and settings.
"""

from .run import run
from .state import State
from .trajectory_matching import Loop

__all__ = ["Loop", "State", "run"]
