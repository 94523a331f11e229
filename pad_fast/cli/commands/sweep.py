"""`pad-fast sweep`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...settings.presets import SWEPT
from ..command import Command
from ..options import RUN_STAGES, add_settings, run_arguments
from ..output import print_once

_SWEPT = ("prune", "mask", "mask_ratio", "seed")
"""Settings that several values are given of, under flags of the sweep's own."""


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the sweep; repeating a killed command completes it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace runs with other settings in --out")
    parser.add_argument(
        "--prune",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="KIND:X,X",
        help="FIEx: none, hardest:0,0.1,0.2, easiest:0.1 (default: what --config says, else none)",
    )
    parser.add_argument(
        "--mask",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="KIND:X,X",
        help="FIEm: none, depth:0,0.25,0.5, layers:1,2, loss:0.5 (default: what --config says, else none)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="seeds that are averaged (default: the one of --config, else 0)",
    )
    add_settings(parser, RUN_STAGES, but=_SWEPT)
    parser.set_defaults(usual=SWEPT)


def _run(options: argparse.Namespace) -> None:
    from ...pipeline.sweep import PAGE, sweep
    from ...settings.resolve import UNSET

    result = sweep(**run_arguments(options), seeds=getattr(options, "seeds", UNSET))
    if result is not None:
        print_once(f"{result.table()}\n\n{Path(options.out) / PAGE}")


SWEEP = Command("sweep", "run distill over a grid of what is pruned and what is masked", _flags, _run, joins=False)
