"""The part of the real data that a report shows, kept in the run's folder: a report needs no data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import ImageDataset, MeanStd, Normalization, normalization_from_state
from ..data.arrays import to_bytes
from ..runtime import files, tensor_files
from ..scoring.difficulty import Difficulty

PREVIEW = "preview.safetensors"
SHOWN = 5  # images from either end of a class
SIDE = 64
"""Larger images are made smaller."""

_FORMAT = "pad_fast preview 1"
_CLASSES = 100  # at most these keep images


@dataclass(frozen=True, eq=False)
class Preview:
    """Class names, normalisation, and the ends of the easy-to-hard order.

    Attributes:
        class_names: of the data set.
        normalization: turns images of an unfinished run into pixels; None for ZCA, whose matrices are too large to
            keep twice.
        method: of the difficulty scores; None where the run has none.
        scores: per class, of all its images, easy to hard, float32 `[n_c]`.
        images: per class, the easiest and then the hardest images (to the hardest), uint8 `[m_c, C, H, W]`; none for
            classes beyond the first hundred.
    """

    class_names: tuple[str, ...]
    normalization: Normalization | None
    method: str | None
    scores: tuple[Tensor, ...]
    images: tuple[Tensor, ...]


def write_preview(
    folder: Path, data: ImageDataset, normalization: Normalization, difficulty: Difficulty | None
) -> Path:
    """Write `folder/preview.safetensors`; equal data give equal bytes."""
    described = {
        "format": _FORMAT,
        "class_names": list(data.class_names),
        "method": None if difficulty is None else difficulty.method,
    }
    tensors: dict[str, Tensor] = {}
    if isinstance(normalization, MeanStd):
        tensors |= {f"normalization.{name}": value for name, value in normalization.state().items()}
    if difficulty is not None:
        order = difficulty.order
        tensors["scores"] = difficulty.scores[torch.cat(list(order))].float()
        tensors["class_sizes"] = torch.tensor([len(indices) for indices in order])
        chosen = [ends(indices) for indices in order[:_CLASSES]]
        tensors["images"] = small(data.train_images[torch.cat(chosen)])
        tensors["image_counts"] = torch.tensor([len(indices) for indices in chosen])
    path, packed = folder / PREVIEW, tensor_files.pack_tensors(tensors, described)
    if path.is_file() and path.read_bytes() == packed:
        return path  # a run that is repeated touches nothing
    return files.write_bytes(path, packed)


def read_preview(folder: Path) -> Preview:
    """Read the file of :func:`write_preview`.

    Raises:
        StoreError: missing, truncated, foreign or of another format.
    """
    way_out = "repeat the run, which writes it again"
    with tensor_files.read_tensors(folder / PREVIEW, "preview", _FORMAT, way_out=way_out) as (tensors, described):
        state = {k.removeprefix("normalization."): v for k, v in tensors.items() if k.startswith("normalization.")}
        pieces = {
            name: tensors[name].split(tensors[counts].tolist()) if name in tensors else ()
            for name, counts in (("scores", "class_sizes"), ("images", "image_counts"))
        }
        return Preview(
            class_names=tuple(str(name) for name in described["class_names"]),
            normalization=normalization_from_state(state) if state else None,
            method=described["method"],
            scores=tuple(pieces["scores"]),
            images=tuple(pieces["images"]),
        )


def ends(indices: Tensor, shown: int = SHOWN) -> Tensor:
    """The first and the last few of an order, none twice."""
    if len(indices) <= 2 * shown:
        return indices
    return torch.cat([indices[:shown], indices[-shown:]])


def small(images: Tensor, longest_side: int = SIDE) -> Tensor:
    """Images `[N, C, H, W]` as bytes, no side longer than that; values beyond [0, 1] are stretched to it."""
    longest = max(images.shape[2:])
    if longest > longest_side:
        size = [max(1, round(side * longest_side / longest)) for side in images.shape[2:]]
        images = F.interpolate(images, size=size, mode="area")
    in_range = bool((images.min() >= 0) and (images.max() <= 1))
    return to_bytes(images, stretch=not in_range)
