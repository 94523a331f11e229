"""Snapshots of an expert as numbers and ranges: the text of the setting `keep`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import ConfigError

_PART = re.compile(r"(-?\d+)|(-?\d*):(-?\d*)")


def parse_snapshots(text: str, epochs: int) -> tuple[int, ...]:
    """Snapshot numbers, ascending, of "all" or of numbers and ranges joined by commas.

    Ranges are half open and negative numbers count from the end, as in Python: with 100 epochs, "0:22,-1" is the
    snapshots 0 to 21 and 100.

    Raises:
        ConfigError: malformed, or a snapshot that experts of `epochs` epochs do not have.

    Example:
        >>> parse_snapshots("0:3,-1", 100)
        (0, 1, 2, 100)
    """
    if text == "all":
        return tuple(range(epochs + 1))
    kept: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ConfigError(f"keep is {text!r}; write 'all', or numbers and ranges such as '0:22,-1'")
        number, first, behind = match.groups()
        if number is not None:
            chosen = range(_resolve(number, epochs, text), _resolve(number, epochs, text) + 1)
        else:
            begin = _resolve(first, epochs, text) if first else 0
            end = epochs + 1 if not behind else int(behind) + (epochs + 1 if int(behind) < 0 else 0)
            chosen = range(begin, end)
        if not chosen or chosen[-1] > epochs:
            raise ConfigError(f"keep is {text!r}: {part} is not among the snapshots 0..{epochs} of {epochs} epochs")
        kept.update(chosen)
    return tuple(sorted(kept))


def format_snapshots(kept: Iterable[int]) -> str:
    """The shortest text that :func:`parse_snapshots` reads as these numbers.

    Example:
        >>> format_snapshots([0, 1, 2, 3, 7, 100])
        '0:4,7,100'
    """
    runs: list[list[int]] = []
    for number in sorted(kept):
        if runs and number == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return ",".join(str(first) if behind == first + 1 else f"{first}:{behind}" for first, behind in runs)


def _resolve(number: str, epochs: int, text: str) -> int:
    resolved = int(number) + (epochs + 1 if int(number) < 0 else 0)
    if not 0 <= resolved <= epochs:
        raise ConfigError(f"keep is {text!r}: there is no snapshot {number}; {epochs} epochs give 0..{epochs}")
    return resolved
