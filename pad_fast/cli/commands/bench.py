"""`pad-fast bench`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from ...errors import ConfigError, nearest
from ..command import Command


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", help="what to measure; docs/benchmarks.md lists them")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the suite, e.g. --rounds 3")


def _run(options: argparse.Namespace) -> None:
    # The suites are no part of the installed package; its entry point does not put the working folder on the path.
    sys.path.insert(0, os.getcwd())
    try:
        from benchmarks.registry import MODULES
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the benchmarks are in the source tree, not in the installed package; run this in a checkout of it"
        ) from error
    if options.suite not in MODULES:
        raise ConfigError(
            f"there is no suite {options.suite!r}.{nearest(options.suite, MODULES)} There are: {', '.join(MODULES)}"
        )
    sys.argv = [f"benchmarks.{options.suite}", *options.arguments]
    importlib.import_module(f"benchmarks.{options.suite}").main()


BENCH = Command("bench", "measure engines against plain torch (in a source checkout)", _flags, _run)
