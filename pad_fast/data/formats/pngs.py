"""A folder of PNG files for each class, with labels and learning rate in a table.

PNG holds 8 bits between black and white. Distilled images leave that range, so writing them rounds and clamps.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import StoreError
from ...runtime import files
from ..arrays import to_bytes
from ..folders import EXTENSIONS, FolderTree, class_listing, decoded
from ..pictures import settle_depth
from ..splits import Reading
from .contents import Contents

TABLE = "labels.csv"
_KINDS = {"logit": "logits", "probability": "probabilities"}
"""Names of a soft label's columns, with a number behind, and what they say."""

logger = logging.getLogger("pad_fast")


def write(
    folder: Path,
    pixels: Tensor,
    labels: Tensor,
    logits: Tensor | None,
    lr: float,
    class_names: Sequence[str],
) -> Path:
    """Write `CLASS/00000.png`, ... and `labels.csv` into a folder that is not there yet.

    Folders are called by number and name, so that a reader who sorts them numbers the classes as they are.

    Args:
        pixels: `[N, C, H, W]`, C 1 or 3, with 1.0 for white.

    Raises:
        StoreError: another number of channels, or the folder is there.
    """
    beyond = float(((pixels < 0) | (pixels > 1)).double().mean())
    if beyond:
        logger.info(
            f"{beyond:.1%} of the pixel values lie outside 0 to 1 and are clamped: PNG cannot hold them, npz can"
        )
    width = len(str(max(len(class_names), int(labels.max()) + 1) - 1))
    header = ["file", "class", "class_name", "lr"]
    header += [f"logit_{label}" for label in range(0 if logits is None else logits.shape[1])]
    rows = []
    with files.new_folder(folder) as new:
        for index, (picture, label) in enumerate(zip(png_files(pixels, folder), labels.tolist(), strict=True)):
            name = class_names[label] if class_names else str(label)
            place = f"{_folder(label, name, width)}/{index:0{len(str(len(labels) - 1))}}.png"
            files.write_bytes(new / place, picture)
            soft = [] if logits is None else [str(value) for value in logits[index].cpu().numpy()]
            rows.append([place, label, name, repr(lr), *soft])
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([header, *rows])
        files.write_text(new / TABLE, table.getvalue())
    return folder


def png_files(pixels: Tensor, what: object) -> list[bytes]:
    """Each image `[C, H, W]` as the bytes of a PNG file.

    Raises:
        StoreError: neither 1 nor 3 channels.
    """
    from PIL import Image

    if pixels.shape[1] not in (1, 3):
        raise StoreError(
            f"{what} cannot be written: PNG holds gray or RGB, and these images have {pixels.shape[1]} channels; use "
            "npz"
        )
    found = []
    for image in to_bytes(pixels).permute(0, 2, 3, 1):
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(-1).numpy()).save(buffer, format="PNG")
        found.append(buffer.getvalue())
    return found


def is_set(folder: Path) -> bool:
    """Whether there is a table, or folders that hold images and nothing else: those of runs have pictures, too."""
    names = FolderTree(folder).folders("")
    return (folder / TABLE).is_file() or bool(names and all(_is_class(folder / name) for name in names))


def read(folder: Path) -> Contents:
    """Images and labels of the table; without one each folder is a class, in natural order.

    Raises:
        StoreError: the table lacks columns, or names what is not there.
        DatasetError: an image cannot be decoded.
    """
    tree = FolderTree(folder)
    if (folder / TABLE).is_file():
        with files.reading(folder / TABLE, "table of labels"):
            try:
                return _of_table(tree, folder / TABLE)
            except csv.Error as error:
                raise ValueError(error) from error
    listing = class_listing(tree, "")
    labels = torch.tensor([label for label, found in enumerate(listing.values()) for _ in found])
    images = _pictures(tree, [path for found in listing.values() for path in found])
    return Contents(folder, images, labels, class_names=tuple(listing))


def _of_table(tree: FolderTree, path: Path) -> Contents:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), list(reader.fieldnames or ())
    numbers = {
        kind: sorted(int(n[len(kind) + 1 :]) for n in columns if re.fullmatch(rf"{kind}_\d+", n)) for kind in _KINDS
    }
    soft = [kind for kind, found in numbers.items() if found]
    known = len(soft) <= 1 and all(numbers[kind] == list(range(len(numbers[kind]))) for kind in soft)
    if "file" not in columns or not ("class" in columns or soft) or not rows or not known:
        raise StoreError(
            f"{path} has {len(rows)} rows of {', '.join(columns) or 'nothing'}; expected file, and class or logit_0, "
            "logit_1, ... or probability_0, probability_1, ..., and lr where it is known"
        )
    classes = torch.tensor([int(row["class"]) for row in rows]) if "class" in columns else None
    rates = sorted({row.get("lr") or "" for row in rows})
    images = _pictures(tree, [row["file"] for row in rows])
    lr: Any = (rates[0] if len(rates) == 1 else rates) if any(rates) else None
    if soft:
        names = [f"{soft[0]}_{number}" for number in numbers[soft[0]]]
        labels = torch.tensor([[float(row[name]) for name in names] for row in rows])
        return Contents(path, images, labels, lr, classes, _names(rows), _KINDS[soft[0]])
    assert classes is not None
    return Contents(path, images, classes, lr, class_names=_names(rows))


def _pictures(tree: FolderTree, paths: Sequence[str]) -> Tensor:
    return settle_depth([decoded(tree, paths, Reading())], tree.describe(""))[0]


def _names(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Of all classes, where every one of them has a name."""
    found = {int(row["class"]): row["class_name"] for row in rows if row.get("class") and row.get("class_name")}
    return tuple(found[label] for label in sorted(found)) if sorted(found) == list(range(len(found))) else ()


def _is_class(folder: Path) -> bool:
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return bool(inside) and all(path.name.lower().endswith(EXTENSIONS) for path in inside)


def _folder(label: int, name: str, width: int) -> str:
    number = f"{label:0{width}}"
    plain = re.sub(r"[^\w.-]+", "_", name)[:80].strip("_.")
    return number if plain in ("", str(label), number) else f"{number}_{plain}"
