"""One HTML file that needs no network, no script and no other file: its frame, and the parts pages share."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence

from markupsafe import Markup

from ...errors import InputError
from .render import part, style, whole


def page(title: str, summary: Markup, sections: Sequence[Markup], *, refresh: int | None = None) -> str:
    """A whole page of sections; empty ones are left out.

    Args:
        title: headline.
        summary: parts that go under the title.
        sections: parts, mostly out of :func:`section`.
        refresh: seconds after which a browser is to load the page again; None: never.
    """
    return whole("page.html", title=title, summary=summary, sections=sections, refresh=refresh, style=style())


def section(heading: str, body: Markup, *, name: str = "") -> Markup:
    """A section; `name` is what links on the page call it."""
    return part("section", heading, body, name)


def hint(words: str) -> Markup:
    """A small line of text under something; nothing for no words."""
    return part("hint", words) if words else Markup()


def empty(words: str) -> Markup:
    """A line of text where there is nothing to show yet."""
    return part("empty", words)


def absent(lines: Sequence[str]) -> Markup:
    """The footnote about sections that there is nothing to show in; nothing where there are none."""
    return part("absent", lines) if lines else Markup()


def code(heading: str, lines: str) -> Markup:
    """Lines to be copied."""
    return part("code", heading, lines)


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG file.

    Raises:
        InputError: the bytes are not a PNG file.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR":
        raise InputError("an image of the page is not a PNG file; pass the bytes png_bytes() returns")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def data_url(png: bytes) -> str:
    """A PNG file as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def details(heading: str, values: Mapping[str, object] | Mapping[str, str]) -> Markup:
    """A folded section with a table of names and values; nothing where there are none."""
    pairs = [(key, shown(value)) for key, value in values.items()]
    return part("details", heading, pairs) if pairs else Markup()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()) -> Markup:
    """A table of texts or parts; the first of a row is its heading. `numbers` are the columns set flush right."""
    return part("table", header, rows, numbers)


def shown(value: object) -> str:
    """A setting as a reader writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(part) for part in value) or "none"
    return str(value)
