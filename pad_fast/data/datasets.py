"""The one shape in which every part of pad_fast sees a data set, and the way to get one from anything."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import DatasetError
from ..runtime.progress import Progress
from .arrays import resize, unit_pixels
from .class_ids import class_ids
from .pictures import settle_depth
from .pixel_range import settle_range
from .sources import read
from .splits import Reading, Splits, stratified_split

_CHUNK = 4096  # images per float64 copy while statistics are computed


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Square images with class ids, split into training and test set; checked when made.

    Attributes:
        name: where it comes from, for example "digits".
        train_images, test_images: float32 `[N, C, H, W]` on the CPU, H == W; pixels in [0, 1] when the source has
            pixels, a user's floating point values otherwise.
        train_labels, test_labels: int64 `[N]`; every class occurs in both sets.
        class_names: one per class; their number is the number of classes.
        mean, std: per channel, for mean-std normalisation.
        train_files: what the files of the training images are called, below the data set's folder; empty where they are
            none.

    Raises:
        DatasetError: anything above does not hold; the message says what and how to mend it.

    Example:
        >>> dataset = load_dataset("digits")
        >>> dataset
        ImageDataset('digits', 1437 train / 360 test, 1x8x8, 10 classes)
        >>> dataset.train_images.dtype, len(dataset.images_of_class(3))
        (torch.float32, 146)
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split, images, labels in self._splits():
            _check_images(split, images)
            _check_labels(split, labels, images, self.classes)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DatasetError(
                f"training images are {_shape(self.train_images)}, test images {_shape(self.test_images)}; "
                "both need the same channels and size."
            )
        if self.classes < 2:
            raise DatasetError(f"{self.name} has a single class; distillation needs at least two.")
        for split, _, labels in self._splits():
            _check_every_class(split, labels, self.class_names)
        if len(self.mean) != self.channels or len(self.std) != self.channels or not all(s > 0 for s in self.std):
            raise DatasetError(
                f"mean and std need one number for each of the {self.channels} channels, std positive; got mean "
                f"{self.mean}, std {self.std}."
            )

    def __repr__(self) -> str:
        return (
            f"ImageDataset({self.name!r}, {len(self.train_images)} train / {len(self.test_images)} test, "
            f"{_shape(self.train_images)}, {self.classes} classes)"
        )

    @property
    def channels(self) -> int:
        """Channels per image."""
        return self.train_images.shape[1]

    @property
    def resolution(self) -> int:
        """Height and width in pixels."""
        return self.train_images.shape[-1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the images and labels of both splits; about a second per GB, computed once."""
        digest = hashlib.sha256()
        for _, images, labels in self._splits():
            for tensor in (images, labels):
                digest.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(tensor.contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()

    def images_of_class(self, label: int) -> Tensor:
        """Ascending int64 indices of the training images of a class.

        Raises:
            DatasetError: no such class.
        """
        if not 0 <= label < self.classes:
            raise DatasetError(f"class {label} does not exist; {self.name} has classes 0 to {self.classes - 1}.")
        return (self.train_labels == label).nonzero().flatten()

    def images_by_class(self) -> list[Tensor]:
        """:meth:`images_of_class` of every class, in order."""
        return [self.images_of_class(label) for label in range(self.classes)]

    def hold_out(self, fraction: float, *, seed: int) -> tuple[ImageDataset, ImageDataset]:
        """The data without `fraction` of every class's training images, and one tested on those.

        A mean and a standard deviation that were measured are measured again without them.
        """
        kept, held_out = stratified_split(self.train_labels, fraction=fraction, seed=seed)
        images, labels = self.train_images[kept], self.train_labels[kept]
        measured = (self.mean, self.std) == _statistics(self.train_images)
        mean, std = _statistics(images) if measured else (self.mean, self.std)
        files = _chosen(self.train_files, kept)
        rest = replace(self, train_images=images, train_labels=labels, mean=mean, std=std, train_files=files)
        return rest, replace(rest, test_images=self.train_images[held_out], test_labels=self.train_labels[held_out])

    def _splits(self) -> tuple[tuple[str, Tensor, Tensor], tuple[str, Tensor, Tensor]]:
        return (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        )


def load_dataset(
    dataset: object,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    resolution: int | None = None,
    download: bool = False,
    progress: Progress | bool | None = None,
) -> ImageDataset:
    """Get an :class:`ImageDataset` from a name, files, tensors or somebody else's data set; docs/data.md has a table.

    Args:
        dataset: one of

            - "digits" (8x8, ships with scikit-learn), "mnist", "fashionmnist", "svhn", "cifar10", "cifar100",
              "tinyimagenet" or "tiny", "imagenette", "imagewoof", "imagemeow", "imagesquawk", "imagefruit",
              "imageyellow" (128 px); case, "-" and "_" do not matter, and "imagenet" means imagenette;
            - "imagefolder:PATH" or the path of a folder: `{train, test or val}/<class>/<image file>`, or without
              test images `train/<class>/...` or `<class>/...`;
            - "hf:NAME" or "hf:PATH" (the package `datasets`): of the hub, a folder of `save_to_disk`, or parquet files;
              `,image=COLUMN`, `,label=COLUMN` and `,config=NAME` behind it choose where there are several;
            - a Hugging Face Dataset or DatasetDict, or a pair of them (train, test);
            - `(train_images, train_labels, test_images, test_labels)` or `(images, labels)`, tensors or arrays, or a
              dict or the path of a `.npz` file with those keys, also MedMNIST's and Keras' (and optionally name,
              class_names, mean, std); images `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]`;
            - a map-style torch Dataset of (image, label), such as torchvision's and MedMNIST's, or a pair of them;
            - an ImageDataset, returned as it is.

            uint8 pixels, and floating point ones from 0 to 255, are divided by 255; other floating point values are
            kept. Float32 tensors are not copied: do not change them afterwards. Labels are class ids, with gaps or
            without, names, or one-hot rows. Without a test set a fixed fifth of every class becomes one. What is not
            plain about the data is logged once as a warning of "pad_fast".
        data_dir: folder of the named sets; default $PAD_FAST_DATA, else ./data.
        resolution: resize every image: shorter side to this many pixels (bilinear, antialiased), then centre crop.
        download: let torchvision fetch its sets into `data_dir`, and `datasets` those of the hub; otherwise the network
            is never used.
        progress: told while pictures are read and decoded; nobody when None.

    Raises:
        DatasetError: missing or damaged files, or data that cannot be used; the message names the way out.

    Example:
        >>> images, labels = torch.rand(20, 3, 16, 16), torch.arange(20) % 4
        >>> load_dataset((images, labels))
        ImageDataset('tensors', 16 train / 4 test, 3x16x16, 4 classes)
    """
    _check_resolution(resolution)
    if isinstance(dataset, ImageDataset):
        if resolution is None or resolution == dataset.resolution:
            return dataset
        return replace(
            dataset,
            train_images=resize(dataset.train_images, resolution),
            test_images=resize(dataset.test_images, resolution),
        )
    reading = Reading(data_dir, resolution, download, Progress.of(progress or False))
    return _finish(read(dataset, reading), resolution)


def _finish(splits: Splits, resolution: int | None) -> ImageDataset:
    """Pixels in [0, 1], class ids without gaps and a test set; whatever the source."""
    images, given = [splits.train_images], [splits.train_labels]
    if splits.test_images is not None:
        images.append(splits.test_images)
        given.append(splits.test_labels)
    parts = ("the training set", "the test set") if len(given) > 1 else ("the data set",)
    what = [f"label {{}} of {part}" for part in parts]
    labels, names = class_ids(given, splits.class_names, what, splits.name)
    files = splits.train_files
    if len(images) == 1:
        images, labels, kept = _set_aside(images[0], labels[0])
        files = _chosen(files, kept)
    for split, part in zip(("train", "test"), images, strict=True):
        if len(part) == 0:
            raise DatasetError(f"the {split} set is empty: no images.")
    images = settle_range(settle_depth(images, splits.name), splits.name)
    images = [unit_pixels(resize(part, resolution) if resolution is not None else part) for part in images]
    _check_images("train", images[0])  # before the statistics, which NaN would spoil silently
    if splits.statistics is not None:
        _check_scale(splits.statistics[0], images[0])
    mean, std = splits.statistics or _statistics(images[0])
    return ImageDataset(
        name=splits.name,
        train_images=images[0],
        train_labels=labels[0],
        test_images=images[1],
        test_labels=labels[1],
        class_names=names,
        mean=mean,
        std=std,
        train_files=files,
    )


def _chosen(files: tuple[str, ...], rows: Tensor) -> tuple[str, ...]:
    return tuple(files[row] for row in rows.tolist()) if files else ()


def _check_scale(mean: tuple[float, ...], images: Tensor) -> None:
    if mean and max(mean) > 1 >= float(images.max()):
        raise DatasetError(
            f"mean {mean} is that of pixels from 0 to 255, which are 0 to 1 here. Divide mean and std by 255, or leave "
            "them out."
        )


def _set_aside(images: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Images and labels without, and of, a fixed fifth of every class; and which are not in it."""
    if len(images) != len(labels):
        raise DatasetError(f"{len(images)} images but {len(labels)} labels; each image needs one label.")
    if len(labels) == 0:
        raise DatasetError("the data set is empty: no images.")
    parts = stratified_split(labels)
    return [images[part] for part in parts], [labels[part] for part in parts], parts[0]


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and std over images and pixels; a constant channel gets std 1, so it is only shifted."""
    count = images.numel() // images.shape[1]
    mean = sum(chunk.sum((0, 2, 3), dtype=torch.float64) for chunk in images.split(_CHUNK)) / count
    centred = (chunk.double() - mean[:, None, None] for chunk in images.split(_CHUNK))
    std = (sum(chunk.square().sum((0, 2, 3)) for chunk in centred) / count).sqrt()
    std[std <= 1e-7 * mean.abs()] = 1  # below float32's resolution: rounding, not variation
    return tuple(mean.tolist()), tuple(std.tolist())


def _check_resolution(resolution: object) -> None:
    if resolution is not None and (type(resolution) is not int or resolution < 1):
        raise DatasetError(f"resolution is {resolution!r}; it must be a positive whole number of pixels.")


def _check_images(split: str, images: Tensor) -> None:
    if images.dim() != 4 or images.dtype != torch.float32:
        raise DatasetError(
            f"{split} images must be float32 [N, C, H, W]; got {images.dtype} {list(images.shape)}. "
            "load_dataset converts other forms."
        )
    if images.numel() == 0:
        raise DatasetError(f"the {split} set is empty: images {list(images.shape)}.")
    if images.shape[2] != images.shape[3]:
        raise DatasetError(
            f"{split} images are {images.shape[2]}x{images.shape[3]} with {images.shape[1]} channels; networks here "
            "need square ones. Pass resolution= to resize and crop them, to load_dataset or distill (--resolution); of "
            "[N, H, W, C] that were mistaken for [N, C, H, W], pass images.transpose(0, 3, 1, 2) (arrays) or "
            "images.permute(0, 3, 1, 2) (tensors)."
        )
    low, high = torch.aminmax(images)  # NaN propagates, so both tests need no temporary
    if not bool(torch.isfinite(low) and torch.isfinite(high)):
        bad = int((~torch.isfinite(images.flatten(1)).all(1)).nonzero()[0])
        raise DatasetError(f"{split} image {bad} has NaN or infinite pixels; remove or repair it.")


def _check_labels(split: str, labels: Tensor, images: Tensor, classes: int) -> None:
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise DatasetError(f"{split} labels must be int64 class ids [N]; got {labels.dtype} {list(labels.shape)}.")
    if len(labels) != len(images):
        raise DatasetError(
            f"{len(images)} {split} images but {len(labels)} {split} labels; each image needs one label."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DatasetError(
            f"{split} labels run from {low} to {high}; with {classes} classes they are 0 to {classes - 1}."
        )


def _check_every_class(split: str, labels: Tensor, names: tuple[str, ...]) -> None:
    empty = (torch.bincount(labels, minlength=len(names)) == 0).nonzero().flatten().tolist()
    if empty:
        shown = ", ".join(f"{label} ({names[label]})" for label in empty[:5])
        raise DatasetError(
            f"the {split} set has no image of class {shown}{', ...' if len(empty) > 5 else ''}: class ids must be "
            "0, 1, 2, ... without gaps, and every class needs training and test images: add some, or leave the class "
            "out of both sets."
        )


def _shape(images: Tensor) -> str:
    return "x".join(str(side) for side in images.shape[1:])
