"""Expert trajectories: curriculum, training, storage."""

from .curriculum import Curriculum, curriculum_of, prune
from .store import ExpertStore
from .train import train_experts

__all__ = ["Curriculum", "ExpertStore", "curriculum_of", "prune", "train_experts"]
