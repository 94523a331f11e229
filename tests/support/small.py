"""Small inputs that several tests share: a data set to train on, pixels, and networks that are awkward to compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pad_fast import ImageDataset, Progress, load_dataset

QUIET = Progress(quiet=True)
MODEL = "ConvNetD1W8"
SIZES = (13, 9, 16)

# Arguments of ConvNet. Every engine has to come to the same numbers on all of them.
NETS: dict[str, dict[str, Any]] = {
    "cifar": {"channels": 3, "resolution": 32, "depth": 3, "width": 128, "classes": 10},
    "digits": {"channels": 1, "resolution": 8, "depth": 2, "width": 32, "classes": 10},
    "gray28": {"channels": 1, "resolution": 28, "depth": 3, "width": 17, "classes": 10},
    "odd33": {"channels": 3, "resolution": 33, "depth": 3, "width": 8, "classes": 2},
    "channels17": {"channels": 17, "resolution": 9, "depth": 2, "width": 17, "classes": 10},
    "classes200": {"channels": 2, "resolution": 16, "depth": 2, "width": 3, "classes": 200},
    "deep5": {"channels": 3, "resolution": 64, "depth": 5, "width": 8, "classes": 10},
    "depth1": {"channels": 3, "resolution": 16, "depth": 1, "width": 17, "classes": 7},
    "one_pixel": {"channels": 3, "resolution": 8, "depth": 3, "width": 8, "classes": 2},
    "wide": {"channels": 2, "resolution": 11, "depth": 2, "width": 40, "classes": 5},
}


def noise(*shape: int, seed: int) -> np.ndarray:
    """Pixels from 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers in float64 on the default device, the same on every one."""
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return values.to(torch.get_default_device())


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
