"""`pad-fast evaluate`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from ...errors import ConfigError
from ...runtime import distributed
from ...settings.config import Config
from ..command import Command
from ..options import add_field, add_fields, add_place, given, progress
from ..output import print_once

_STAGE = "evaluate"
_ARGUMENTS = {"eval_networks": "repeats", "eval_epochs": "epochs", "eval_full_epochs": "full_epochs"}
"""Arguments of :func:`pad_fast.evaluate` that are called otherwise than their setting, `eval_` aside."""


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("distilled", metavar="PATH", help="folder or file of a distilled set (the .pt trio too)")
    parser.add_argument("--dataset", help="real data (default: what the set was distilled from)")
    parser.add_argument("--model", action="append", help="network, may be repeated (default: the distilled one's)")
    add_field(parser, "seed", default=Config.seed)
    parser.add_argument("--out", metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--difficulty", metavar="FILE", help="EL2N scores (default: computed for the easiest images)")
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where results are kept, so that repeating continues (default: cache/evaluation beside the set)",
    )
    parser.add_argument(
        "--ddranking", metavar="DIR", help="also write the set as the tensors that DD-Ranking's metrics read"
    )
    add_field(parser, "backend", default=Config.backend)
    add_place(parser)
    parser.set_defaults(data_dir=None, device="auto")  # no file says them
    add_fields(parser, [_STAGE])


def _run(options: argparse.Namespace) -> None:
    from ...data import load_dataset
    from ...data.distilled import load
    from ...evaluation import evaluate, export_ddranking
    from ...runtime.files import require_writable

    if options.out:
        require_writable(Path(options.out).parent)
    distilled = load(options.distilled)
    dataset = options.dataset or distilled.config.get("dataset")
    if dataset is None:
        raise ConfigError(f"{options.distilled} does not say which data it was distilled from; name it with --dataset")
    resolution = distilled.config.get("resolution")
    data = load_dataset(dataset, data_dir=options.data_dir, resolution=resolution, download=options.download)
    if options.ddranking:
        print_once(export_ddranking(distilled, options.ddranking))
    place = Path(options.distilled)
    known = {item.name for item in fields(Config) if item.metadata["stage"] == _STAGE}
    chosen = {name: value for name, value in given(options).items() if name in known}
    report = evaluate(
        distilled,
        data,
        models=tuple(options.model or ("ConvNet",)),
        difficulty=options.difficulty,
        cache_dir=options.cache_dir or (place if place.is_dir() else place.parent) / "cache" / "evaluation",
        seed=options.seed,
        device=options.device,
        backend=options.backend,
        progress=progress(options),
        **{_ARGUMENTS.get(name, name.removeprefix("eval_")): value for name, value in chosen.items()},
    )
    print_once(report.table())
    if options.out and distributed.group().main:
        report.write(options.out)


EVALUATE = Command("evaluate", "train fresh networks on a distilled set and test them", _flags, _run)
