"""What a source of data is asked for and what it delivers, and how a test set is made where it has none."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DatasetError
from ..runtime.progress import Progress
from ..runtime.rng import generator

TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    Attributes:
        data_dir: folder of the named sets; None is $PAD_FAST_DATA, else ./data.
        resolution: shorter side of every image, whose centre is cropped; None leaves them.
        download: whether the network may be used.
        progress: told while files are read and pictures decoded.
    """

    data_dir: str | os.PathLike[str] | None = None
    resolution: int | None = None
    download: bool = False
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))

    @property
    def folder(self) -> Path:
        """The folder of the named sets."""
        named = self.data_dir if self.data_dir is not None else os.environ.get("PAD_FAST_DATA", "data")
        return Path(named).expanduser()


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set as its source delivers it: nothing is checked across the splits yet.

    Attributes:
        name: where it comes from.
        train_images: `[N, C, H, W]`, uint8, floating point or :data:`.pictures.DEEP`.
        train_labels: one per image, in any form that :func:`.class_ids.class_ids` reads.
        test_images, test_labels: None where the source has no test set: a fixed fifth of every class becomes one.
        train_files: what the files of the training images are called, one per image; empty where they are none.
        class_names, statistics: None where the source does not know them; statistics are (mean, std) per channel.
    """

    name: str
    train_images: Tensor
    train_labels: Any
    test_images: Tensor | None = None
    test_labels: Any = None
    class_names: tuple[str, ...] | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    train_files: tuple[str, ...] = ()


def stratified_split(labels: Tensor, *, fraction: float = TEST_FRACTION, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ascending train and test indices with `fraction` of every class, rounded so that the total is right.

    The total is `ceil(fraction * N)`: classes get the floor of their share, at least one image, and the largest
    remainders one more. Every class keeps at least one image on each side, which can shift the total when classes
    are very small.

    Args:
        labels: int64 `[N]`, non-negative.
        fraction: part that goes to the test set.
        seed: of the permutation within each class.

    Raises:
        DatasetError: a class has a single image.

    Example:
        >>> train, test = stratified_split(torch.arange(10) % 2)
        >>> len(train), len(test)
        (8, 2)
    """
    counts = torch.bincount(labels)
    lonely = (counts == 1).nonzero().flatten().tolist()
    if lonely:
        raise DatasetError(
            f"class {lonely[0]} has one image, which cannot be in the training and the test set; add images, or "
            "pass (train_images, train_labels, test_images, test_labels)."
        )
    exact = counts.double() * fraction
    share = torch.where(counts > 0, exact.floor().long().clamp_min(1), 0)
    missing = math.ceil(fraction * len(labels) - 1e-9) - int(share.sum())
    share[torch.argsort(exact - share, descending=True, stable=True)[: max(missing, 0)]] += 1
    share = torch.minimum(share, (counts - 1).clamp_min(0))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in (counts > 0).nonzero().flatten().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", label))
        is_test[members[order[: int(share[label])]]] = True
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()
