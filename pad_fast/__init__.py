"""Dataset distillation by trajectory matching: the exact PAD gradient in constant memory.

Example:
    >>> import pad_fast
    >>> net = pad_fast.network("ConvNetD2W32", channels=1, classes=10, resolution=8)
    >>> sum(parameter.numel() for parameter in net.parameters())
    10986
"""

from ._version import __version__
from .data import DSA, ImageDataset, load_dataset
from .data.distilled import DistilledDataset, load
from .data.normalization_files import load_normalization
from .errors import PadFastError
from .evaluation import EvaluationReport, evaluate
from .experts import Curriculum, ExpertStore, train_experts
from .matching import ParameterMask, reference_batches, trajectory_matching_loss
from .models import ConvNet, network
from .pipeline.distill import distill
from .runtime.progress import Progress
from .scoring.difficulty import Difficulty
from .scoring.score import score
from .settings.config import Config

__all__ = [
    "DSA",
    "Config",
    "ConvNet",
    "Curriculum",
    "Difficulty",
    "DistilledDataset",
    "EvaluationReport",
    "ExpertStore",
    "ImageDataset",
    "PadFastError",
    "ParameterMask",
    "Progress",
    "__version__",
    "distill",
    "evaluate",
    "load",
    "load_dataset",
    "load_normalization",
    "network",
    "reference_batches",
    "score",
    "train_experts",
    "trajectory_matching_loss",
]
