"""Environment variables that hold numbers."""

from __future__ import annotations

import os

from ..errors import PadFastError


def seconds_from(name: str, default: float, error: type[PadFastError]) -> float:
    """The seconds in the environment variable `name`, or `default`.

    Raises:
        PadFastError: of the class `error`, where it holds no positive number.
    """
    text = os.environ.get(name, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise error(f"{name} is {text!r}; it is a number of seconds, above 0")
    return seconds
