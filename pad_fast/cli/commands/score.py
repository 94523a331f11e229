"""`pad-fast score`."""

from __future__ import annotations

import argparse

from ...runtime import distributed
from ..command import Command
from ..options import add_settings
from ..output import print_once
from ..single_stage import UNUSED_ALONE, stage_inputs


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="a folder, or a file (.safetensors, or .pt for the reference's order table) that the others are named "
        "after; repeating a killed command continues it",
    )
    add_settings(
        parser,
        ("data", "scores", "run"),
        unused=("dsa", "dsa_mode", "order_file", "workers", "test_every", *UNUSED_ALONE),
    )


def _run(options: argparse.Namespace) -> None:
    from ...pipeline.configured import score_as_configured
    from ...reporting.names import data_name
    from ...reporting.score_page import ScoreFiles

    given = stage_inputs(options)
    written = ScoreFiles.at(options.out, given.data)
    distributed.group().require_shared(written.scores.parent)
    difficulty = score_as_configured(
        given.config, given.data, given.normalization, given.device, given.progress, networks_dir=written.networks
    )
    if distributed.group().main:
        written.write(difficulty, given.data, called=data_name(given.config.dataset))
    print_once(f"{difficulty!r} -> {written.main}\n{written.page}")


SCORE = Command("score", "score the difficulty of every training image", _flags, _run)
