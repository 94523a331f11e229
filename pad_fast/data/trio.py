"""The three files in which published programs keep a distilled set: `images_X.pt`, `labels_X.pt` and `lr_X.pt`.

X is "best", or the number of an iteration. MTT's, FTD's and TESLA's programs write no rate. FTD's keeps averages of the
images under the same names with "ema_" in front. `images_zca_X.pt` is no set: pixels, for looking at.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import StoreError
from ..runtime import files

BEST = "best"
LOOKED_FOR = "images_best.pt, images_N.pt, ema_images_best.pt and ema_images_N.pt (N an iteration)"
_PARTS = ("images", "labels", "lr")
_AVERAGED = "ema_"
_IMAGES = re.compile(rf"({_AVERAGED})?images_(.+)\.pt")
_PIXELS = re.compile(r"images_zca_(.+)\.pt")
_WHAT = "distilled set"
BEST_FILES = tuple(f"{part}_{BEST}.pt" for part in _PARTS)
"""What :meth:`Trio.write` writes for the best images."""

logger = logging.getLogger("pad_fast")


@dataclass(frozen=True)
class Trio:
    """Where the files of one set are.

    Attributes:
        folder: that holds them.
        suffix: X above.
        averaged: whether the images are averages over iterations.
    """

    folder: Path
    suffix: str = BEST
    averaged: bool = False

    def path(self, part: str) -> Path:
        """The file of "images", "labels" or "lr"."""
        return self.folder / f"{_AVERAGED * self.averaged}{part}_{self.suffix}.pt"

    def write(self, images: Tensor, targets: Tensor, lr: Tensor) -> None:
        """Write the files, each atomically."""
        for part, value in zip(_PARTS, (images, targets, lr), strict=True):
            files.write_torch(self.path(part), value.clone())

    def read(self, lr: float | None) -> tuple[Tensor, Tensor, float]:
        """Images and labels as they are in their files, and the learning rate.

        Args:
            lr: in place of the one in its file; needed where that is missing.

        Raises:
            StoreError: a file is missing, damaged or foreign.
        """
        images, labels = (self._tensor(part) for part in _PARTS[:2])
        return images, labels, self._lr() if lr is None else lr

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
                "networks trained on it; the programs of MTT, FTD and TESLA log it (Synthetic_LR) and save none: pass "
                "it as lr= (--lr)"
            )
        value = files.read_torch(path, _WHAT)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise StoreError(f"{path} must hold one number ({error}); pass the rate as lr= (--lr)") from error


def find_trio(path: Path) -> Trio | None:
    """The set in a folder, or the one an images file is of.

    Of several in a folder averaged images come first, being what FTD's program is run for; then the best set, then the
    one of the latest iteration.

    Raises:
        StoreError: an images file of pixels.
    """
    if path.is_file():
        if pixels := _PIXELS.fullmatch(path.name):
            raise StoreError(
                f"{path} holds pixels, for looking at; what networks are trained on is in images_{pixels[1]}.pt or "
                f"{_AVERAGED}images_{pixels[1]}.pt: name that one"
            )
        return _set_of(path)
    found = sets_in(path)
    if not found:
        return None
    chosen = found[0]
    if chosen.averaged and not all(each.averaged for each in found):
        why = "images averaged over iterations"
    else:
        why = "the best of them" if chosen.suffix == BEST else "the last of them"
    # The best among those of single iterations is what everybody expects.
    if len(found) > 1 and why != "the best of them":
        logger.info(
            f"{path} holds {len(found)} distilled sets; {chosen.path('images').name} is read, {why}; the file of "
            "other images, given in place of the folder, names theirs"
        )
    return chosen


def sets_in(folder: Path, *, below: bool = False) -> list[Trio]:
    """Those whose images are there, or also those further down; the one that stands for the others first."""
    files = folder.glob(f"{'**/' * below}*images_*.pt")
    return sorted((found for file in files if (found := _set_of(file)) is not None), key=_rank, reverse=True)


def _set_of(images: Path) -> Trio | None:
    named = None if _PIXELS.fullmatch(images.name) else _IMAGES.fullmatch(images.name)
    return None if named is None else Trio(images.parent, named[2], averaged=named[1] is not None)


def _rank(trio: Trio) -> tuple[bool, bool, int, str]:
    number = int(trio.suffix) if trio.suffix.isdecimal() else -1
    return trio.averaged, trio.suffix == BEST, number, trio.suffix
