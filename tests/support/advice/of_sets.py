"""Distilled sets, normalisation, augmentation and pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pad_fast import DSA, DistilledDataset, evaluate, load, load_dataset, load_normalization
from pad_fast.data import MeanStd, fit_normalization, fit_zca
from pad_fast.data.distilled import DISTILLED
from pad_fast.reporting.contact_sheet import image_grid, png_bytes
from pad_fast.reporting.html.gallery import Picture, PictureRow, gallery

from ..evaluation import SETTINGS, real_images
from ..small import QUIET, small_data
from .entry import Entry, changed, evaluated, in_turn, pixels

X, Y = pixels(12, 1, 8, 8), torch.arange(12) % 3


def trio(root: Path, *, lr: bool = True, labels: bool = True, soft: torch.Tensor | None = None) -> Path:
    data = small_data()
    real_images(data).save(root)
    (root / DISTILLED).unlink()
    if not lr:
        (root / "lr_best.pt").unlink()
    if not labels:
        (root / "labels_best.pt").unlink()
    return root


def quick(distilled: Any, **changes: Any) -> None:
    evaluate(distilled, small_data(), progress=QUIET, **changed(SETTINGS, baselines=False, **changes))


def white(kind: str) -> DistilledDataset:
    return real_images(small_data(), whitening=fit_normalization(small_data(), kind))


def digits(folder: Path) -> Path:
    """Digits in published programs' files, without the learning rate."""
    real_images(load_dataset("digits")).save(folder)
    (folder / DISTILLED).unlink()
    (folder / "lr_best.pt").unlink()
    return folder


def renamed(folder: Path, *parts: str) -> None:
    """The best set as one of averaged images."""
    for part in parts:
        (folder / f"{part}_best.pt").rename(folder / f"ema_{part}_best.pt")


def kornias(path: Path, **changes: torch.Tensor) -> Path:
    """A ZCA as kornia's object has it."""
    fitted = fit_zca(X)
    torch.save({"mean_vector": fitted.mean.reshape(1, -1), "transform_matrix": fitted.transform, **changes}, path)
    return path


def badly_rated(folder: Path) -> Path:
    torch.save([0.1, 0.2], digits(folder) / "lr_best.pt")
    return folder


SETS = (
    Entry(
        "an evaluation of nothing",
        lambda _: evaluate({}, small_data()),
        "name at least one",
        lambda _: quick({"a": real_images(small_data())}),
    ),
    Entry(
        "DSA of integers",
        lambda _: DSA("color")(torch.zeros(2, 1, 8, 8).long()),
        r"floating point images \[N, C, H, W\]",
        lambda _: DSA("color")(torch.zeros(2, 1, 8, 8)),
    ),
    Entry("a mode of DSA", lambda _: DSA("color", mode="quick"), "use one of", lambda _: DSA("color", mode="fast")),
    Entry(
        "an operation of DSA",
        lambda _: DSA("colour_crop"),
        "join some of .* Did you mean 'color'",
        lambda _: in_turn(lambda: DSA("color_crop"), lambda: DSA("none")),
    ),
    Entry("an operation twice", lambda _: DSA("crop_crop"), "name each operation once", lambda _: DSA("crop")),
    Entry(
        "draws for other images",
        lambda _: DSA("crop").apply(X, DSA("crop").draw(5, (8, 8))),
        "draw for the batch's size, or siamese",
        lambda _: in_turn(
            lambda: DSA("crop").apply(X, DSA("crop").draw(12, (8, 8))),
            lambda: DSA("crop").apply(X, DSA("crop", siamese=True).draw(12, (8, 8))),
        ),
    ),
    Entry(
        "a seed and a generator",
        lambda _: DSA("color")(X, generator=torch.Generator(), seed=1),
        "drop one of them",
        lambda _: in_turn(lambda: DSA("color")(X, generator=torch.Generator()), lambda: DSA("color")(X, seed=1)),
    ),
    Entry(
        "ZCA without regulariser",
        lambda _: fit_zca(X, eps=0.0),
        "0.1 is the published value",
        lambda _: fit_zca(X, eps=0.1),
    ),
    Entry("ZCA of one image", lambda _: fit_zca(X[:1]), "at least two training images", lambda _: fit_zca(X[:2])),
    Entry(
        "ZCA of large images",
        lambda _: fit_zca(torch.zeros(2, 3, 128, 128)),
        "Use mean-std normalisation or a smaller resolution",
        lambda _: in_turn(lambda: fit_normalization(small_data(), "mean-std"), lambda: fit_zca(pixels(4, 3, 4, 4))),
    ),
    Entry(
        "ZCA of what is no number",
        lambda _: fit_zca(torch.cat([X, X[:1] * torch.nan])),
        "remove those images",
        lambda _: fit_zca(X),
    ),
    Entry(
        "a normalisation's name",
        lambda _: fit_normalization(small_data(), "zac"),
        "Did you mean 'zca'",
        lambda _: fit_normalization(small_data(), "zca"),
    ),
    Entry(
        "normalising integers",
        lambda _: MeanStd(torch.ones(1), torch.ones(1)).apply(Y),
        r"floating point images \[N, C, H, W\]",
        lambda _: MeanStd(torch.ones(1), torch.ones(1)).apply(X),
    ),
    Entry(
        "a std of nothing",
        lambda _: MeanStd(torch.ones(1), torch.zeros(1)),
        "positive stds",
        lambda _: MeanStd(torch.ones(1), torch.ones(1)),
    ),
    Entry(
        "means of two lengths",
        lambda _: MeanStd(torch.ones(2), torch.ones(1)),
        "one mean and one std per channel",
        lambda _: MeanStd(torch.ones(2), torch.ones(2)),
    ),
    Entry(
        "a set without learning rate",
        lambda tmp: load(trio(tmp, lr=False)),
        r"pass it as lr= \(--lr\)",
        lambda tmp: in_turn(
            lambda: load(tmp, lr=0.01),
            lambda: quick(tmp, lr=0.01, whitening="mean-std"),
            lambda: evaluated(digits(tmp / "other"), "--lr", 0.01, "--whitening", "mean-std", "--dataset", "digits"),
        ),
    ),
    Entry(
        "a set without labels",
        lambda tmp: load(trio(tmp, labels=False)),
        "no labels_best.pt, .* copy it",
        lambda tmp: (torch.save(torch.arange(6) // 2, tmp / "labels_best.pt"), load(tmp)),
    ),
    Entry(
        "a set's pixels",
        lambda tmp: (torch.save(X, trio(tmp) / "images_zca_best.pt"), load(tmp / "images_zca_best.pt")),
        "pixels, .* in images_best.pt or ema_images_best.pt: name that one",
        lambda tmp: in_turn(
            lambda: load(tmp / "images_best.pt"),
            lambda: (renamed(tmp, "images", "labels", "lr"), load(tmp / "ema_images_best.pt")),
        ),
    ),
    Entry(
        "a set's labels for its images",
        lambda tmp: load(trio(tmp) / "labels_best.pt"),
        "name the images' file, images_X.pt",
        lambda tmp: load(tmp / "images_best.pt"),
    ),
    Entry(
        "a set's rates of all iterations",
        lambda tmp: (torch.save([0.1, 0.2], trio(tmp) / "lr_best.pt"), load(tmp)),
        r"one number .*; pass the rate as lr= \(--lr\)",
        lambda tmp: in_turn(
            lambda: load(tmp, lr=0.01),
            lambda: evaluated(badly_rated(tmp / "other"), "--lr", 0.01, "--whitening=mean-std", "--dataset=digits"),
        ),
    ),
    Entry(
        "an iterate that is not there",
        lambda tmp: load(trio(tmp) / "images_7.pt"),
        "no such file; name one of those beside it: images_best.pt",
        lambda tmp: load(tmp / "images_best.pt"),
    ),
    Entry(
        "a folder above a set",
        lambda tmp: (trio(tmp / "Normal"), load(tmp)),
        "sets lie further down, name one of .*Normal",
        lambda tmp: load(tmp / "Normal"),
    ),
    Entry(
        "no set at all",
        lambda tmp: load(tmp / "run"),
        "neither distilled.safetensors nor images_",
        lambda tmp: in_turn(lambda: load(real_images(small_data()).save(tmp / "run")), lambda: load(trio(tmp / "run"))),
    ),
    Entry(
        "an unknown recipe",
        lambda _: quick(real_images(small_data()), recipe="datn"),
        "use one of pad_fast, mtt, datm, ncfm",
        lambda _: [quick(real_images(small_data()), recipe=name) for name in ("pad_fast", "mtt", "datm", "ncfm")],
    ),
    Entry(
        "robust scores by a recipe of others",
        lambda _: quick(real_images(small_data()), recipe="mtt", robust=True),
        r"leave out recipe= \(--recipe\), or robust=",
        lambda _: in_turn(
            lambda: quick(real_images(small_data()), recipe="mtt"),
            lambda: quick(real_images(small_data()), robust=True),
        ),
    ),
    Entry(
        "whitening of a set that says it",
        lambda _: quick(white("zca"), whitening="mean-std"),
        r"leave out whitening= \(--whitening, --zca, --mean-std, --normalize\)",
        lambda _: quick(white("zca")),
    ),
    Entry(
        "a whitening by name where a set is read",
        lambda tmp: load(trio(tmp), whitening="zca"),
        r"fit_normalization\(data, 'zca'\), or 'mean-std', or pad_fast.load_normalization\(FILE\)",
        lambda tmp: in_turn(
            *(
                lambda kind=kind: load(tmp, whitening=fit_normalization(small_data(), kind))
                for kind in ("zca", "mean-std")
            ),
            lambda: load(tmp, whitening=load_normalization(kornias(tmp / "zca.pt"), shape=(1, 8, 8))),
        ),
    ),
    Entry(
        "a whitening's file by its path",
        lambda tmp: quick(trio(tmp), whitening=str(kornias(tmp / "zca.pt"))),
        r"pass pad_fast.load_normalization\(FILE\) \(--normalize FILE\)",
        lambda tmp: in_turn(
            lambda: quick(tmp, whitening=load_normalization(tmp / "zca.pt", shape=(1, 8, 8))),
            lambda: evaluated(
                digits(tmp / "other"), "--lr", 0.01, "--normalize", tmp / "zca.pt", "--dataset", "digits"
            ),
        ),
    ),
    Entry(
        "a normalisation's place",
        lambda tmp: MeanStd(torch.ones(1), torch.ones(1)).save(tmp / "how.pt"),
        "name a file that ends in .safetensors",
        lambda tmp: MeanStd(torch.ones(1), torch.ones(1)).save(tmp / "how.safetensors"),
    ),
    Entry(
        "a normalisation of a set that says none",
        lambda tmp: load_normalization(trio(tmp / "a")),
        "name a set or file that says how it was normalised",
        lambda tmp: in_turn(
            lambda: load_normalization(white("zca").save(tmp / "b")),
            lambda: load_normalization(fit_normalization(small_data(), "zca").save(tmp / "c.safetensors")),
        ),
    ),
    Entry(
        "a normalisation that is a program's object",
        lambda tmp: (torch.save(SimpleNamespace(mean_vector=X), tmp / "zca.pt"), load_normalization(tmp / "zca.pt")),
        r"save torch.save\(\{'mean_vector': zca.mean_vector, 'transform_matrix': zca.transform_matrix\}, FILE\)",
        lambda tmp: (kornias(tmp / "zca.pt"), load_normalization(tmp / "zca.pt", shape=(1, 8, 8))),
    ),
    Entry(
        "a whitening of flat images",
        lambda tmp: load_normalization(kornias(tmp / "zca.pt")),
        r"pass shape=\(C, H, W\) of the images",
        lambda tmp: load_normalization(tmp / "zca.pt", shape=(1, 8, 8)),
    ),
    Entry(
        "a whitening with an inverse of another",
        lambda tmp: load_normalization(kornias(tmp / "zca.pt", transform_inv=torch.eye(64)), shape=(1, 8, 8)),
        "leave it out, it is computed then",
        lambda tmp: load_normalization(kornias(tmp / "zca.pt"), shape=(1, 8, 8)),
    ),
    Entry(
        "means of bytes",
        lambda tmp: (torch.save({"mean": [125.0], "std": [63.0]}, tmp / "a.pt"), load_normalization(tmp / "a.pt")),
        "divide mean and std by 255 .*, or fit a ZCA to pixels from 0 to 1",
        lambda tmp: in_turn(
            lambda: (
                torch.save({"mean": [125 / 255], "std": [63 / 255]}, tmp / "a.pt"),
                load_normalization(tmp / "a.pt"),
            ),
            lambda: load_normalization(kornias(tmp / "zca.pt"), shape=(1, 8, 8)),
        ),
    ),
    Entry(
        "an image of a page that is no picture",
        lambda _: gallery([PictureRow("a", [Picture(b"GIF", "b")])]),
        r"pass the bytes png_bytes\(\) returns",
        lambda _: gallery([PictureRow("a", [Picture(png_bytes(image_grid(X, Y, ["a", "b", "c"])), "b")])]),
    ),
    Entry(
        "a picture of two axes",
        lambda _: image_grid(X[0, 0], Y[:1], ["a"]),
        r"images \[N, C, H, W\]",
        lambda _: image_grid(X[:1], Y[:1], ["a"]),
    ),
    Entry(
        "a picture of integers",
        lambda _: image_grid(X.long(), Y, ["a", "b", "c"]),
        "float or uint8 images",
        lambda _: in_turn(
            lambda: image_grid(X, Y, ["a", "b", "c"]), lambda: image_grid((X * 255).byte(), Y, ["a", "b", "c"])
        ),
    ),
    Entry(
        "a picture without label",
        lambda _: image_grid(X, Y[:3], ["a", "b", "c"]),
        "one integer label per image",
        lambda _: image_grid(X, Y, ["a", "b", "c"]),
    ),
    Entry(
        "a column of nothing",
        lambda _: image_grid(X, Y, ["a", "b", "c"], max_columns=0),
        "must be at least 1",
        lambda _: image_grid(X, Y, ["a", "b", "c"], max_columns=1),
    ),
)
