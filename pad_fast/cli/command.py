"""A command of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

REPEAT = "what is finished is kept; repeat the command to continue"


@dataclass(frozen=True)
class Command:
    """A command: its flags and its work.

    Attributes:
        name: as it is typed; "experts info" is a command too.
        summary: its line in the list of commands.
        flags: adds its flags to its parser.
        run: does its work; the options are those of its parser.
        goes_on: how it is continued after an interruption; empty where there is nothing to continue.
        joins: whether several processes (torchrun) that run it make one group. Those of a sweep do different runs, and
            need not know of each other.
    """

    name: str
    summary: str
    flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    goes_on: str = ""
    joins: bool = True
