"""Images of a page by class: point at one, tap it or tab to it, and a card says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .page import data_url, png_size, text

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


def gallery(rows: Sequence[PictureRow]) -> str:
    """All rows as HTML, as many side by side as the page has room for.

    Raises:
        InputError: an image is not a PNG file.
    """
    most = max((len(row.pictures) for row in rows), default=0)
    if not most:
        return ""
    cell = 72 if most <= 2 else 52 if most <= 5 else 37
    block = max(most * (cell + _GAP) + any(picture.gap for row in rows for picture in row.pictures) * 2 * _GAP, 72)
    return f'<div class="gallery" style="--cell:{cell}px;--block:{block}px">{"".join(map(_figure, rows))}</div>'


def side_by_side(columns: Sequence[str], rows: Sequence[PictureRow]) -> str:
    """A table of images, one row a class and one column whatever is compared, which scrolls sideways.

    Args:
        columns: headings; every row has one picture for each.
        rows: classes.
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{text(row.name)}</th>'
        + "".join(f"<td>{_image(picture, picture.title)}</td>" for picture in row.pictures)
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0"><table class="side" style="--cell:60px"><thead><tr>'
        f'<th scope="col"><span class="hidden">class</span></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure(row: PictureRow) -> str:
    # All images of a class stay in one line; on a narrow screen they shrink.
    columns = " ".join(f"{_GAP}px " * picture.gap + "minmax(0,var(--cell))" for picture in row.pictures)
    return (
        f"<figure><figcaption>{text(row.name)}</figcaption>"
        f'<div class="cells" style="grid-template-columns:{columns}">{"".join(map(_cell, row.pictures))}</div></figure>'
    )


def _cell(picture: Picture) -> str:
    bars = "".join(
        f'<span>{text(name)}</span><i style="--p:{100 * value:.1f}%"></i><em>{100 * value:.1f}%</em>'
        for name, value in picture.bars
    )
    spoken = [picture.title, *(f"{name} {100 * value:.0f}%" for name, value in picture.bars), picture.note]
    return (
        "<i></i>" * picture.gap + '<span class="cell" tabindex="0" role="img" '
        f'aria-label="{text(", ".join(part for part in spoken if part))}">{_image(picture, "")}'
        f'<span class="card"><b>{text(picture.title)}</b>'
        + (f'<span class="bars">{bars}</span>' if bars else "")
        + (f"<span>{text(picture.note)}</span>" if picture.note else "")
        + "</span></span>"
    )


def _image(picture: Picture, description: str) -> str:
    width, height = png_size(picture.png)
    return f'<img src="{data_url(picture.png)}" width="{width}" height="{height}" alt="{text(description)}">'
