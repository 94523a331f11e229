"""`pad-fast distill`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..command import Command
from ..options import RUN_STAGES, add_log, add_settings, run_arguments
from ..output import print_once, print_run


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/<dataset>-ipc<ipc>-<method>)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="the run in --out may go on for more iterations than it began with (a killed one goes on anyway)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a run with other settings in --out")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only check everything, and print settings, what follows from them, memory and about how long it takes",
    )
    add_log(parser)
    add_settings(parser, RUN_STAGES)


def _run(options: argparse.Namespace) -> None:
    from ...pipeline.distill import distill
    from ...pipeline.dry_run import dry_run
    from ...runs.folder import require_run

    if options.resume and options.out is not None:
        require_run(Path(options.out))  # a mistyped folder would begin anew
    if options.dry_run:
        print_once(dry_run(**run_arguments(options), resume=options.resume))
        return
    print_run(distill(**run_arguments(options), resume=options.resume, log=options.log))


DISTILL = Command("distill", "run every stage: scores, experts, distillation, evaluation", _flags, _run)
