"""The command that repeats a run, out of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .config import Config
from .resolve import make_settings

_ALWAYS = ("dataset", "method", "ipc", "seed")


def command_of(settings: Mapping[str, Any]) -> list[str]:
    """Words of the `pad-fast distill` command that gives these settings: what identifies a run, then what is unusual.

    Args:
        settings: a run's, in our names; others are left out.

    Raises:
        ConfigError: no run of this version can have them.

    Example:
        >>> " ".join(command_of({"dataset": "digits", "ipc": 10, "seed": 3})[:10])
        'pad-fast distill --dataset digits --method pad --ipc 10 --seed 3'
    """
    names = [item.name for item in fields(Config)]
    config = Config(**{name: value for name, value in settings.items() if name in names})
    usual = make_settings(overrides={name: getattr(config, name) for name in _ALWAYS}).config
    unusual = [name for name in names if name not in _ALWAYS and getattr(config, name) != getattr(usual, name)]
    return [
        "pad-fast",
        "distill",
        *(word for name in (*_ALWAYS, *unusual) for word in _flag(name, getattr(config, name))),
    ]


def _flag(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    word = "none" if value is None else str(value)
    return [f"{flag}={word}"] if word.startswith("-") else [flag, word]
