"""The part of a report that shows how images came to be: the first of each class from the start to the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .html.gallery import PictureRow, side_by_side
from .html.page import hint, section


@dataclass(frozen=True)
class FilmStrip:
    """Contents of the section.

    Attributes:
        columns: when a picture was taken: "start", numbers of iterations, "result".
        rows: a class each, with a picture for every column.
    """

    columns: Sequence[str]
    rows: Sequence[PictureRow]


def film_section(film: FilmStrip | None) -> Markup:
    """The section; nothing without pictures."""
    if film is None or not film.rows:
        return Markup()
    words = "The first image of each class, by the number of iterations."
    return section("From start to end", side_by_side(film.columns, film.rows) + hint(words), name="film")
