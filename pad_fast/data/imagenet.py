"""ImageNet in the layouts people have: Tiny-ImageNet-200 and the ten-class subsets at 128 px."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import DatasetError
from .folders import FolderTree, Listing, Tree, ZipTree, class_listing, load_listings
from .natural_order import natural_key
from .splits import Reading, Splits

TINY = "tiny-imagenet-200"
SUBSET_RESOLUTION = 128

# Positions in the sorted list of the 1000 class folders, in the class order of the published subsets.
SUBSETS: dict[str, tuple[int, ...]] = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}


def load_tiny(folder: Path, reading: Reading) -> Splits:
    """Tiny-ImageNet from `folder/tiny-imagenet-200`, `folder` itself, or `folder/tiny-imagenet-200.zip`.

    The validation images may lie flat with `val_annotations.txt` (as distributed) or in class folders.

    Raises:
        DatasetError: nothing found, or the files are incomplete.
    """
    tree: Tree
    archive = folder / f"{TINY}.zip"
    extracted = [path for path in (folder / TINY, folder) if (path / "train").is_dir() and (path / "val").is_dir()]
    if extracted:
        tree = FolderTree(extracted[0])
    elif archive.is_file():
        tree = ZipTree(archive, TINY)
    else:
        raise DatasetError(
            f"Tiny-ImageNet not found: neither {folder / TINY}/{{train,val}} nor {archive} exists. Put the official "
            f"{TINY}.zip (http://cs231n.stanford.edu/{TINY}.zip) there, or name its folder with data_dir=."
        )
    train = class_listing(tree, "train")
    test = _flat_validation(tree, list(train)) if tree.folders("val") == ["images"] else class_listing(tree, "val")
    return _with_statistics(load_listings("tinyimagenet", tree, train, test, reading))


def load_subset(name: str, folder: Path, reading: Reading) -> Splits:
    """One of :data:`SUBSETS` from `{train, val or test}/<class folder>/<image>`.

    Looked for under `folder`, `folder/<name>` and `folder/imagenet`. The training folder holds either all 1000
    classes, of which the subset's positions in sorted order are taken, or exactly the subset's ten. Ten folders
    are taken at their word: their sorted order is matched with the sorted positions, which is right for WordNet
    ids. Either way labels follow the published class order.

    Raises:
        DatasetError: nothing found, or another number of classes.
    """
    found = [path for path in (folder, folder / name, folder / "imagenet") if (path / "train").is_dir()]
    if not found:
        raise DatasetError(
            f"{name} not found: {folder} holds no train/ folder (also tried {name}/train and imagenet/train). "
            "Expected {train,val}/<class folder>/<image>; name the ImageNet folder with data_dir=."
        )
    tree = FolderTree(found[0])
    folders, positions = tree.folders("train"), SUBSETS[name]
    if len(folders) == 1000:
        classes = [folders[position] for position in positions]
    elif len(folders) == len(positions):
        ranks = sorted(positions)
        classes = [folders[ranks.index(position)] for position in positions]
    else:
        raise DatasetError(
            f"{tree.describe('train')} holds {len(folders)} class folders; {name} needs the 1000 of ImageNet or "
            f"exactly its own {len(positions)}. For other selections use imagefolder:{found[0]}."
        )
    split = "val" if tree.folders("val") else "test"
    present = set(tree.folders(split))
    absent = [label for label in classes if label not in present]
    if absent:
        raise DatasetError(
            f"{tree.describe(split)} lacks the class folders {absent[:5]}; the validation images must be sorted into "
            "one folder per class, named like those in train."
        )
    train, test = class_listing(tree, "train", classes), class_listing(tree, split, classes)
    if reading.resolution is None:
        reading = replace(reading, resolution=SUBSET_RESOLUTION)
    return _with_statistics(load_listings(name, tree, train, test, reading))


def _with_statistics(splits: Splits) -> Splits:
    """With the mean and std of the published pipelines."""
    return replace(splits, statistics=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def _flat_validation(tree: Tree, classes: list[str]) -> Listing:
    annotations = tree.read("val/val_annotations.txt").decode("utf-8", errors="replace")
    folder_of = dict(line.split("\t")[:2] for line in annotations.splitlines() if "\t" in line)
    listing: Listing = {name: [] for name in classes}
    for path in tree.images("val/images"):
        label = folder_of.get(path.rpartition("/")[2])
        if label not in listing:
            raise DatasetError(
                f"{tree.describe('val/val_annotations.txt')} gives {path.rpartition('/')[2]} the class {label!r}, "
                "which has no folder in train; the archive is incomplete."
            )
        listing[label].append(path)
    for name, paths in listing.items():
        if not paths:
            raise DatasetError(f"class {name} of {tree.describe('val')} has no validation images.")
        paths.sort(key=natural_key)
    return listing
