"""The folders that published programs leave behind, written by us: the same names, tensors and dtypes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

RATE = 0.03125  # exact in float32
FAMILIES = ("mtt", "ftd", "tesla", "datm", "pad")
# Their programs save it beside the images.
WITH_RATE = ("datm", "pad")


def write_results(root: Path, family: str, images: Tensor, targets: Tensor, *, pixels: Tensor | None = None) -> Path:
    """What a program leaves below `root` whose best set, of iteration 10, is this; returns the folder to be named.

    The set of iteration 0 has images that are 1 brighter, and FTD's plain sets have images that are 0.5 brighter.

    Args:
        targets: int64 `[N]` (MTT, FTD, TESLA), probabilities `[N, classes]` (TESLA) or logits (DATM, PAD).
        pixels: of the images, which programs write too when they whiten.
    """
    if family in WITH_RATE:
        folder = root / "logged_files" / "CIFAR10" / "1" / "ConvNet" / "calm-sun-7" / "Normal"
    else:
        folder = root / "logged_files" / "CIFAR10" / "calm-sun-7"
    shift = 0.5 if family == "ftd" else 0.0
    write_set(folder, "", images + shift, targets, rate=family in WITH_RATE, pixels=pixels)
    if family != "ftd":
        return folder
    averaged = root / "ema_logged_files" / "CIFAR10" / "calm-sun-7"
    write_set(averaged, "ema_", images, targets, rate=False, pixels=pixels)
    return averaged


def write_set(
    folder: Path, prefix: str, images: Tensor, targets: Tensor, *, rate: bool, pixels: Tensor | None = None
) -> None:
    """Iterations 0 and 10, the second of them the best: leaves as the loop has them, the rate a float32 scalar."""
    folder.mkdir(parents=True)
    for suffix, brighter in (("0", 1.0), ("10", 0.0), ("best", 0.0)):
        torch.save((images + brighter).requires_grad_(), folder / f"{prefix}images_{suffix}.pt")
        leaf = targets.clone()
        if rate:
            leaf.requires_grad_()
            torch.save(torch.tensor(RATE), folder / f"lr_{suffix}.pt")
        torch.save(leaf, folder / f"{prefix}labels_{suffix}.pt")
        if pixels is not None and suffix != "best":
            torch.save(pixels, folder / f"images_zca_{suffix}.pt")
