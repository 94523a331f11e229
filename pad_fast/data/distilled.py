"""The result: a handful of images, their labels, a learning rate, and what is needed to use them elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .._version import __version__
from ..errors import ConfigError, StoreError, nearest
from ..runtime import files, tensor_files
from . import DSA, Normalization, Pixels, formats, normalization_from_state
from .arrays import to_bytes
from .formats import Contents, as_images, ddranking, hub, npz, parquet, pngs
from .labels import targets_of
from .loader import Loader
from .plot import plot, sheet_of
from .trio import LOOKED_FOR, Trio, find_trio, sets_in

FORMAT = "pad_fast distilled 1"
DISTILLED = "distilled.safetensors"
EXPORTS = ("png", "npz", "hf", "ddranking", "trio")
"""Formats of :meth:`DistilledDataset.export`."""

_WHAT, _WAY_OUT = "distilled set", "repeat the run that wrote it, or bring it back from a copy"
_SUFFIXES = (".safetensors", ".npz", ".npy", ".pt")
_NAMED = 5  # of many files or folders, in a message
_CELL = 48  # pixels that an image is high in a notebook, at least


@dataclass(frozen=True, eq=False)
class DistilledDataset:
    """A distilled data set.

    Attributes:
        images: normalised (whitened) images `[N, C, H, W]` float32: what networks are trained on.
        label_logits: soft labels before the softmax `[N, classes]` float32; None when labels are hard.
        labels: class each image was made for, int64 `[N]`. A soft label may have moved to another class, see `moved`.
        lr: the learning rate that was distilled with the images.
        whitening: turns images back into pixels, and test images into what a trained network expects; None when a
            file did not carry it.
        config: settings of the run.
        history: one row per iteration (iteration, loss, lr, start_epoch, skipped).
        class_names: of the original data set.
        evaluation: accuracy rows, when the run evaluated itself.
        folder: that it was read from, or that its run wrote it to.
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
    folder: Path | None = None

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

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        """Image and target of one, or images and targets of several, as :meth:`as_dataset` has them."""
        targets = self.targets[index]
        return self.images[index], targets.softmax(-1) if targets.is_floating_point() else targets

    def _repr_png_(self) -> bytes:
        """In notebooks: the images, a row for each class."""
        silent = self.whitening is None
        shown = to_bytes(self.images if silent else self.pixels(), stretch=silent)
        _, sheet = sheet_of(shown, self.labels, self._names, columns=10)
        times = -(-_CELL // self.images.shape[2])  # every pixel becomes a square
        large = sheet.repeat_interleave(times, 0).repeat_interleave(times, 1)
        return pngs.png_files(large.permute(2, 0, 1)[None].float() / 255, "the sheet")[0]

    def to(self, device: str | torch.device) -> DistilledDataset:
        """The same set with images and labels on a device."""
        logits = None if self.label_logits is None else self.label_logits.to(device)
        return replace(self, images=self.images.to(device), label_logits=logits, labels=self.labels.to(device))

    @property
    def moved(self) -> Tensor:
        """Whether each image's soft label is largest at another class than it was made for, bool `[N]`."""
        if self.label_logits is None:
            return torch.zeros_like(self.labels, dtype=torch.bool)
        return self.label_logits.argmax(-1) != self.labels

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

    @property
    def are_pixels(self) -> bool:
        """Whether the images are pixels, not normalised yet, as files of other programs may hold them."""
        return isinstance(self.whitening, Pixels)

    def pixels(self) -> Tensor:
        """Images with whitening undone `[N, C, H, W]`; natural pixels lie in [0, 1], distilled ones may exceed it.

        Raises:
            StoreError: the whitening is not known.
        """
        if self.whitening is None:
            raise StoreError(
                "this distilled set carries no whitening, so its images cannot be turned into pixels; pass it as "
                "pad_fast.load(PATH, whitening=pad_fast.data.fit_normalization(data, 'zca')), or 'mean-std' (pad-fast "
                "export --whitening zca --dataset NAME)"
            )
        return self.whitening.invert(self.images)

    def normalized(self, whitening: Normalization) -> DistilledDataset:
        """The same pictures under this normalisation; of pixels, what networks are trained on.

        Raises:
            StoreError: they have another one, which is not known.
        """
        return replace(self, images=whitening.apply(self.pixels()), whitening=whitening)

    def as_dataset(self) -> TensorDataset:
        """A torch data set of (image, target): target probabilities when labels are soft, else a class."""
        targets = self.labels if self.label_logits is None else self.label_logits.softmax(-1)
        return TensorDataset(self.images, targets)

    def loader(
        self,
        *,
        batch: int = 128,
        augment: bool | str | DSA = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> Loader:
        """Batches of (images, targets) for a training loop; every pass over it is an epoch with an order of its own.

        Targets are probabilities `[B, classes]` where labels are soft, else classes `[B]`: torch's `cross_entropy`
        takes either.

        Args:
            augment: True for the DSA that the set was distilled with (the published one where it does not say), False
                for none, a strategy, or a :class:`pad_fast.DSA`.
            device: where images and targets are kept.

        Example:
            >>> images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
            >>> made = DistilledDataset(images, None, labels, lr=0.05, whitening=None, config={})
            >>> [(len(x), y.dtype) for x, y in made.loader(batch=4, seed=1)]
            [(4, torch.int64), (2, torch.int64)]
        """
        if isinstance(augment, bool):
            augment = str(self.config.get("dsa", DSA().strategy)) if augment else "none"
        if isinstance(augment, str):
            augment = DSA(augment)
        images, targets = (tensor.to(device) for tensor in self.as_dataset().tensors)
        return Loader(images, targets, batch=batch, augment=augment, seed=seed)

    def plot(self, *, columns: int = 10) -> Any:
        """A matplotlib figure with a row for every class; images whose whitening is not known are stretched.

        Raises:
            ConfigError: the package matplotlib is missing.
        """
        silent = self.whitening is None
        shown = to_bytes(self.images if silent else self.pixels(), stretch=silent)
        return plot(shown, self.labels, self._names, columns=columns)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `distilled.safetensors` and the reference's trio of .pt files into `folder`, each atomically.

        A set of pixels has no trio, which holds what networks are trained on.
        """
        folder = Path(folder)
        self._write(folder)
        if not self.are_pixels:
            self._write_trio(folder)
        return folder / DISTILLED

    def export(self, path: str | os.PathLike[str], format: str) -> Path:
        """Write the set for other programs; docs/distilled.md says what each format keeps.

        Args:
            path: a folder; a new one for "png" and "hf". Of "npz" it may be the file.
            format: "png", a folder for each class and `labels.csv`; "npz", which loses nothing; "hf", what
                `datasets.load_dataset` opens; "ddranking", the tensors of its metrics; "trio", published programs'
                files.

        Returns:
            What was written: the folder, or the file of "npz".

        Raises:
            ConfigError: an unknown format, or its package is missing.
            DatasetError: classes of unequal size, which DD-Ranking cannot number.
            StoreError: the format cannot hold the images, or the place cannot be written to.
        """
        path = Path(path)
        if format not in EXPORTS:
            raise ConfigError(
                f"export format {format!r} is unknown; use one of {', '.join(EXPORTS)}.{nearest(format, EXPORTS)}"
            )
        if format == "png":
            return pngs.write(path, self.pixels(), self.labels, self.label_logits, self.lr, self._names)
        if format == "npz":
            return npz.write(path if path.suffix == ".npz" else path / npz.NAME, *self._stored())
        if self.are_pixels:
            raise StoreError(
                f"{format} holds images that networks are trained on, and these are pixels; call normalized("
                "pad_fast.data.fit_normalization(data, 'mean-std')), or 'zca', and export what it returns "
                "(pad-fast export --whitening zca --dataset NAME)"
            )
        if format == "ddranking":
            return ddranking.write(path, self.images, self.targets, self.labels, self.classes, self.lr)
        if format == "trio":
            return self._write_trio(path)
        with files.new_folder(path) as new:
            drawable = self.whitening is not None and self.images.shape[1] in (1, 3)
            pixels = self.pixels() if drawable else None
            parquet.write(new, self.images, pixels, self.labels, self.label_logits, self.lr, self._names)
            self._write(new)
        return path

    def save_hf(self, repository: str, *, private: bool = False) -> None:
        """Send what `export(format="hf")` writes to the Hugging Face Hub; `load("hf:OWNER/NAME")` reads it again.

        Args:
            repository: "OWNER/NAME" of a data set repository, made where it is not there yet.

        Raises:
            ConfigError: the package huggingface_hub or pyarrow is missing.
            StoreError: the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            hub.send(self.export(Path(folder, "set"), "hf"), repository, private=private)

    @property
    def _names(self) -> tuple[str, ...]:
        """Names of all classes; numbers where the set does not know them."""
        return self.class_names or tuple(str(label) for label in range(self.classes))

    def _stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything there is to keep, as tensors and a description."""
        tensors = {"images": self.images, "labels": self.labels}
        if self.label_logits is not None:
            tensors["label_logits"] = self.label_logits
        # The learning rate as float64, so that a round trip is exact.
        tensors["lr"] = torch.tensor(self.lr, dtype=torch.float64)
        if self.whitening is not None:
            tensors |= {f"whitening.{name}": value for name, value in self.whitening.state().items()}
        return tensors, {
            "format": FORMAT,
            "pad_fast": __version__,
            "config": dict(self.config),
            "class_names": list(self.class_names),
            "history": [dict(row) for row in self.history],
        }

    def _write(self, folder: Path) -> None:
        files.write_bytes(folder / DISTILLED, tensor_files.pack_tensors(*self._stored()))

    def _write_trio(self, folder: Path) -> Path:
        Trio(folder).write(self.images, self.targets, torch.tensor(self.lr, dtype=torch.float64))
        return folder


def load(
    path: str | os.PathLike[str],
    *,
    lr: float | None = None,
    whitening: Normalization | None = None,
    labels_are: str | None = None,
    images_are: str | None = None,
) -> DistilledDataset:
    """Load a distilled set: a folder or file of ours, what published programs save, or what else others keep sets in.

    Of published programs' files (`images_X.pt`, `labels_X.pt`, `lr_X.pt`; FTD's averages `ema_images_X.pt`,
    `ema_labels_X.pt`) a folder's averaged set is read, else the best one, else that of the latest iteration; naming an
    images file reads that one. Of others: `.npz` (images, labels, lr), one `.pt` with a dict or a tuple of these,
    `images.npy` or `.pt` with its labels beside, a folder of images for each class (with `labels.csv` or without), and
    "hf:OWNER/NAME" on the Hugging Face Hub. docs/distilled.md has the whole table.

    Integer labels are hard; floating ones are logits, or probabilities where every row adds up to 1.

    Args:
        lr: learning rate in place of the stored one; the programs of MTT, FTD and TESLA store none.
        whitening: how the images were normalised, in place of what is stored; published programs store nothing, but
            :func:`pad_fast.data.fit_normalization` finds it again from the data. Pixels are normalised with it; without
            it they stay pixels, which :func:`pad_fast.evaluate` normalises.
        labels_are: "logits" or "probabilities", of soft labels whose file does not say it, where that is not to be
            guessed.
        images_are: "pixels" or "normalized", of images that others saved, in the same way; images of published
            programs' three files are taken for normalised ones.

    Raises:
        ConfigError: an unknown kind of labels or images, or the Hub's package is missing.
        StoreError: nothing there, truncated, or foreign.

    Warns:
        UserWarning: labels are probabilities.
    """
    if os.fspath(path).startswith(hub.PREFIX):
        found = _found(Path(hub.fetched(os.fspath(path))), lr, labels_are, images_are)
    else:
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        found = replace(_found(path, lr, labels_are, images_are), folder=folder)
    return found if whitening is None else with_whitening(found, whitening)


def with_whitening(distilled: DistilledDataset, whitening: Normalization) -> DistilledDataset:
    """A set of which is known how it was normalised; pixels are normalised so.

    Raises:
        ConfigError: a name or a path in place of a normalisation.
        InputError: it is of images of another shape.
    """
    if not isinstance(whitening, Normalization):
        raise ConfigError(
            f"whitening is {whitening!r}; pass a normalisation: pad_fast.data.fit_normalization(data, 'zca'), or "
            "'mean-std', or pad_fast.load_normalization(FILE)"
        )
    whitening.invert(distilled.images[:1])
    return distilled.normalized(whitening) if distilled.are_pixels else replace(distilled, whitening=whitening)


def _found(path: Path, lr: float | None, labels_are: str | None, images_are: str | None) -> DistilledDataset:
    ours = path / DISTILLED if path.is_dir() else path
    if ours.is_file() and ours.suffix == ".safetensors":
        with tensor_files.read_tensors(ours, _WHAT, FORMAT, way_out=_WAY_OUT) as (tensors, described):
            return _of_ours(tensors, described, lr)
    if trio := find_trio(path):
        images, labels, rate = trio.read(lr)
        kind = images_are or ("normalized" if images.is_floating_point() else None)
        return _of_others(Contents(trio.path("images"), images, labels, rate), lr, labels_are, kind)
    archive = path / npz.NAME if path.is_dir() else path
    if archive.is_file() and archive.suffix == ".npz" and (read := npz.read_ours(archive)):
        with files.reading(archive, _WHAT, way_out=_WAY_OUT):
            files.require_format(read[1], FORMAT, archive, _WHAT, way_out=_WAY_OUT)
            return _of_ours(*read, lr)
    contents = formats.read(path)
    if contents is None:
        raise StoreError(f"no distilled set at {path}: there is {_missing(path)}")
    return _of_others(contents, lr, labels_are, images_are)


def _of_ours(tensors: Mapping[str, Tensor], described: Mapping[str, Any], lr: float | None) -> DistilledDataset:
    state = {k.removeprefix("whitening."): v for k, v in tensors.items() if k.startswith("whitening.")}
    return DistilledDataset(
        images=tensors["images"],
        label_logits=tensors.get("label_logits"),
        labels=tensors["labels"],
        lr=float(tensors["lr"]) if lr is None else lr,
        whitening=normalization_from_state(state) if state else None,
        config=described["config"],
        history=described["history"],
        class_names=tuple(described["class_names"]),
    )


def _of_others(
    contents: Contents, lr: float | None, labels_are: str | None, images_are: str | None
) -> DistilledDataset:
    images, are_pixels = as_images(contents.images, contents.path, images_are)
    targets = targets_of(contents.labels, contents.path, contents.labels_are or labels_are)
    soft = targets.is_floating_point()
    labels = targets if not soft else _classes(targets) if contents.classes is None else contents.classes
    # A table names the classes that have images, which need not be all that soft labels know.
    names = () if soft and len(contents.class_names) != targets.shape[1] else contents.class_names
    return DistilledDataset(
        images=images,
        label_logits=targets if soft else None,
        labels=labels,
        lr=contents.rate if lr is None else lr,
        whitening=Pixels() if are_pixels else None,
        config={},
        class_names=names,
    )


def _missing(path: Path) -> str:
    """What is not at `path`, and what comes close."""
    if path.is_file():
        return f"a file that is none of {', '.join(_SUFFIXES)}"
    if path.suffix in _SUFFIXES:
        beside = [trio.path("images").name for trio in sets_in(path.parent)]
        return "no such file" + (f"; name one of those beside it: {_few(beside)}" if beside else "")
    said = f"neither {DISTILLED} nor {LOOKED_FOR}, nor {formats.LOOKED_FOR}"
    if pixels := sorted(file.name for file in path.glob("images_zca_*.pt")):
        said += f"; {_few(pixels)} are pixels, for looking at"
    below = {trio.folder for trio in sets_in(path, below=True)} | {file.parent for file in path.rglob(DISTILLED)}
    if below:
        said += f"; sets lie further down, name one of {_few(sorted(map(str, below)))}"
    return said


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


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
