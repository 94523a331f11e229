"""`pad-fast report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...runtime import distributed
from ..command import Command


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of the run, or of several runs that are to be compared")
    parser.add_argument(
        "--out", metavar="PATH", help="write to this folder, or this file (.html), instead of the run's folder"
    )
    parser.add_argument("--watch", action="store_true", help="write it again and again until the run has ended")


def _run(options: argparse.Namespace) -> None:
    from ...reporting.compare import present_runs
    from ...reporting.present import present, watch
    from ...runs.folder import is_run, runs_in

    if not distributed.group().main:
        return
    folder, out = Path(options.run), None if options.out is None else Path(options.out)
    if options.watch:
        print(watch(folder, out=out, say=lambda message: print(message, file=sys.stderr, flush=True)))
    elif not is_run(folder) and runs_in(folder):
        print(present_runs(folder, out))
    else:
        print(present(folder, out))


REPORT = Command("report", "write images.png and report.html of a run, finished or not", _flags, _run)
