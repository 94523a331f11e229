"""Image files in class folders, on disk or inside a zip archive."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DatasetError
from .decoding import decode
from .natural_order import natural_key
from .splits import TEST_FRACTION, Reading, Splits

logger = logging.getLogger("pad_fast")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# Names of the folder with the images to test on, the first that is there.
_TESTED_ON = ("test", "val", "valid", "validation")

Listing = dict[str, list[str]]  # class name -> image files, both in natural order


class Tree(Protocol):
    """A read-only folder; paths are relative to its root and use "/"."""

    def folders(self, parent: str) -> list[str]:
        """Names of the folders directly inside `parent`, natural order; empty if `parent` is missing."""

    def images(self, parent: str) -> list[str]:
        """Paths of all image files below `parent`, natural order."""

    def read(self, path: str) -> bytes:
        """The bytes of one file."""

    def describe(self, path: str) -> str:
        """The path as a person would find it."""


class FolderTree:
    """A folder on disk."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def folders(self, parent: str) -> list[str]:
        try:
            entries = [entry.name for entry in os.scandir(self.root / parent) if entry.is_dir()]
            entries = [name for name in entries if not self._leads_up(self.root / parent / name)]
            if parent not in ("", "."):  # a link in place of a whole split is what its owner wants
                for name in entries:
                    self._refuse_link_back(self.root / parent / name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DatasetError(f"cannot list {self.root / parent}: {error.strerror or error}") from error
        return sorted((name for name in entries if not name.startswith(".")), key=natural_key)

    def images(self, parent: str) -> list[str]:
        paths: list[str] = []
        others: list[str] = []
        if "/" not in parent and (self.root / parent).is_symlink():  # a class, where the root holds the classes
            self._refuse_link_back(self.root / parent)
        read = {(self.root / parent).resolve()}
        for folder, inside, names in os.walk(self.root / parent, followlinks=True):
            inside[:] = [name for name in inside if not name.startswith(".") and self._is_new(Path(folder, name), read)]
            relative = Path(folder).relative_to(self.root).as_posix()
            paths += [f"{relative}/{name}" for name in names if _is_image(name)]
            others += [f"{relative}/{name}" for name in sorted(names) if not _is_image(name) and name[0] != "."]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            logger.info(f"{self.describe(others[0])}{more} left out: no image by its name")
        return sorted(paths, key=natural_key)

    def _is_new(self, folder: Path, read: set[Path]) -> bool:
        """Whether a folder's images are not read already; `read` are folders that are, and gets those behind links."""
        if not folder.is_symlink():
            return True
        if self._leads_up(folder):
            return False
        target = folder.resolve()
        if any(target.is_relative_to(each) for each in read):
            logger.warning(f"{folder} is a link to {target}, whose images are read once")
            return False
        self._refuse_link_back(folder)
        read.add(target)
        return True

    @staticmethod
    def _leads_up(folder: Path) -> bool:
        """Whether it is a link to a folder that holds it: what is behind it has its place in the tree."""
        if not folder.is_symlink():
            return False
        target = folder.resolve()
        above = folder.parent.resolve().is_relative_to(target)
        if above:
            logger.warning(f"{folder} is a link to {target}, which holds it: it is left out, each image is read once")
        return above

    def _refuse_link_back(self, folder: Path) -> None:
        """Images behind a link to another part of this very tree would count twice, perhaps as another class."""
        if not folder.is_symlink():
            return
        target, root = folder.resolve(), self.root.resolve()
        if target.is_relative_to(root) or root.is_relative_to(target):
            raise DatasetError(
                f"{folder} is a link back into the data set, to {target}: its images would be counted again. Remove "
                "the link, or put a copy of the images in its place."
            )

    def read(self, path: str) -> bytes:
        try:
            with open(os.path.join(self.root, path), "rb") as file:  # pathlib costs as much as a small read
                return file.read()
        except OSError as error:
            raise DatasetError(f"cannot read {self.root / path}: {error.strerror or error}") from error

    def describe(self, path: str) -> str:
        return str(self.root / path)


class ZipTree:
    """A folder inside a zip archive, read without extraction.

    Raises:
        DatasetError: the file is not a zip archive.
    """

    def __init__(self, archive: str | os.PathLike[str], root: str = "") -> None:
        self.path = Path(archive)
        self.prefix = f"{root}/" if root else ""
        try:
            self._archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DatasetError(f"cannot open {self.path} as a zip archive (truncated?): {error}") from error
        self._files: dict[str, list[str]] = {}
        self._folders: dict[str, set[str]] = {}
        for name in self._archive.namelist():
            if not name.startswith(self.prefix):
                continue
            relative = PurePosixPath(name[len(self.prefix) :])
            for parent in relative.parents:
                self._folders.setdefault(str(parent.parent), set()).add(parent.name)
            if name.endswith("/"):
                self._folders.setdefault(str(relative.parent), set()).add(relative.name)
            elif _is_image(relative.name) and not any(part.startswith(".") for part in relative.parts):
                for parent in relative.parents:
                    self._files.setdefault(str(parent), []).append(str(relative))

    def folders(self, parent: str) -> list[str]:
        names = self._folders.get(parent, set()) - {""}
        return sorted((name for name in names if not name.startswith(".")), key=natural_key)

    def images(self, parent: str) -> list[str]:
        return sorted(self._files.get(parent, []), key=natural_key)

    def read(self, path: str) -> bytes:
        try:
            return self._archive.read(self.prefix + path)
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise DatasetError(f"cannot read {self.describe(path)}: {error}") from error

    def describe(self, path: str) -> str:
        return f"{self.path}:{self.prefix}{path}"


def class_listing(tree: Tree, split: str, classes: Iterable[str] | None = None) -> Listing:
    """The image files of each class folder of `split`.

    Raises:
        DatasetError: no class folders, or one without images.
    """
    names = list(classes) if classes is not None else tree.folders(split)
    if not names:
        raise DatasetError(f"{tree.describe(split)} has no class folders; expected {split}/<class>/<image file>.")
    folders = {name: f"{split}/{name}" if split else name for name in names}
    listing = {name: tree.images(folder) for name, folder in folders.items()}
    for name, paths in listing.items():
        if not paths:
            raise DatasetError(f"class folder {tree.describe(folders[name])} holds no images ({' '.join(EXTENSIONS)}).")
    return listing


def load_listings(name: str, tree: Tree, train: Listing, test: Listing, reading: Reading) -> Splits:
    """Decode both splits; labels follow the order of the training classes.

    Images become RGB unless every one of them is single-channel.

    Raises:
        DatasetError: the class sets differ, a file cannot be decoded, or sizes are mixed.
    """
    if set(train) != set(test):
        only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
        raise DatasetError(
            f"training and test set of {tree.describe('')} have different classes: only in training "
            f"{only_train[:5]}, only in test {only_test[:5]}. Both need the same class folders."
        )
    classes = list(train)
    paths = [path for split in (train, test) for label in classes for path in split[label]]
    labels = [
        torch.tensor([index for index, label in enumerate(classes) for _ in split[label]]) for split in (train, test)
    ]
    images = decoded(tree, paths, reading)
    count = len(labels[0])
    files = tuple(paths[:count])
    return Splits(name, images[:count], labels[0], images[count:], labels[1], tuple(classes), train_files=files)


def load_image_folder(folder: Path, reading: Reading) -> Splits:
    """`{train, test or val}/<class>/<image file>` under `folder`; classes and files in natural order.

    Without images to test on (`train/<class>/...` alone, or `<class>/...`) a fixed fifth of every class is set aside.

    Raises:
        DatasetError: missing folders, classes without images, undecodable files, mixed sizes.
    """
    if not folder.is_dir():
        raise DatasetError(f"image folder {folder.absolute()} does not exist.")
    tree = FolderTree(folder)
    found = tree.folders("")
    for_testing = [name for name in _TESTED_ON if name in found]
    if "train" in found and for_testing:
        train, test = class_listing(tree, "train"), class_listing(tree, for_testing[0])
        return load_listings("imagefolder", tree, train, test, reading)
    if "train" in found:
        return _untested(tree, class_listing(tree, "train"), reading)
    if not found or for_testing:
        raise DatasetError(
            f"image folder {folder.absolute()} needs train/<class>/<image file> and test/<class>/<image file> (or "
            f"{', '.join(_TESTED_ON[1:])}), or <class>/<image file>; found {', '.join(found) or 'no folders'}."
        )
    return _untested(tree, class_listing(tree, ""), reading)


def _untested(tree: Tree, listing: Listing, reading: Reading) -> Splits:
    """Images that come without a test set."""
    paths = [path for files in listing.values() for path in files]
    labels = torch.tensor([index for index, files in enumerate(listing.values()) for _ in files])
    logger.warning(
        f"{tree.describe('')} has no test images: a fixed fifth of every class ({TEST_FRACTION:.0%}) is set aside"
    )
    images = decoded(tree, paths, reading)
    return Splits("imagefolder", images, labels, class_names=tuple(listing), train_files=tuple(paths))


def decoded(tree: Tree, paths: Sequence[str], reading: Reading) -> Tensor:
    """All these image files in one tensor `[N, C, H, W]`."""
    return decode(
        len(paths),
        lambda index: tree.read(paths[index]),
        lambda index: tree.describe(paths[index]),
        tree.describe(""),
        reading,
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
