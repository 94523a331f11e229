"""Results on the standard output."""

from __future__ import annotations

from ..runtime import distributed


def print_once(text: object) -> None:
    """Print a result, of several processes by the main one: all have the same."""
    if distributed.group().main:
        print(text)
