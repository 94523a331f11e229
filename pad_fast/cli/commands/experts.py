"""`pad-fast experts`: training, and `experts info`, `verify` and `convert` for stores that are there."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import StoreError
from ...runtime import distributed
from ...settings.config import Config
from ..command import Command
from ..options import add_field, add_quiet, add_settings, progress
from ..output import print_once
from ..single_stage import UNUSED_ALONE, stage_inputs


def _train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the store; repeating continues it")
    add_settings(parser, ("data", "scores", "experts", "run"), unused=("buffer_path", *UNUSED_ALONE))


def _train(options: argparse.Namespace) -> None:
    from ...pipeline.configured import keep_scores, needs_order, score_as_configured, train_as_configured
    from ...runtime.files import require_writable
    from ...scoring.difficulty import Difficulty

    given = stage_inputs(options)
    config, data, normalization = given.config, given.data, given.normalization
    out = require_writable(options.out)
    distributed.group().require_shared(out)
    difficulty = None
    if needs_order(config):
        # Kept beside the experts, so that repeating the command continues with the same order.
        path = Path(config.order_file or out / "difficulty.safetensors")
        if config.order_file is None and not path.exists():
            kept = out / "score-networks"
            scores = score_as_configured(config, data, normalization, given.device, given.progress, networks_dir=kept)
            keep_scores(scores, path, kept)
        difficulty = Difficulty.load(path, data)
    store = train_as_configured(config, data, normalization, difficulty, out, given.device, given.progress)
    print_once(repr(store))


def _info_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="DIR", help="a store, or a folder of replay_buffer_*.pt")


def _info(options: argparse.Namespace) -> None:
    from ...experts import describe_store

    print_once(describe_store(options.store))


def _verify_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="DIR", help="a store")


def _verify(options: argparse.Namespace) -> None:
    from ...experts import examine

    findings = list(examine(options.store))
    problems = [finding.problem for finding in findings if finding.problem is not None]
    for problem in problems:
        print_once(problem)
    if problems:
        raise StoreError(f"{len(problems)} of {len(findings)} experts in {options.store} are damaged or missing")
    print_once(f"{len(findings)} experts, all as they were written")


def _convert_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a store, or a folder of replay_buffer_*.pt")
    parser.add_argument("destination", metavar="DST", help="folder to write to; repeating continues it")
    parser.add_argument("--replay", action="store_true", help="write replay_buffer_*.pt instead of a store")
    add_field(parser, "keep", text="snapshots to keep: all, or e.g. 0:22,-1 (default: all)", default=Config.keep)
    add_field(parser, "expert_storage", default=Config.expert_storage)
    add_quiet(parser)


def _convert(options: argparse.Namespace) -> None:
    from ...experts import convert_experts

    store = convert_experts(
        options.source,
        options.destination,
        replay=options.replay,
        keep=options.keep,
        storage=options.expert_storage,
        progress=progress(options),
    )
    print_once(repr(store))


EXPERTS = Command("experts", "train expert trajectories", _train_flags, _train)
INFO = Command("experts info", "say what is in an expert store", _info_flags, _info)
VERIFY = Command("experts verify", "compare every byte of a store with its checksums", _verify_flags, _verify)
CONVERT = Command("experts convert", "write experts in another form, one at a time", _convert_flags, _convert)
