"""The exceptions pad_fast raises on purpose.

Everything a user can cause derives from :class:`PadFastError`, so the command line can print the message
without a traceback while a bug in the library still shows one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PadFastError(Exception):
    """Base of every error with a message meant for the person at the keyboard."""


class InputError(PadFastError, ValueError):
    """A value passed in (data, option, tensor) cannot be used; the message names it and the way out."""


class DatasetError(InputError):
    """A data set is missing, malformed or too small for what was asked."""


class ConfigError(InputError):
    """A setting is unknown, of the wrong type or outside its range."""


class StoreError(InputError):
    """An expert store, order table, checkpoint or distilled set on disk cannot be used."""


class BackendError(PadFastError, RuntimeError):
    """A backend asked for by name cannot serve this problem; the message says why."""


class DistillationStopped(PadFastError, RuntimeError):
    """A run ended early (NaN loss, every iteration skipped); its checkpoint is on disk."""


class RankError(PadFastError, RuntimeError):
    """The processes of a run that torchrun has started cannot work together."""


class RankLost(RankError):
    """Another process of the run has ended or does not answer."""


def require_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Reject an argument that is none of the words it may be.

    Raises:
        ConfigError: with the nearest known word.
    """
    words = tuple(known)
    if value not in words:
        raise ConfigError(f"{name}={value!r} is unknown; use one of {', '.join(words)}.{nearest(value, words)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or an empty string when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
