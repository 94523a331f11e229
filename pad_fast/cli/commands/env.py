"""`pad-fast env`."""

from __future__ import annotations

import argparse

from ..command import Command
from ..output import print_once


def _flags(parser: argparse.ArgumentParser) -> None:
    """None: it describes where it runs."""


def _run(options: argparse.Namespace) -> None:
    from ...runtime.environment import environment, format_environment

    print_once(format_environment(environment()))


ENV = Command("env", "say what is installed, built and missing", _flags, _run)
