"""Dataset distillation by trajectory matching: the exact PAD gradient in constant memory.

Example:
    >>> import pad_fast
    >>> net = pad_fast.network("ConvNetD2W32", channels=1, classes=10, resolution=8)
    >>> sum(parameter.numel() for parameter in net.parameters())
    10986
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .data import DSA, ImageDataset, load_dataset
    from .data.distilled import DistilledDataset
    from .data.normalization_files import load_normalization
    from .errors import PadFastError
    from .evaluation import EvaluationReport
    from .evaluation.evaluate import evaluate
    from .experts import Curriculum, ExpertStore, train_experts
    from .matching import ParameterMask, trajectory_matching_loss
    from .matching.reference_batches import reference_batches
    from .models import ConvNet, network
    from .pipeline.distill import distill
    from .pipeline.resume import resume
    from .runs.load import load
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
    "resume",
    "score",
    "train_experts",
    "trajectory_matching_loss",
]

# Where each name is. Torch is imported with the first of them, not with the package: the command line is under way by
# then, and answers Ctrl-C.
_HOMES = {
    "DSA": "data",
    "ImageDataset": "data",
    "load_dataset": "data",
    "load_normalization": "data.normalization_files",
    "DistilledDataset": "data.distilled",
    "PadFastError": "errors",
    "EvaluationReport": "evaluation",
    "evaluate": "evaluation.evaluate",
    "Curriculum": "experts",
    "ExpertStore": "experts",
    "train_experts": "experts",
    "ParameterMask": "matching",
    "reference_batches": "matching.reference_batches",
    "trajectory_matching_loss": "matching",
    "ConvNet": "models",
    "network": "models",
    "distill": "pipeline.distill",
    "resume": "pipeline.resume",
    "load": "runs.load",
    "Progress": "runtime.progress",
    "Difficulty": "scoring.difficulty",
    "score": "scoring.score",
    "Config": "settings.config",
}


def __getattr__(name: str) -> Any:
    """A name of the package, or a room of it, when it is first asked for."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("__") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
