"""`pad-fast compare`."""

from __future__ import annotations

import argparse

from ...runtime import distributed
from ..command import Command


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs, or a folder that holds several")
    parser.add_argument("--out", metavar="FILE", help="also write a page (HTML)")


def _run(options: argparse.Namespace) -> None:
    from ...reporting.compare import compare
    from ...runtime.files import write_text

    if not distributed.group().main:
        return
    comparison = compare(options.runs)
    print(comparison.text())
    if options.out:
        print(f"\n{write_text(options.out, comparison.page())}")


COMPARE = Command("compare", "put runs beside each other: accuracy, loss, settings, time", _flags, _run)
