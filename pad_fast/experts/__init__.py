"""Expert trajectories: curriculum, training, storage.

Imported by distillation, reporting and the pipeline; stands on training, settings and scoring (the curriculum's order).
"""

from .convert import convert_experts
from .curriculum import Curriculum, curriculum_of, prune
from .inspection import Finding, describe_store, examine
from .store import ExpertStore
from .train import train_experts

__all__ = [
    "Curriculum",
    "ExpertStore",
    "Finding",
    "convert_experts",
    "curriculum_of",
    "describe_store",
    "examine",
    "prune",
    "train_experts",
]
