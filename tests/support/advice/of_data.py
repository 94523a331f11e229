"""Data sets, their files, normalisation and augmentation."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pad_fast import ImageDataset, load_dataset
from pad_fast.data.idx import read_idx

from ..items import Items
from .entry import Entry, in_turn, pixels

X, Y = pixels(12, 1, 8, 8), torch.arange(12) % 3
SOFT = (torch.eye(3)[Y] + 0.1) / 1.3
MULTI = torch.eye(3)[Y].long()
MULTI[:3, 0] = 1


class Flickering(Items):
    """One whose images change from one reading to the next."""

    def __getitem__(self, index: int) -> Any:
        image, label = self.items[index]
        return image + 0.1 * torch.rand(1), label


class Med(Items):
    """What MedMNIST's objects have."""

    def __init__(self, images: np.ndarray, labels: torch.Tensor, task: str = "multi-class") -> None:
        super().__init__(list(zip(images, labels, strict=True)))
        self.imgs, self.labels, self.info = images, labels.numpy(), {"task": task}


def labelled(*names: str) -> Items:
    made = items(*X)
    made.classes = names  # type: ignore[attr-defined]
    return made


def archive(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "set.npz", **arrays)  # type: ignore[arg-type]
    return folder / "set.npz"


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y.tolist(), strict=True))


def items(*images: Any) -> Items:
    return Items([(image, index % 2) for index, image in enumerate(images)])


def tree(root: Path, *files: str, size: int = 8) -> Path:
    """A folder with noise images; names that end in anything but .png are made without one."""
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            noise = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        else:
            path.mkdir(exist_ok=True)
    return root


CLASSES = tuple(f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(3))


def folder(root: Path) -> ImageDataset:
    return load_dataset(f"imagefolder:{root}")


def linked(root: Path) -> Path:
    tree(root, *CLASSES)
    (root / "train" / "a" / "back").symlink_to(root / "test")
    return root


def damaged(root: Path, content: bytes) -> Path:
    tree(root, *CLASSES)
    (root / "train" / "a" / "0.png").write_bytes(content)
    return root


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="ICO")
    return buffer.getvalue()


def imagenet(root: Path, classes: int) -> Path:
    return tree(root, *(f"{split}/n{label:08}/0.png" for split in ("train", "val") for label in range(classes)))


DATA = (
    Entry(
        "a tuple of three",
        lambda _: load_dataset((X, Y, X)),
        r"2 parts .* or 4 \(train_images",
        lambda _: in_turn(lambda: load_dataset((X, Y)), lambda: load_dataset((X, Y, X, Y))),
    ),
    Entry(
        "a class of one image",
        lambda _: load_dataset((X, torch.tensor([0] * 11 + [1]))),
        r"add images, or pass \(train_images, train_labels, test_images, test_labels\)",
        lambda _: in_turn(
            lambda: load_dataset((X, torch.tensor([0] * 10 + [1, 1]))),
            lambda: load_dataset((X, torch.tensor([0] * 11 + [1]), X, Y % 2)),
        ),
    ),
    Entry(
        "two dtypes",
        lambda _: load_dataset(items(X[0], (X[1] * 255).byte(), X[2], X[3])),
        "all of them in one dtype",
        lambda _: load_dataset(items(*X[:4])),
    ),
    Entry(
        "a mean alone",
        lambda _: load_dataset({"images": X, "labels": Y, "mean": [0.5]}),
        "both mean and std, or neither",
        lambda _: in_turn(
            lambda: load_dataset({"images": X, "labels": Y, "mean": [0.5], "std": [0.2]}),
            lambda: load_dataset({"images": X, "labels": Y}),
        ),
    ),
    Entry(
        "a mean of another scale",
        lambda _: load_dataset({"images": X, "labels": Y, "mean": [127.5], "std": [51]}),
        "Divide mean and std by 255, or leave them out",
        lambda _: in_turn(
            lambda: load_dataset({"images": X, "labels": Y, "mean": [127.5 / 255], "std": [51 / 255]}),
            lambda: load_dataset({"images": X, "labels": Y}),
        ),
    ),
    Entry(
        "an image without label",
        lambda _: load_dataset((X, Y[:11])),
        "each image needs one label",
        lambda _: load_dataset((X[:11], Y[:11])),
    ),
    Entry(
        "classes below 0",
        lambda _: load_dataset((X, Y - 1)),
        r"torch.unique\(labels, return_inverse=True\)\[1\]",
        lambda _: load_dataset((X, torch.unique(Y - 1, return_inverse=True)[1])),
    ),
    Entry(
        "ignored labels",
        lambda _: load_dataset((X, torch.where(Y == 2, -100, Y))),
        "leave those images out",
        lambda _: load_dataset((X[Y != 2], Y[Y != 2])),
    ),
    Entry(
        "labels of two kinds, true or false",
        lambda _: load_dataset((X, Y > 1)),
        r"labels.long\(\)",
        lambda _: load_dataset((X, (Y > 1).long())),
    ),
    Entry(
        "numbers to be predicted",
        lambda _: load_dataset((X, Y / 2)),
        r"torch.bucketize\(labels, edges\)",
        lambda _: load_dataset((X, torch.bucketize(Y / 2, torch.tensor([0.25, 0.75])))),
    ),
    Entry(
        "soft labels of real images",
        lambda _: load_dataset((X, SOFT)),
        r"labels.argmax\(1\)",
        lambda _: load_dataset((X, SOFT.argmax(1))),
    ),
    Entry(
        "several classes for an image",
        lambda _: load_dataset((X, MULTI)),
        r"those of labels.sum\(1\) == 1",
        lambda _: load_dataset((X[MULTI.sum(1) == 1], MULTI[MULTI.sum(1) == 1])),
    ),
    Entry(
        "another number of classes for each image",
        lambda _: load_dataset((X, [[0], [0, 1]] * 6)),
        "give each image one integer class id",
        lambda _: load_dataset((X, [[0], [1]] * 6)),
    ),
    Entry(
        "a label that is nothing",
        lambda _: load_dataset((X, [None] * 12)),
        "must be an integer class id; .* A class's name or a one-hot row will do",
        lambda _: in_turn(
            lambda: load_dataset((X, Y.tolist())),
            lambda: load_dataset((X, [f"class {label}" for label in Y.tolist()])),
            lambda: load_dataset((X, torch.eye(3)[Y].tolist())),
        ),
    ),
    Entry(
        "names for some images",
        lambda _: load_dataset((X, [*["a", "b", "c"] * 3, "a", "b", None])),
        "label 11 of the data set is None, and others are names; give every image one",
        lambda _: load_dataset((X, ["a", "b", "c"] * 4)),
    ),
    Entry(
        "names beside numbers",
        lambda _: load_dataset((X, ["a", "b", "c"] * 4, X, Y)),
        "give names in both, or integer class ids in both",
        lambda _: in_turn(
            lambda: load_dataset((X, ["a", "b", "c"] * 4, X, ["c", "b", "a"] * 4)), lambda: load_dataset((X, Y, X, Y))
        ),
    ),
    Entry(
        "names that class_names has not",
        lambda _: load_dataset({"images": X, "labels": ["a", "b", "c"] * 4, "class_names": ["a", "b"]}),
        "add them there, or leave class_names out",
        lambda _: in_turn(
            lambda: load_dataset({"images": X, "labels": ["a", "b", "c"] * 4, "class_names": ["c", "a", "b"]}),
            lambda: load_dataset({"images": X, "labels": ["a", "b", "c"] * 4}),
        ),
    ),
    Entry(
        "labels that are a number",
        lambda _: load_dataset((X, 3)),
        "a tensor, an array or a list with one class per image",
        lambda _: in_turn(lambda: load_dataset((X, Y)), lambda: load_dataset((X, Y.numpy()))),
    ),
    Entry(
        "splits on two scales",
        lambda _: load_dataset((X * 255, Y, X, Y)),
        r"Give all of them as uint8, or as floating point in \[0, 1\]",
        lambda _: in_turn(
            lambda: load_dataset(((X * 255).byte(), Y, (X * 255).byte(), Y)), lambda: load_dataset((X, Y, X, Y))
        ),
    ),
    Entry(
        "a random transform",
        lambda _: load_dataset(Flickering(list(zip(X, Y.tolist(), strict=True)))),
        "Leave random transforms out",
        lambda _: load_dataset(Items(list(zip(X, Y.tolist(), strict=True)))),
    ),
    Entry(
        "a pair with other classes",
        lambda _: load_dataset((labelled("a", "b"), labelled("a", "c"))),
        "Both need the same ones in the same order",
        lambda _: load_dataset((labelled("a", "b"), labelled("a", "b"))),
    ),
    Entry(
        "volumes of MedMNIST",
        lambda _: load_dataset(Med(np.zeros((12, 8, 8, 8), np.uint8), Y)),
        "Use a two-dimensional set of MedMNIST, or pass slices of the volumes as arrays",
        lambda _: in_turn(
            lambda: load_dataset(Med((X[:, 0] * 255).byte().numpy(), Y)),
            lambda: load_dataset((np.zeros((12, 8, 8, 8), np.uint8)[:, 4], Y)),
        ),
    ),
    Entry(
        "findings of MedMNIST",
        lambda _: load_dataset(Med((X[:, 0] * 255).byte().numpy(), MULTI, task="multi-label, binary-class")),
        r"Use a set with one class an image, or pass as arrays .* labels.sum\(1\) == 1",
        lambda _: in_turn(
            lambda: load_dataset(Med((X[:, 0] * 255).byte().numpy(), Y)),
            lambda: load_dataset((X[MULTI.sum(1) == 1], MULTI[MULTI.sum(1) == 1])),
        ),
    ),
    Entry(
        "an archive with objects",
        lambda tmp: load_dataset(archive(tmp, images=X.numpy(), labels=np.array(["a", "b"] * 6, dtype=object))),
        r"save numbers, and names as np.array\(names, dtype=str\)",
        lambda tmp: load_dataset(archive(tmp, images=X.numpy(), labels=np.array(["a", "b"] * 6, dtype=str))),
    ),
    Entry(
        "a loader",
        lambda _: load_dataset(torch.utils.data.DataLoader(items(*X))),
        "Of a DataLoader give its .dataset",
        lambda _: load_dataset(torch.utils.data.DataLoader(items(*X)).dataset),
    ),
    Entry(
        "an item without label",
        lambda _: load_dataset(Items(list(X))),
        r"pair \(image, label\)",
        lambda _: load_dataset(Items(list(zip(X, Y.tolist(), strict=True)))),
    ),
    Entry(
        "images of two axes",
        lambda _: load_dataset((X[:, 0, 0], Y)),
        r"must be \[N, C, H, W\] or \[N, H, W\]",
        lambda _: in_turn(lambda: load_dataset((X, Y)), lambda: load_dataset((X[:, 0], Y))),
    ),
    Entry(
        "an image of one axis",
        lambda _: load_dataset(items(*X[:4, 0, 0])),
        r"one image \[C, H, W\] or \[H, W\]",
        lambda _: in_turn(lambda: load_dataset(items(*X[:4])), lambda: load_dataset(items(*X[:4, 0]))),
    ),
    Entry(
        "images by name",
        lambda _: load_dataset(("a.png", Y)),
        "a tensor, an array or a list of images",
        lambda _: in_turn(lambda: load_dataset((X.numpy(), Y)), lambda: load_dataset((list(X), Y))),
    ),
    Entry(
        "an image by name",
        lambda _: load_dataset(items("a.png", "b.png")),
        "a tensor, an array or a PIL image",
        lambda _: load_dataset(items(*[Image.fromarray((x * 255).byte().numpy()) for x in X[:4, 0]])),
    ),
    Entry(
        "pixels as int32",
        lambda _: load_dataset(((X * 255).int(), Y)),
        r"give uint8 \(0 to 255\) or floating point pixels",
        lambda _: in_turn(lambda: load_dataset(((X * 255).byte(), Y)), lambda: load_dataset((X, Y))),
    ),
    Entry(
        "two sizes",
        lambda _: load_dataset(items(X[0], X[1, :, :6, :6], X[2], X[3])),
        "Pass resolution= to resize them all",
        lambda _: load_dataset(items(X[0], X[1, :, :6, :6], X[2], X[3]), resolution=8),
    ),
    Entry(
        "two numbers of channels",
        lambda _: load_dataset(items(X[0], X[1].repeat(2, 1, 1), X[2], X[3])),
        "has 1, others have 2. Give all of them with the same",
        lambda _: in_turn(
            lambda: load_dataset(items(*(x.repeat(2, 1, 1) for x in X[:4]))),
            lambda: load_dataset(items(X[0], X[1].repeat(3, 1, 1), X[2], X[3])),
        ),
    ),
    Entry(
        "an unknown key",
        lambda _: load_dataset({"image": X, "labels": Y}),
        "Did you mean 'images'",
        lambda _: load_dataset({"images": X, "labels": Y}),
    ),
    Entry(
        "the same under two names",
        lambda _: load_dataset({"train_images": X, "x_train": X, "y_train": Y}),
        "Keep one of them",
        lambda _: in_turn(
            lambda: load_dataset({"x_train": X, "y_train": Y}), lambda: load_dataset({"train_images": X, "y_train": Y})
        ),
    ),
    Entry(
        "a missing key",
        lambda _: load_dataset({"images": X}),
        "or images and labels",
        lambda _: in_turn(
            lambda: load_dataset({"images": X, "labels": Y}),
            lambda: load_dataset({"train_images": X, "train_labels": Y, "test_images": X, "test_labels": Y}),
        ),
    ),
    Entry(
        "a stream",
        lambda _: load_dataset(Stream()),
        "give a map-style torch Dataset",
        lambda _: load_dataset(Items(list(Stream()))),
    ),
    Entry(
        "a mean of a word",
        lambda _: load_dataset({"images": X, "labels": Y, "mean": "a", "std": "b"}),
        "one number per channel",
        lambda _: load_dataset({"images": X, "labels": Y, "mean": [0.5], "std": [0.2]}),
    ),
    Entry(
        "a mean too many",
        lambda _: load_dataset({"images": X, "labels": Y, "mean": [0.5, 0.5], "std": [0.2, 0.2]}),
        "one number for each of the 1 channels",
        lambda _: load_dataset({"images": X, "labels": Y, "mean": [0.5], "std": [0.2]}),
    ),
    Entry(
        "a number as data",
        lambda _: load_dataset(3),
        "give a name, imagefolder:PATH, hf:NAME, a .npz file, tensors",
        lambda tmp: in_turn(
            lambda: load_dataset("digits"),
            lambda: load_dataset((X, Y)),
            lambda: load_dataset(items(*X)),
            lambda: folder(tree(tmp, *CLASSES)),
            lambda: load_dataset({"images": X, "labels": Y}),
            lambda: load_dataset(archive(tmp, images=X.numpy(), labels=Y.numpy())),
        ),
    ),
    Entry(
        "no pixels",
        lambda _: load_dataset("digits", resolution=0),
        "positive whole number of pixels",
        lambda _: load_dataset((pixels(12, 3, 16, 16), Y), resolution=8),
    ),
    Entry(
        "oblong images",
        lambda _: load_dataset((pixels(12, 1, 8, 6), Y)),
        "Pass resolution= to resize and crop them",
        lambda _: load_dataset((pixels(12, 1, 8, 6), Y), resolution=6),
    ),
    Entry(
        "channels taken for rows",
        lambda _: load_dataset((pixels(12, 8, 10, 2).numpy(), Y)),
        r"images.permute\(0, 3, 1, 2\)",
        lambda _: load_dataset((pixels(12, 8, 10, 2), Y), resolution=8),
    ),
    Entry(
        "a pixel that is no number",
        lambda _: load_dataset((torch.where(torch.arange(12)[:, None, None, None] == 5, torch.nan, X), Y)),
        "remove or repair it",
        lambda _: load_dataset((X[torch.arange(12) != 5], Y[torch.arange(12) != 5])),
    ),
    Entry(
        "splits of two sizes",
        lambda _: load_dataset((X, Y, X[..., :6, :6], Y)),
        "both need the same channels and size",
        lambda _: load_dataset((X, Y, X[..., :6, :6], Y), resolution=6),
    ),
    Entry("one class", lambda _: load_dataset((X, Y * 0)), "needs at least two", lambda _: load_dataset((X, Y % 2))),
    Entry(
        "a class without test images",
        lambda _: load_dataset((X, Y, X, Y % 2)),
        "every class needs training and test images: add some, or leave the class out of both",
        lambda _: in_turn(
            lambda: load_dataset((X, Y, X, Y)), lambda: load_dataset((X[Y < 2], Y[Y < 2], X[Y < 2], Y[Y < 2]))
        ),
    ),
    Entry(
        "an unknown name",
        lambda _: load_dataset("cifar"),
        "known are digits, .* imagefolder:PATH",
        lambda _: load_dataset("digits"),
    ),
    Entry(
        "a misspelt name", lambda _: load_dataset("digts"), "Did you mean 'digits'", lambda _: load_dataset("digits")
    ),
    Entry(
        "no such folder",
        lambda tmp: folder(tmp / "data"),
        "does not exist",
        lambda tmp: folder(tree(tmp / "data", *CLASSES)),
    ),
    Entry(
        "a folder of no classes",
        lambda tmp: folder(tree(tmp, "train/0.png")),
        "no class folders; expected",
        lambda tmp: folder(tree(tmp / "new", *CLASSES)),
    ),
    Entry(
        "a folder of nothing",
        lambda tmp: folder(tmp),
        r"needs train/<class>/<image file> and test/.*or <class>/<image file>",
        lambda tmp: in_turn(
            lambda: folder(tree(tmp / "one", *CLASSES)),
            lambda: folder(tree(tmp / "two", *(name.replace("test", "valid") for name in CLASSES))),
            lambda: folder(tree(tmp / "three", "a/0.png", "a/1.png", "b/0.png", "b/1.png")),
        ),
    ),
    Entry(
        "a class folder without images",
        lambda tmp: folder(tree(tmp, *CLASSES, "train/c/x.txt", "test/c/0.png")),
        "holds no images",
        lambda tmp: folder(tree(tmp, "train/c/0.png")),
    ),
    Entry(
        "different classes",
        lambda tmp: folder(tree(tmp, *CLASSES, "train/c/0.png")),
        "Both need the same class folders",
        lambda tmp: folder(tree(tmp, "test/c/0.png")),
    ),
    Entry(
        "a link back",
        lambda tmp: folder(linked(tmp)),
        "Remove the link, or put a copy",
        lambda tmp: ((tmp / "train" / "a" / "back").unlink(), folder(tmp)),
    ),
    Entry(
        "an empty file",
        lambda tmp: folder(damaged(tmp, b"")),
        "Repair or remove the file",
        lambda tmp: ((tmp / "train" / "a" / "0.png").unlink(), folder(tmp)),
    ),
    Entry(
        "a file of another kind",
        lambda tmp: folder(damaged(tmp, gif())),
        "it is none of .* Repair or remove the file",
        lambda tmp: ((tmp / "train" / "a" / "0.png").unlink(), folder(tmp)),
    ),
    Entry(
        "a truncated image",
        lambda tmp: folder(damaged(tmp, picture()[:-30])),
        "Repair or remove the file",
        lambda tmp: (tree(tmp, *CLASSES), folder(tmp)),
    ),
    Entry(
        "CIFAR-10 that is not there",
        lambda tmp: load_dataset("cifar10", data_dir=tmp),
        r"data_dir=, or fetch them with download=True",
        lambda _: load_dataset("digits"),
    ),  # the files themselves are tests/data/test_dataset_files.py's,
    Entry(
        "Tiny-ImageNet that is not there",
        lambda tmp: load_dataset("tiny", data_dir=tmp / "no"),
        "or name its folder with data_dir=",
        lambda tmp: load_dataset("tiny", data_dir=tiny(tmp)),
    ),
    Entry(
        "ImageNet that is not there",
        lambda tmp: load_dataset("imagenette", data_dir=tmp, resolution=8),
        "name the ImageNet folder with data_dir=",
        lambda tmp: load_dataset("imagenette", data_dir=imagenet(tmp / "imagenet", 10).parent, resolution=8),
    ),
    Entry(
        "a selection of ImageNet",
        lambda tmp: load_dataset("imagenette", data_dir=imagenet(tmp, 3), resolution=8),
        "For other selections use imagefolder:",
        lambda tmp: folder(tmp),
    ),
    Entry(
        "validation images not sorted",
        lambda tmp: load_dataset("imagenette", data_dir=unsorted(tmp), resolution=8),
        "sorted into one folder per class",
        lambda tmp: load_dataset("imagenette", data_dir=imagenet(tmp, 10), resolution=8),
    ),
    Entry(
        "an IDX file that was cut off",
        lambda tmp: read_idx(idx(tmp, 5)),
        "Fetch the file again",
        lambda tmp: read_idx(idx(tmp, 6)),
    ),
    Entry(
        "an archive that was cut off",
        lambda tmp: read_idx(archived(tmp, 9)),
        "Fetch the file again",
        lambda tmp: read_idx(archived(tmp, None)),
    ),
)


def idx(folder: Path, values: int) -> Path:
    """Two 1x3 images, of which `values` pixels are there."""
    path = folder / "images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3]) + bytes(values))
    return path


def archived(folder: Path, end: int | None) -> Path:
    path = folder / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(folder, 6).read_bytes())[:end])
    return path


def unsorted(tmp: Path) -> Path:
    tree(tmp, *(f"train/n{label:08}/0.png" for label in range(10)), "val/0.png")
    return tmp


def tiny(tmp: Path) -> Path:
    """Two classes as Tiny-ImageNet has them, in its archive."""
    names = ["n0", "n1"]
    root = tmp / "tiny-imagenet-200"
    tree(
        root,
        *(f"train/{name}/images/{name}_{i}.png" for name in names for i in range(2)),
        "val/images/val_0.png",
        "val/images/val_1.png",
    )
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{i}.png\t{name}\t0\t0\t1\t1\n" for i, name in enumerate(names))
    )
    with zipfile.ZipFile(tmp / "tiny-imagenet-200.zip", "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(tmp))
    return tmp
