"""Images of a page by class: point at one, tap it or tab to it, and a card says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from .page import data_url, png_size
from .render import part

_GAP = 4  # pixels between the images of a class


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        png: the file, at the image's own size; the page enlarges it without smoothing.
        title: headline of its card.
        bars: names and fractions in [0, 1] drawn under it.
        note: a line of text under these.
        gap: leave room in front of it.
    """

    png: bytes
    title: str
    bars: Sequence[tuple[str, float]] = ()
    note: str = ""
    gap: bool = False


@dataclass(frozen=True)
class PictureRow:
    """The images of one class, in their order."""

    name: str
    pictures: Sequence[Picture]


def gallery(rows: Sequence[PictureRow]) -> Markup:
    """All rows, as many side by side as the page has room for.

    Raises:
        InputError: an image is not a PNG file.
    """
    most = max((len(row.pictures) for row in rows), default=0)
    if not most:
        return Markup()
    cell = 72 if most <= 2 else 52 if most <= 5 else 37
    block = max(most * (cell + _GAP) + any(picture.gap for row in rows for picture in row.pictures) * 2 * _GAP, 72)
    return _part("gallery", [_row(row) for row in rows], cell, block)


def side_by_side(columns: Sequence[str], rows: Sequence[PictureRow]) -> Markup:
    """A table of images, one row a class and one column whatever is compared, which scrolls sideways.

    Args:
        columns: headings; every row has one picture for each.
        rows: classes.
    """
    return _part("side_by_side", columns, [_row(row) for row in rows])


_part = partial(part, template="gallery.html")


def _row(row: PictureRow) -> dict[str, Any]:
    """A class as the templates take it: all its images in one line, which on a narrow screen shrink."""
    columns = " ".join(f"{_GAP}px " * picture.gap + "minmax(0,var(--cell))" for picture in row.pictures)
    return {"name": row.name, "columns": columns, "pictures": [_picture(picture) for picture in row.pictures]}


def _picture(picture: Picture) -> dict[str, Any]:
    width, height = png_size(picture.png)
    spoken = [picture.title, *(f"{name} {100 * value:.0f}%" for name, value in picture.bars), picture.note]
    return {
        "address": data_url(picture.png),
        "width": width,
        "height": height,
        "title": picture.title,
        "spoken": ", ".join(words for words in spoken if words),
        "bars": [(name, f"{100 * value:.1f}") for name, value in picture.bars],
        "note": picture.note,
        "gap": picture.gap,
    }
