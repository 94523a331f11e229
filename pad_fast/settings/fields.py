"""How a setting is declared: its default, meaning and stage, and which values it takes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ConfigError, nearest


@dataclass(frozen=True)
class Limit:
    """A condition on a number.

    Attributes:
        text: what the number must do, as errors say it.
        holds: whether it does.
    """

    text: str
    holds: Callable[[float], bool]


POSITIVE = Limit("be positive", lambda value: value > 0 and math.isfinite(value))
NOT_NEGATIVE = Limit("not be negative", lambda value: value >= 0 and math.isfinite(value))
BELOW_ONE = Limit("lie in [0, 1)", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class Kind:
    """The type of a setting: bool, int, float or str, with or without None, and words that stand for a value."""

    base: type
    optional: bool
    words: tuple[str, ...] = ()

    def convert(self, name: str, value: Any) -> Any:
        """`value` as a setting of this kind: paths become text, whole numbers int or float as needed.

        Raises:
            ConfigError: it is of another type; the message calls it `name`.
        """
        if (value is None and self.optional) or (isinstance(value, str) and value in self.words):
            return value
        if self.base is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        if self.base is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.base is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, self.base) or (self.base is int and isinstance(value, bool)):
            others = "".join(f" or {word}" for word in (*self.words, *(["none"] if self.optional else [])))
            raise ConfigError(f"{name} is {value!r}; it must be {self.base.__name__}{others}")
        return value


def setting(
    default: Any,
    text: str,
    *,
    stage: str,
    must: Limit | None = None,
    choices: Sequence[str] = (),
    later: bool = False,
) -> Any:
    """A field of the config.

    Args:
        default: its value where nobody gives one.
        text: help; `{choices}` in it becomes their list.
        stage: the earliest stage that the setting changes.
        must: what its number must do; None passes.
        choices: all values it takes; empty for any.
        later: there were runs before there was this setting. Its default has to be what they did, and is left out of
            what results are found by (:meth:`Config.digested`): theirs are found again.
    """
    help_text = text.replace("{choices}", alternatives(choices))
    known = {"help": help_text, "stage": stage, "must": must, "choices": tuple(choices), "later": later}
    return field(default=default, metadata=known)


def alternatives(choices: Sequence[str]) -> str:
    """The choices as a phrase.

    Example:
        >>> alternatives(["float32", "float16", "bfloat16-delta"])
        'float32, float16 or bfloat16-delta'
    """
    return " or ".join(part for part in (", ".join(choices[:-1]), *choices[-1:]) if part)


@cache
def kinds(settings: type) -> dict[str, Kind]:
    """The type of every field of a dataclass of settings."""
    found = {}
    for name, hint in get_type_hints(settings).items():
        options = get_args(hint) or (hint,)
        words = tuple(word for option in options if get_origin(option) is Literal for word in get_args(option))
        (base,) = (option for option in options if option is not NoneType and get_origin(option) is not Literal)
        found[name] = Kind(base, NoneType in options, words)
    return found


def require_allowed(item: Field[Any], value: Any) -> None:
    """Check a value against the limit and the choices of its field.

    Raises:
        ConfigError: it is none of the choices, with the nearest, or beyond the limit.
    """
    must, choices = item.metadata["must"], item.metadata["choices"]
    if must is not None and isinstance(value, int | float) and not must.holds(value):
        raise ConfigError(f"{item.name} is {value}; it must {must.text}")
    if choices and value not in choices:
        raise ConfigError(f"{item.name} is {value!r}; use one of {', '.join(choices)}.{nearest(value, choices)}")
