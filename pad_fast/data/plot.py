"""A figure of a distilled set, for notebooks; reports have sheets of their own, drawn without matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError


def plot(images: Tensor, labels: Tensor, class_names: Sequence[str], *, columns: int) -> Any:
    """A `matplotlib.figure.Figure` with a row for every class that has images.

    Args:
        images: bytes `[N, C, H, W]`; of other channels than 1 and 3 the mean is shown.
        columns: images of a class that are shown at most.

    Raises:
        ConfigError: the package matplotlib is missing, or no columns.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError(
            f"plot() needs the package matplotlib, which cannot be imported ({error}): pip install matplotlib"
        ) from error
    if columns < 1:
        raise ConfigError(f"columns is {columns}; it must be at least 1")
    names, sheet = sheet_of(images, labels, class_names, columns=columns)
    across, down = sheet.shape[1] // (images.shape[3] + 1), len(names)
    figure, axes = pyplot.subplots(figsize=(0.8 * across + 1.5, 0.8 * down + 0.3), layout="constrained")
    axes.imshow(sheet.numpy(), interpolation="nearest")
    axes.set_yticks([(top + 0.5) * (images.shape[2] + 1) - 1 for top in range(down)], names)
    axes.set_xticks([])
    axes.set_frame_on(False)
    return figure


def sheet_of(
    images: Tensor, labels: Tensor, class_names: Sequence[str], *, columns: int
) -> tuple[tuple[str, ...], Tensor]:
    """All rows in one picture `[H, W, 3]` uint8, and their names; arguments as in :func:`plot`."""
    if images.shape[1] not in (1, 3):
        images = images.float().mean(1, keepdim=True).byte()
    labels = labels.cpu()
    rows = [(labels == label).nonzero().flatten()[:columns] for label in range(len(class_names))]
    named = [(name, row) for name, row in zip(class_names, rows, strict=True) if len(row)]
    height, width = images.shape[2:]
    across = max(len(row) for _, row in named)
    # One picture for all: axes of their own would take a second for every fifty images.
    sheet = torch.full((len(named) * (height + 1), across * (width + 1), 3), 255, dtype=torch.uint8)
    for top, (_, row) in enumerate(named):
        for left, index in enumerate(row.tolist()):
            y, x = top * (height + 1), left * (width + 1)
            sheet[y : y + height, x : x + width] = images[index].permute(1, 2, 0)
    return tuple(name for name, _ in named), sheet
