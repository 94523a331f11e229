"""CutMix (Yun et al. 2019, arXiv 1905.04899): a rectangle of every image, and of its label, is another's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.device import sent


@dataclass(frozen=True)
class CutMixDraw:
    """One draw for a batch.

    Attributes:
        order: int64 `[B]`, the image that each takes its rectangle from.
        box: first and last row, first and last column, as slices have them; the same for all images.
    """

    order: Tensor
    box: tuple[int, int, int, int]


def draw_cutmix(
    count: int, height: int, width: int, *, probability: float, generator: torch.Generator
) -> CutMixDraw | None:
    """A rectangle of a share of the image that is uniform in [0, 1], around a uniform centre, cut off at the edges.

    Args:
        probability: of mixing at all; None is what comes otherwise.
    """
    if float(torch.rand((), generator=generator)) >= probability:
        return None
    side = float(torch.rand((), generator=generator)) ** 0.5  # Beta(1, 1) is uniform
    order = torch.randperm(count, generator=generator)
    box: list[int] = []
    for size in (height, width):
        centre, half = int(torch.randint(size, (), generator=generator)), int(size * side) // 2
        box += [max(0, centre - half), min(size, centre + half)]
    return CutMixDraw(order, (box[0], box[1], box[2], box[3]))


def apply_cutmix(images: Tensor, targets: Tensor, draw: CutMixDraw | None) -> tuple[Tensor, Tensor]:
    """Images `[B, C, H, W]` and probabilities `[B, classes]`, mixed alike; what is given is not written to."""
    if draw is None:
        return images, targets
    order, (top, bottom, left, right) = sent(draw.order, images.device), draw.box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[order][..., top:bottom, left:right]
    share = (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    return mixed, (1 - share) * targets + share * targets[order]
