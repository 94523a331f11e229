"""The templates beside this file, with every value escaped that no template made."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


def part(name: str, /, *values: object, template: str = "parts.html") -> Markup:
    """The macro of that name in a template, called with these values."""
    macro = getattr(_environment().get_template(template).module, name)
    return Markup(macro(*values))


def whole(template: str, **values: object) -> str:
    """A whole template with these values; undecodable bytes of file names become question marks."""
    return _environment().get_template(template).render(**values).encode("utf-8", "replace").decode("utf-8")


@functools.cache
def style() -> Markup:
    """The style sheet, which pages carry within them."""
    return Markup((_HERE / "style.css").read_text(encoding="utf-8"))  # ours, no user's words in it


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here: the command line starts without it

    return Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
