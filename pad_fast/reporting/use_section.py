"""The box of a report that says how its set is used and made again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..data.named import is_name
from ..data.sources import needs_folder
from ..errors import ConfigError
from ..settings.command import command_of
from .html.page import code, hint, section

_LINE = 80  # characters after which a command goes on in the next line


@dataclass(frozen=True)
class SetShape:
    """What a set's tensors look like.

    Attributes:
        images: `(N, C, H, W)`.
        soft_labels: whether its targets are probabilities.
    """

    images: tuple[int, ...]
    soft_labels: bool


def use_section(shape: SetShape | None, settings: Mapping[str, Any]) -> Markup:
    """The section; nothing while there is no set."""
    if shape is None:
        return Markup()
    sides = "x".join(map(str, shape.images[1:]))
    targets = "probabilities" if shape.soft_labels else "classes"
    lines = [
        "import pad_fast",
        "",
        'distilled = pad_fast.load("RUN")',
        f"for images, targets in distilled.loader():  # {shape.images[0]:,} normalised images {sides}, {targets}",
        "    ...  # a step of SGD on cross_entropy(network(images), targets), at first with the rate distilled.lr",
    ]
    body = code("Train on it, in Python", "\n".join(lines))
    words = "RUN is the folder that this page was written to."
    made = _command(settings)
    if made is not None:
        body += code(f"Make it again: seed {settings.get('seed')}", made)
        if needs_folder(settings["dataset"]):
            words += " With --data-dir DIR for the folder that the data are in."
        words += " The versions are below."
    return section("Use this set", body + hint(words), name="use")


def _command(settings: Mapping[str, Any]) -> str | None:
    """None where the command line cannot name the data, or settings are another version's."""
    dataset = str(settings.get("dataset", ""))
    if not is_name(dataset) and not (":" in dataset or "/" in dataset or dataset.endswith(".npz")):
        return None
    try:
        words = [*command_of(settings), "--out", "AGAIN"]
    except (ConfigError, TypeError, ValueError):
        return None
    lines = [""]
    for word in words:
        # A flag stays with its value, so that every line can be read by itself.
        if word.startswith("--") and len(lines[-1]) > _LINE:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {shlex.quote(word)}" if lines[-1] else shlex.quote(word)
    return " \\\n".join(lines)
