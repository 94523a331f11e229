"""A data set and settings small enough for tests that train."""

from __future__ import annotations

import torch

from pad_fast import ImageDataset, Progress, load_dataset

QUIET = Progress(quiet=True)
MODEL = "ConvNetD1W8"
SIZES = (13, 9, 16)


def small_data(*, noise: float = 0.35, seed: int = 0) -> ImageDataset:
    """Three classes of 8x8 images around random patterns, of 13, 9 and 16 training and 10 test images each."""
    draws = torch.Generator().manual_seed(seed)
    patterns = torch.rand(len(SIZES), 1, 8, 8, generator=draws)
    train_labels = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    train_labels = train_labels[torch.randperm(len(train_labels), generator=draws)]
    test_labels = torch.arange(len(SIZES)).repeat(10)

    def images(labels: torch.Tensor) -> torch.Tensor:
        return patterns[labels] + noise * torch.randn(len(labels), 1, 8, 8, generator=draws)

    return load_dataset((images(train_labels), train_labels, images(test_labels), test_labels))
