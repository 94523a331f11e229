"""`pad-fast distill`."""

from __future__ import annotations

import argparse

from ..command import Command
from ..options import RUN_STAGES, add_settings, run_arguments
from ..output import print_once


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/<dataset>-ipc<ipc>-<method>)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace a run with other settings in --out")
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="NAME",
        help="tensorboard or wandb: send the numbers there too, through its own package; may be repeated",
    )
    add_settings(parser, RUN_STAGES)


def _run(options: argparse.Namespace) -> None:
    from ...evaluation import EvaluationReport
    from ...pipeline.distill import distill

    result = distill(**run_arguments(options), resume=options.resume, log=options.log)
    print_once(EvaluationReport(tuple(result.evaluation)).table())
    print_once(f"\n{result!r}")


DISTILL = Command(
    "distill",
    "run every stage: scores, experts, distillation, evaluation",
    _flags,
    _run,
    "what is finished is kept; repeat the command with --resume to continue",
)
