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
        moved: the class that its label names now, where that is another one; stands under the image.
    """

    png: bytes
    title: str
    bars: Sequence[tuple[str, float]] = ()
    note: str = ""
    gap: bool = False
    moved: str = ""


@dataclass(frozen=True)
class PictureRow:
    """The images of one class, in their order; `starts`, what they were made of, stand above (before one alone)."""

    name: str
    pictures: Sequence[Picture]
    starts: Sequence[Picture] = ()


def gallery(rows: Sequence[PictureRow]) -> Markup:
    """All rows, as many side by side as the page has room for.

    Raises:
        InputError: an image is not a PNG file.
    """
    most = max((len(row.pictures) for row in rows), default=0)
    if not most:
        return Markup()
    cell = 108 if most <= 2 else 72 if most <= 5 else 48
    wide = 2 if most == 1 and any(row.starts for row in rows) else most
    block = max(wide * (cell + _GAP) + any(picture.gap for row in rows for picture in row.pictures) * 2 * _GAP, 72)
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
    beside = [*row.starts, *row.pictures] if len(row.pictures) == 1 else row.pictures
    columns = " ".join(f"{_GAP}px " * picture.gap + "minmax(0,var(--cell))" for picture in beside)
    pictures, starts = ([_picture(each) for each in shown] for shown in (row.pictures, row.starts))
    return {"name": row.name, "columns": columns, "pictures": pictures, "starts": starts}


def _picture(picture: Picture) -> dict[str, Any]:
    width, height = png_size(picture.png)
    moved = f"its label now says {picture.moved}" if picture.moved else ""
    spoken = [picture.title, *(f"{name} {100 * value:.0f}%" for name, value in picture.bars), moved, picture.note]
    return {
        "address": data_url(picture.png),
        "width": width,
        "height": height,
        "title": picture.title,
        "spoken": ", ".join(words for words in spoken if words),
        "bars": [(name, f"{100 * value:.1f}") for name, value in picture.bars],
        "note": picture.note,
        "gap": picture.gap,
        "moved": picture.moved,
    }
