"""Data sets, real and distilled, their normalisation and the augmentation of batches.

Imported by engines (for the augmentation) and everything above; stands on runtime alone.
"""

from __future__ import annotations

from .augment import DSA, DSADraw, SeededDSA
from .datasets import ImageDataset, load_dataset
from .normalize import (
    ZCA,
    MeanStd,
    Normalization,
    Pixels,
    fit_mean_std,
    fit_normalization,
    fit_zca,
    normalization_from_state,
)
from .splits import stratified_split

__all__ = [
    "DSA",
    "DSADraw",
    "ImageDataset",
    "MeanStd",
    "Normalization",
    "Pixels",
    "SeededDSA",
    "ZCA",
    "fit_mean_std",
    "fit_normalization",
    "fit_zca",
    "load_dataset",
    "normalization_from_state",
    "stratified_split",
]
