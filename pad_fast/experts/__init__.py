"""Expert trajectories: curriculum, training, storage."""

from .curriculum import Curriculum, prune
from .store import ExpertStore
from .train import train_experts

__all__ = ["Curriculum", "ExpertStore", "prune", "train_experts"]
