"""The order in which people count: img2 before img10."""

from __future__ import annotations

import re


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sort key that counts: img2 before img10, class folders 0 to 10 in numeric order.

    Example:
        >>> sorted(["10", "9", "1"], key=natural_key)
        ['1', '9', '10']
    """
    # The pieces alternate text, number, text, ..., so equal positions always compare equal types.
    pieces = re.split(r"([0-9]+)", text)
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], text
