"""`pad-fast resume`."""

from __future__ import annotations

import argparse

from ..command import Command
from ..options import add_log, add_place, place, progress
from ..output import print_run


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of the run, killed or finished")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="iterations in all (default: those that it was begun with)"
    )
    parser.add_argument("--dataset", help="the data, where they are elsewhere now (default: as the run names them)")
    add_log(parser)
    add_place(parser)


def _run(options: argparse.Namespace) -> None:
    from ...pipeline.resume import resume

    result = resume(
        options.run,
        iterations=options.iterations,
        dataset=options.dataset,
        download=options.download,
        log=options.log,
        progress=progress(options),
        **place(options),
    )
    print_run(result)


RESUME = Command("resume", "continue a run with what its folder says", _flags, _run)
