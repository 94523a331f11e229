"""The result: a handful of images, their labels, a learning rate, and what is needed to use them elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .._version import __version__
from ..errors import StoreError
from ..runtime import files, tensor_files
from . import Normalization, normalization_from_state
from .trio import LOOKED_FOR, Trio, find_trio, sets_in

FORMAT = "pad_fast distilled 1"
DISTILLED = "distilled.safetensors"
_NAMED = 5  # of many files or folders, in a message


@dataclass(frozen=True, eq=False)
class DistilledDataset:
    """A distilled data set.

    Attributes:
        images: normalised (whitened) images `[N, C, H, W]` float32: what networks are trained on.
        label_logits: soft labels before the softmax `[N, classes]` float32; None when labels are hard.
        labels: class each image was made for, int64 `[N]`.
        lr: the learning rate that was distilled with the images.
        whitening: turns images back into pixels, and test images into what a trained network expects; None when a
            file did not carry it.
        config: settings of the run.
        history: one row per iteration (iteration, loss, lr, start_epoch, skipped).
        class_names: of the original data set.
        evaluation: accuracy rows, when the run evaluated itself.
    """

    images: Tensor
    label_logits: Tensor | None
    labels: Tensor
    lr: float
    whitening: Normalization | None
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, float]] = field(default=())
    class_names: tuple[str, ...] = ()
    evaluation: Sequence[Any] = field(default=())

    def __post_init__(self) -> None:
        count = self.images.shape[0] if self.images.dim() == 4 else 0
        if count == 0:
            raise StoreError(f"distilled images have shape {list(self.images.shape)}; expected [N, C, H, W], N >= 1")
        if self.labels.dtype != torch.int64 or list(self.labels.shape) != [count]:
            raise StoreError(
                f"distilled labels are {self.labels.dtype} {list(self.labels.shape)}; expected int64 [{count}]"
            )
        logits = self.label_logits
        if logits is not None and (logits.dim() != 2 or logits.shape[0] != count):
            raise StoreError(
                f"label logits have shape {list(logits.shape)} for {count} images; expected [{count}, classes]"
            )
        if not bool(self.images.isfinite().all()) or (logits is not None and not bool(logits.isfinite().all())):
            raise StoreError("distilled images or labels contain NaN or infinite values")
        if not self.lr > 0:
            raise StoreError(f"distilled learning rate is {self.lr}; it must be positive")

    def __repr__(self) -> str:
        kind = "hard labels" if self.label_logits is None else "soft labels"
        shape = "x".join(str(size) for size in self.images.shape[1:])
        return f"DistilledDataset({len(self.images)} images {shape}, {kind}, lr {self.lr:.4g})"

    @property
    def classes(self) -> int:
        """Number of classes."""
        if self.label_logits is not None:
            return self.label_logits.shape[1]
        return len(self.class_names) or int(self.labels.max()) + 1

    @property
    def targets(self) -> Tensor:
        """Training targets: label logits `[N, classes]` when labels are soft, else classes `[N]`."""
        return self.labels if self.label_logits is None else self.label_logits

    def pixels(self) -> Tensor:
        """Images with whitening undone `[N, C, H, W]`; natural pixels lie in [0, 1], distilled ones may exceed it.

        Raises:
            StoreError: the whitening is not known.
        """
        if self.whitening is None:
            raise StoreError("this distilled set carries no whitening, so its images cannot be turned into pixels")
        return self.whitening.invert(self.images)

    def as_dataset(self) -> TensorDataset:
        """A torch data set of (image, target): target probabilities when labels are soft, else a class."""
        targets = self.labels if self.label_logits is None else self.label_logits.softmax(-1)
        return TensorDataset(self.images, targets)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `distilled.safetensors` and the reference's trio of .pt files into `folder`, each atomically."""
        folder = Path(folder)
        tensors = {"images": self.images, "labels": self.labels}
        if self.label_logits is not None:
            tensors["label_logits"] = self.label_logits
        # The learning rate as float64, so that a round trip is exact.
        tensors["lr"] = torch.tensor(self.lr, dtype=torch.float64)
        if self.whitening is not None:
            tensors |= {f"whitening.{name}": value for name, value in self.whitening.state().items()}
        described = {
            "format": FORMAT,
            "pad_fast": __version__,
            "config": dict(self.config),
            "class_names": list(self.class_names),
            "history": [dict(row) for row in self.history],
        }
        data = tensor_files.pack_tensors(tensors, described)
        files.write_bytes(folder / DISTILLED, data)
        targets = self.labels if self.label_logits is None else self.label_logits
        Trio(folder).write(self.images, targets, tensors["lr"])
        return folder / DISTILLED


def load(
    path: str | os.PathLike[str], *, lr: float | None = None, whitening: Normalization | None = None
) -> DistilledDataset:
    """Load a distilled set: a folder or `distilled.safetensors` of ours, or what published programs save.

    Of theirs (`images_X.pt`, `labels_X.pt`, `lr_X.pt`; FTD's averages `ema_images_X.pt`, `ema_labels_X.pt`) a folder's
    averaged set is read, else the best one, else that of the latest iteration; naming an images file reads that one.
    Integer labels are hard; floating ones are logits, or probabilities where every row adds up to 1.

    Args:
        lr: learning rate in place of the stored one; the programs of MTT, FTD and TESLA store none.
        whitening: how the images were normalised, in place of what is stored; published programs store nothing, but
            :func:`pad_fast.data.fit_normalization` finds it again from the data.

    Raises:
        StoreError: nothing there, truncated, or foreign.

    Warns:
        UserWarning: labels are probabilities.
    """
    path = Path(path)
    file = path / DISTILLED if path.is_dir() else path
    trio = None if file.exists() and path.is_dir() else find_trio(path)
    if trio is not None:
        return _of_trio(*trio.read(lr), whitening)
    if not file.exists():
        raise StoreError(f"no distilled set at {path}: there is {_missing(path)}")
    if file.suffix == ".pt":
        raise StoreError(
            f"{file} is not called as the images of a set are; name the images' file, images_X.pt, with labels_X.pt "
            "and lr_X.pt beside it"
        )
    way_out = "repeat the run that wrote it, or bring it back from a copy"
    with tensor_files.read_tensors(file, "distilled set", FORMAT, way_out=way_out) as (tensors, described):
        state = {k.removeprefix("whitening."): v for k, v in tensors.items() if k.startswith("whitening.")}
        stored = DistilledDataset(
            images=tensors["images"],
            label_logits=tensors.get("label_logits"),
            labels=tensors["labels"],
            lr=float(tensors["lr"]),
            whitening=normalization_from_state(state) if state else None,
            config=described["config"],
            history=described["history"],
            class_names=tuple(described["class_names"]),
        )
    return replace(
        stored,
        lr=stored.lr if lr is None else lr,
        whitening=stored.whitening if whitening is None else whitening,
    )


def _missing(path: Path) -> str:
    """What is not at `path`, and what comes close."""
    if path.suffix == ".pt":
        beside = [trio.path("images").name for trio in sets_in(path.parent)]
        return "no such file" + (f"; name one of those beside it: {_few(beside)}" if beside else "")
    said = f"neither {DISTILLED} nor {LOOKED_FOR}"
    if pixels := sorted(file.name for file in path.glob("images_zca_*.pt")):
        said += f"; {_few(pixels)} are pixels, for looking at"
    below = {trio.folder for trio in sets_in(path, below=True)} | {file.parent for file in path.rglob(DISTILLED)}
    if below:
        said += f"; sets lie further down, name one of {_few(sorted(map(str, below)))}"
    return said


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _of_trio(images: Tensor, targets: Tensor, lr: float, whitening: Normalization | None) -> DistilledDataset:
    soft = targets.is_floating_point()
    return DistilledDataset(
        images=images,
        label_logits=targets if soft else None,
        labels=_classes(targets) if soft else targets.long(),
        lr=lr,
        whitening=whitening,
        config={},
    )


def _classes(logits: Tensor) -> Tensor:
    """Class that each image was made for, int64 `[N]`: published scripts write images class after class.

    A distilled label may favour another class, so its largest entry decides only where most labels contradict that
    order.
    """
    favoured = logits.argmax(-1)
    if logits.dim() != 2 or len(logits) % logits.shape[1]:
        return favoured
    in_order = torch.arange(logits.shape[1]).repeat_interleave(len(logits) // logits.shape[1])
    return in_order if bool((favoured == in_order).double().mean() > 0.5) else favoured
