"""Data sets known by name: scikit-learn's digits, torchvision's, ImageNet's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DatasetError, nearest
from .idx import find_idx, read_idx
from .imagenet import SUBSETS, load_subset, load_tiny
from .splits import Reading, Splits
from .vision import torchvision_datasets

# Per-channel mean and std of the published pipelines. CIFAR-100 uses CIFAR-10's on purpose: so do they.
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashionmnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
}
# Name -> torchvision class and what it reads inside data_dir.
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashionmnist": ("FashionMNIST", "FashionMNIST/raw"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}
# What torchvision reads only once it has unpacked it, and its class names.
_IDX = {
    "mnist": tuple(
        f"{digit} - {word}"
        for digit, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
    ),
    "fashionmnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
# "ImageNet" without a subset means Imagenette in the published scripts.
_ALIASES = {"tiny": "tinyimagenet", "tinyimagenet200": "tinyimagenet", "imagenet": "imagenette"}

NAMES = ("digits", *_TORCHVISION, "tinyimagenet", *SUBSETS)


def canonical_name(name: str) -> str:
    """The name in :data:`NAMES` meant by `name`; case, "-", "_" and blanks do not matter.

    Raises:
        DatasetError: unknown name.

    Example:
        >>> canonical_name("CIFAR-10"), canonical_name("Tiny")
        ('cifar10', 'tinyimagenet')
    """
    key = _plain(name)
    if key not in NAMES:
        raise DatasetError(
            f"data set {name!r} is unknown; known are {', '.join(NAMES)}, imagefolder:PATH, hf:NAME and FILE.npz."
            f"{nearest(key, (*NAMES, *_ALIASES))}{_there(name)}"
        )
    return key


def _there(name: str) -> str:
    """What lies, or does not lie, under a name that may have been meant for a path."""
    if os.path.isfile(os.path.expanduser(name)):
        return (
            " The file of that name is of a kind that is not read: save its arrays as images and labels in a .npz "
            "file, or pass them as (images, labels)."
        )
    return " There is no file or folder of that name." if os.sep in name else ""


def is_name(name: str) -> bool:
    """Whether :func:`canonical_name` knows it."""
    return _plain(name) in NAMES


def _plain(name: str) -> str:
    key = "".join(character for character in name.lower() if character not in "-_ ")
    return _ALIASES.get(key, key)


def load_named(name: str, reading: Reading) -> Splits:
    """Read the data set `name`.

    Raises:
        DatasetError: unknown name, or files missing or damaged.
    """
    key = canonical_name(name)
    if key == "digits":
        return load_digits()
    if key in _TORCHVISION:
        return load_torchvision(key, reading.folder, download=reading.download)
    return load_tiny(reading.folder, reading) if key == "tinyimagenet" else load_subset(key, reading.folder, reading)


def load_digits() -> Splits:
    """The 1797 handwritten digits that scikit-learn ships: 8x8 gray, 1437 for training and 360 for test."""
    try:
        from sklearn.datasets import load_digits as read
    except ImportError as error:
        raise DatasetError("the digits come with scikit-learn: pip install scikit-learn.") from error
    bunch = read()
    images = torch.from_numpy(bunch.images).float().div_(16)[:, None]  # [1797, 1, 8, 8]
    return Splits("digits", images, bunch.target, class_names=tuple(str(name) for name in bunch.target_names))


def load_torchvision(name: str, folder: Path, *, download: bool) -> Splits:
    """MNIST, FashionMNIST, SVHN, CIFAR-10 or CIFAR-100 in torchvision's layout under `folder`.

    Nothing is fetched unless `download`.

    Raises:
        DatasetError: the files are missing or damaged, or the download failed.
    """
    class_name, files = _TORCHVISION[name]
    if name in _IDX and (paths := find_idx(folder, class_name)):
        train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
        images, labels = (train_images[:, None], test_images[:, None]), (train_labels.long(), test_labels.long())
        return Splits(name, images[0], labels[0], images[1], labels[1], _IDX[name], _STATISTICS[name])
    read = getattr(torchvision_datasets(), class_name)
    parts = []
    for train in (True, False):
        which: dict[str, Any] = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
        try:
            parts.append(read(root=str(folder), download=download, **which))
        except Exception as error:  # RuntimeError, OSError, pickle or network errors, by file and version
            raise DatasetError(
                f"{class_name} cannot be read from {folder.absolute()} (looked for {files}): {error} Put the official "
                "files there, name another folder with data_dir=, or fetch them with download=True "
                "(--download)."
            ) from error
    names = getattr(parts[0], "classes", None) or [str(digit) for digit in range(10)]
    return Splits(
        name,
        _stored_images(parts[0].data),
        _stored_labels(parts[0]),
        _stored_images(parts[1].data),
        _stored_labels(parts[1]),
        tuple(names),
        _STATISTICS[name],
    )


def _stored_images(data: Any) -> Tensor:
    """Arrays of torchvision as uint8 `[N, C, H, W]`: MNIST [N, H, W], CIFAR [N, H, W, C], SVHN [N, C, H, W]."""
    images = data if isinstance(data, Tensor) else torch.from_numpy(np.ascontiguousarray(data))
    if images.dim() == 3:
        return images[:, None]
    return images.permute(0, 3, 1, 2) if images.shape[3] == 3 else images


def _stored_labels(part: Any) -> Tensor:
    return torch.as_tensor(part.labels if hasattr(part, "labels") else part.targets).long()
