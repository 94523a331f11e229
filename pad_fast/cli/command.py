"""A command of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

CONTINUED = ("distill", "resume", "sweep", "score", "experts", "experts convert", "evaluate")
"""Commands that go on where they were when they are repeated."""


def goes_on(command: str) -> str:
    """How a command is continued after an interruption; empty where there is nothing to continue."""
    return "what is finished is kept; repeat the command to continue" if command in CONTINUED else ""


@dataclass(frozen=True)
class Command:
    """A command: its flags and its work.

    Attributes:
        name: as it is typed; "experts info" is a command too.
        summary: its line in the list of commands.
        flags: adds its flags to its parser.
        run: does its work; the options are those of its parser.
        joins: whether several processes (torchrun) that run it make one group. Those of a sweep do different runs, and
            need not know of each other.
    """

    name: str
    summary: str
    flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    joins: bool = True
