"""The three files in which published programs keep a distilled set: `images_X.pt`, `labels_X.pt` and `lr_X.pt`.

X is "best", or the number of an iteration.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import StoreError
from ..runtime import files
from .labels import are_probabilities

BEST = "best"
_PARTS = ("images", "labels", "lr")
_WHAT = "distilled set"

logger = logging.getLogger("pad_fast")


@dataclass(frozen=True)
class Trio:
    """Where the files of one set are.

    Attributes:
        folder: that holds them.
        suffix: X above.
    """

    folder: Path
    suffix: str = BEST

    def path(self, part: str) -> Path:
        """The file of "images", "labels" or "lr"."""
        return self.folder / f"{part}_{self.suffix}.pt"

    def write(self, images: Tensor, targets: Tensor, lr: Tensor) -> None:
        """Write the files, each atomically."""
        for part, value in zip(_PARTS, (images, targets, lr), strict=True):
            files.write_torch(self.path(part), value.clone())

    def read(self, lr: float | None) -> tuple[Tensor, Tensor, float]:
        """Images `[N, C, H, W]`, targets (classes `[N]` or logits `[N, classes]`) and learning rate.

        Args:
            lr: in place of the one in its file; needed where that is missing.

        Raises:
            StoreError: a file is missing, damaged or foreign.
        """
        images, targets = (self._tensor(part) for part in _PARTS[:2])
        if targets.is_floating_point():
            targets = _as_logits_or_classes(targets.float(), self.path("labels"))
        return images.float(), targets, self._lr() if lr is None else lr

    def _tensor(self, part: str) -> Tensor:
        if not self.path(part).exists():
            raise StoreError(
                f"{self.folder} holds {self.path('images').name} but no {self.path(part).name}, which has the label of "
                "each image; copy it from where the program wrote both"
            )
        value = files.read_torch(self.path(part), _WHAT)
        if not isinstance(value, Tensor):
            raise StoreError(f"{self.path(part)} holds a {type(value).__name__}; one tensor is expected")
        return value.detach()

    def _lr(self) -> float:
        path = self.path("lr")
        if not path.exists():
            raise StoreError(
                f"{self.folder} holds {self.path('images').name} but no {path.name}, which has the learning rate of "
                "networks trained on it; MTT's program prints it without saving it: pass it as lr= (--lr)"
            )
        value = files.read_torch(path, _WHAT)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise StoreError(f"{path} must hold one number ({error})") from error


def find_trio(path: Path) -> Trio | None:
    """The set in a folder (the best one, else the one of the latest iteration), or the one an images file is of."""
    if path.is_file():
        return Trio(path.parent, _suffix(path)) if path.name.startswith("images_") and path.suffix == ".pt" else None
    found = [_suffix(file) for file in path.glob("images_*.pt")]
    if not found or BEST in found:
        return Trio(path) if found else None
    chosen = max(found, key=lambda suffix: (int(suffix) if suffix.isdecimal() else -1, suffix))
    if len(found) > 1:
        logger.info(f"{path} holds {len(found)} distilled sets; images_{chosen}.pt is read, the last of them")
    return Trio(path, chosen)


def _suffix(images: Path) -> str:
    return images.stem.removeprefix("images_")


def _as_logits_or_classes(labels: Tensor, path: Path) -> Tensor:
    """Published programs save logits; what can only be probabilities, which a softmax would flatten, becomes logits."""
    if labels.dim() != 2 or labels.shape[1] < 2 or not are_probabilities(labels):
        return labels
    if bool(((labels == 0) | (labels == 1)).all()):
        warnings.warn(f"the labels of {path} are one-hot rows, and are read as hard labels", stacklevel=4)
        return labels.argmax(1)
    warnings.warn(f"the labels of {path} are probabilities, and are read as such, not as logits", stacklevel=4)
    return labels.clamp_min(torch.finfo(labels.dtype).tiny).log()
