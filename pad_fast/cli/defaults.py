"""Help that shows the defaults which apply to the data, IPC, method, preset and file on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..errors import PadFastError
from ..settings.config import Config
from ..settings.resolve import make_settings
from .options import with_default
from .published import settings_of

_CHOOSING = ("dataset", "ipc", "method", "preset", "config", "family")
"""Flags that other settings' defaults depend on."""


def show_defaults(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Put the defaults that apply into the help of a command's settings.

    Args:
        parser: of the command.
        words: behind its name.
    """
    if "--preset" not in parser._option_string_actions:
        return
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in _CHOOSING:
        chooser.add_argument(f"--{name}", nargs="?")
    chosen, _ = chooser.parse_known_args(words)
    overrides: dict[str, Any] = {"dataset": chosen.dataset, "ipc": chosen.ipc, "method": chosen.method}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    try:
        if chosen.ipc is not None:
            overrides["ipc"] = int(chosen.ipc)
        config = make_settings(
            preset_name=chosen.preset,
            config=settings_of(chosen),
            overrides=overrides,
            defaults=parser.get_default("usual"),
        ).config
    except (PadFastError, ValueError):
        return  # the command itself says what is wrong with them
    texts = {item.name: item.metadata["help"] for item in fields(Config)}
    for action in parser._actions:
        if action.dest in texts and (action.help or "").startswith(texts[action.dest].replace("%", "%%")):
            action.help = with_default(texts[action.dest], getattr(config, action.dest)).replace("%", "%%")
    parser.epilog = (
        f"Defaults are those of {config.method} on {config.dataset} with ipc {config.ipc}: data sets, presets and "
        "methods have some of their own, and --help behind --dataset, --ipc, --method, --preset or --config shows "
        f"those. {parser.epilog}"
    )
