"""Files of distilled sets: others' formats, exports, and `pad-fast export`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from pad_fast import DistilledDataset, load, load_dataset
from pad_fast.data import Pixels, fit_normalization

from ..evaluation import real_images
from ..small import small_data
from .entry import Entry, command, evaluated, in_turn, pixels


def archive(path: Path, **changed: Any) -> Path:
    """A set of the digits as others keep it, with some arrays exchanged; None leaves one out."""
    digits = real_images(load_dataset("digits"))
    arrays = {"images": digits.images.numpy(), "labels": digits.labels.numpy(), "lr": digits.lr, **changed}
    numpy.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def twice(path: Path, *words: object, **given: Any) -> None:
    """What the message says for the library and for the command line."""
    load(path, **given)
    evaluated(path, "--dataset", "digits", "--whitening", "mean-std", *words)


def silent() -> DistilledDataset:
    return replace(real_images(small_data()), whitening=None)


def of_pixels() -> DistilledDataset:
    made = real_images(small_data())
    return replace(made, images=made.pixels(), whitening=Pixels())


def parts(folder: Path, *names: str) -> Path:
    """Files of a set of the small data, without rate where none is named."""
    made = real_images(small_data())
    values = {"images": made.images, "labels": made.targets, "lr": torch.tensor(made.lr)}
    for name in names:
        torch.save(values[next(part for part in values if part in name or name == "mine.pt")], folder / name)
    return folder / names[0]


def exported(path: Path, *words: object) -> None:
    command("export", path, "--to", "png", *words)


def saved(path: Path, **config: str) -> Path:
    """A set of the digits that says its whitening; without its own file, where no settings are given, it does not."""
    made = replace(real_images(load_dataset("digits")), config=config)
    return made.save(path).parent if config else made.export(path, "trio")


def ddranking(folder: Path) -> tuple[object, ...]:
    return "--ddranking", folder / "tensors"


TEN = 10 * pixels(20, 1, 8, 8).numpy()
TEN[0, 0, 0, :2] = 0, 10
SUMS = torch.full((20, 10), 0.2).numpy()

FILES = (
    Entry(
        "an archive without rate",
        lambda tmp: load(archive(tmp / "a.npz", lr=None)),
        r"says no learning rate .*; pass it as lr= \(--lr\)",
        lambda tmp: twice(tmp / "a.npz", "--lr", 0.01, lr=0.01),
    ),
    Entry(
        "an archive of two rates",
        lambda tmp: load(archive(tmp / "a.npz", lr=numpy.ones(2))),
        r"must be one number .*; pass it as lr= \(--lr\)",
        lambda tmp: twice(tmp / "a.npz", "--lr", 0.01, lr=0.01),
    ),
    Entry(
        "images that may be pixels",
        lambda tmp: load(archive(tmp / "a.npz", images=TEN)),
        r"pass images_are='pixels' or images_are='normalized' \(--images\)",
        lambda tmp: in_turn(
            lambda: twice(tmp / "a.npz", "--images", "pixels", images_are="pixels"),
            lambda: twice(tmp / "a.npz", "--images", "normalized", images_are="normalized"),
        ),
    ),
    Entry(
        "a kind of images",
        lambda tmp: load(archive(tmp / "a.npz"), images_are="normalised"),
        "use one of pixels, normalized.* Did you mean 'normalized'",
        lambda tmp: in_turn(
            lambda: load(tmp / "a.npz", images_are="normalized"), lambda: load(tmp / "a.npz", images_are="pixels")
        ),
    ),
    Entry(
        "a kind of labels",
        lambda tmp: load(archive(tmp / "a.npz"), labels_are="logit"),
        "use one of logits, probabilities.* Did you mean 'logits'",
        lambda tmp: load(tmp / "a.npz", labels_are="logits"),
    ),
    Entry(
        "labels that are no probabilities",
        lambda tmp: load(archive(tmp / "a.npz", labels=SUMS), labels_are="probabilities"),
        r"leave it out \(--labels\), or pass labels_are='logits'",
        lambda tmp: in_turn(
            lambda: twice(tmp / "a.npz"), lambda: twice(tmp / "a.npz", "--labels", "logits", labels_are="logits")
        ),
    ),
    Entry(
        "one tensor of a set",
        lambda tmp: load(parts(tmp, "mine.pt", "lr.pt")),
        "name the images' file, images_X.pt, with labels_X.pt .* or put labels.pt beside this one",
        lambda tmp: in_turn(
            lambda: load(parts(tmp, "images_1.pt", "labels_1.pt", "lr_1.pt")),
            lambda: (parts(tmp, "labels.pt"), load(tmp / "mine.pt")),
        ),
    ),
    Entry(
        "images without labels",
        lambda tmp: load(parts(tmp, "images.pt", "lr.pt")),
        "no labels.pt beside it, .*; put it there",
        lambda tmp: (parts(tmp, "labels.pt"), load(tmp / "images.pt")),
    ),
    Entry(
        "pixels of a set that says no whitening",
        lambda tmp: load(parts(tmp, "images_1.pt", "labels_1.pt", "lr_1.pt")).pixels(),
        r"load\(PATH, whitening=.*'zca'\)\), or 'mean-std' \(pad-fast export --whitening zca --dataset NAME\)",
        lambda tmp: in_turn(
            *(
                lambda kind=kind: load(tmp, whitening=fit_normalization(small_data(), kind)).pixels()
                for kind in ("zca", "mean-std")
            ),
            lambda: exported(saved(tmp / "b"), "--out", tmp / "c", "--whitening", "zca", "--dataset", "digits"),
        ),
    ),
    Entry(
        "a format to export",
        lambda tmp: silent().export(tmp, "np"),
        "use one of png, npz, hf, ddranking, trio.* Did you mean 'npz'",
        lambda tmp: in_turn(*(lambda kind=kind: silent().export(tmp / kind, kind) for kind in ("npz", "trio"))),
    ),
    Entry(
        "pixels to be trained on",
        lambda tmp: of_pixels().export(tmp, "trio"),
        r"call normalized\(.*'mean-std'\)\), or 'zca', and export what it returns \(pad-fast export --whitening zca",
        lambda tmp: in_turn(
            *(
                lambda kind=kind: of_pixels().normalized(fit_normalization(small_data(), kind)).export(tmp, "trio")
                for kind in ("mean-std", "zca")
            ),
            lambda: command(
                *("export", archive(tmp / "a.npz", images=pixels(20, 1, 8, 8).numpy()), "--to", "trio"),
                *("--out", tmp / "b", "--whitening", "zca", "--dataset", "digits"),
            ),
        ),
    ),
    Entry(
        "PNG of two channels",
        lambda tmp: replace(of_pixels(), images=pixels(6, 2, 8, 8)).export(tmp / "a", "png"),
        "2 channels; use npz",
        lambda tmp: replace(of_pixels(), images=pixels(6, 2, 8, 8)).export(tmp / "a", "npz"),
    ),
    Entry(
        "a folder that is there",
        lambda tmp: (parts(tmp, "lr.pt"), of_pixels().export(tmp, "png")),
        "name another folder, or delete it",
        lambda tmp: in_turn(
            lambda: of_pixels().export(tmp / "new", "png"),
            lambda: (shutil.rmtree(tmp / "new"), of_pixels().export(tmp / "new", "png")),
        ),
    ),
    Entry(
        "whitening to export of a set that says it",
        lambda tmp: exported(saved(tmp / "a", dataset="digits"), "--whitening", "zca", "--out", tmp / "b"),
        "leave out --whitening",
        lambda tmp: exported(tmp / "a", "--out", tmp / "b"),
    ),
    Entry(
        "a normalisation's file to export of a set that says it",
        lambda tmp: exported(saved(tmp / "a", dataset="digits"), "--normalize", tmp / "a", "--out", tmp / "b"),
        "leave out --whitening, --zca, --mean-std and --normalize",
        lambda tmp: exported(tmp / "a", "--out", tmp / "b"),
    ),
    Entry(
        "whitening to export without data",
        lambda tmp: exported(saved(tmp / "a"), "--whitening", "zca", "--out", tmp / "b"),
        "name them with --dataset",
        lambda tmp: exported(tmp / "a", "--whitening", "zca", "--out", tmp / "b", "--dataset", "digits"),
    ),
    Entry(
        "a set twice in a table",
        lambda tmp: evaluated(saved(tmp / "a", dataset="digits"), tmp / "a"),
        "name each once",
        lambda tmp: evaluated(tmp / "a"),
    ),
    Entry(
        "two sets for DD-Ranking",
        lambda tmp: evaluated(saved(tmp / "a", dataset="digits"), saved(tmp / "b", dataset="digits"), *ddranking(tmp)),
        "name one PATH with it",
        lambda tmp: evaluated(tmp / "a", *ddranking(tmp)),
    ),
    Entry(
        "two sets of different data",
        lambda tmp: evaluated(saved(tmp / "a", dataset="digits"), saved(tmp / "b", dataset="cifar10")),
        "name the data that all are tested on with --dataset",
        lambda tmp: evaluated(tmp / "a", tmp / "b", "--dataset", "digits"),
    ),
)
