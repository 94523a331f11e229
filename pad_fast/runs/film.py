"""How the images of a run came to be, kept in its folder: each at the start, and a few of them at checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import Normalization
from ..errors import StoreError
from ..runtime import files, tensor_files
from .preview import small

FILM = "film.safetensors"

_FORMAT = "pad_fast film 1"
_PICTURES = 400  # at most on one page
_CLASSES = 100
_COLUMNS = 10
_FILMED = 10  # classes whose first image is followed
_FRAMES = 7  # at most
FRAME_SIDE = 32
"""Larger images are made smaller in frames, which are many."""


@dataclass(frozen=True, eq=False)
class Film:
    """Images as bytes, no side longer than a report shows; in frames, than :data:`FRAME_SIDE`.

    Attributes:
        indices: which of the run's images it has the start of, int64 `[n]`; see :func:`shown_images`.
        start: those before the first iteration, uint8 `[n, C, H, W]`.
        followed: which of the images the frames show, int64 `[k]`: the first of each class.
        iterations: after which a frame was taken, the first one 0.
        frames: uint8 `[frames, k, C, H, W]`.
    """

    indices: Tensor
    start: Tensor
    followed: Tensor
    iterations: tuple[int, ...]
    frames: Tensor


def shown_images(labels: Tensor) -> list[tuple[int, Tensor]]:
    """The classes that a page shows, and the indices of their first images: not more than a page has room for."""
    classes = labels.unique().tolist()[:_CLASSES]
    columns = max(1, min(_COLUMNS, _PICTURES // max(1, len(classes))))
    return [(label, (labels == label).nonzero().flatten()[:columns]) for label in classes]


def write_frame(
    folder: Path, iteration: int, images: Tensor, labels: Tensor, normalization: Normalization, every: int
) -> None:
    """Add the images after an iteration, a multiple of `every`, to `folder/film.safetensors`.

    Equal runs give equal bytes, also when they are interrupted: frames are as far apart as the run is long, and those
    that come after this one, out of a run that this one replaces, are dropped.

    Args:
        images: normalised, `[N, C, H, W]`.
        labels: class of each, int64 `[N]`.
    """
    before = _earlier(folder, iteration)
    if iteration and before is None:
        return  # begun by a version that took no pictures
    step = every
    while iteration > step * (_FRAMES - 1):
        step *= 2
    if before is None:
        shown = shown_images(labels.cpu())
        indices = torch.cat([chosen for _, chosen in shown])
        followed = torch.stack([chosen[0] for _, chosen in shown[:_FILMED]])
        start = small(_pixels(images, indices, normalization))
        frame = small(_pixels(images, followed, normalization), FRAME_SIDE)
        film = Film(indices, start, followed, (0,), frame[None])
    else:
        kept = [place for place, at in enumerate(before.iterations) if at % step == 0]
        iterations, frames = [before.iterations[place] for place in kept], before.frames[kept]
        if iteration % step == 0:
            frame = small(_pixels(images, before.followed, normalization), FRAME_SIDE)
            iterations, frames = [*iterations, iteration], torch.cat([frames, frame[None]])
        film = Film(before.indices, before.start, before.followed, tuple(iterations), frames)
    tensors = {"indices": film.indices, "start": film.start, "followed": film.followed, "frames": film.frames}
    described = {"format": _FORMAT, "iterations": list(film.iterations)}
    files.write_bytes(folder / FILM, tensor_files.pack_tensors(tensors, described))


def read_film(folder: Path) -> Film:
    """Read the file of :func:`write_frame`.

    Raises:
        StoreError: missing, truncated, foreign or of another format.
    """
    way_out = "it is only shown on the page: delete it"
    with tensor_files.read_tensors(folder / FILM, "film", _FORMAT, way_out=way_out) as (tensors, described):
        iterations = tuple(int(iteration) for iteration in described["iterations"])
        film = Film(tensors["indices"], tensors["start"], tensors["followed"], iterations, tensors["frames"])
        if not (
            len(film.indices) == len(film.start) and film.frames.shape[:2] == (len(iterations), len(film.followed))
        ):
            raise ValueError("its parts do not fit together")
        return film


def _earlier(folder: Path, iteration: int) -> Film | None:
    """The film in the folder up to before this iteration; None where there is none of this run."""
    if iteration == 0 or not (folder / FILM).is_file():
        return None
    try:
        film = read_film(folder)
    except StoreError:
        return None  # a picture is no reason to stop a run
    count = sum(at < iteration for at in film.iterations)
    return Film(film.indices, film.start, film.followed, film.iterations[:count], film.frames[:count])


def _pixels(images: Tensor, indices: Sequence[int] | Tensor, normalization: Normalization) -> Tensor:
    return normalization.invert(images[indices].cpu().float()).clamp(0, 1)
