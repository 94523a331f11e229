"""`pad-fast evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError, DatasetError, StoreError
from ...evaluation.recipes import OURS, RECIPES
from ...runtime import distributed
from ...settings.config import Config
from ...settings.fields import alternatives
from ..command import Command
from ..options import add_field, add_fields, add_place, add_reading, given, progress, reading, whitening
from ..output import print_once

if TYPE_CHECKING:
    from ...data.distilled import DistilledDataset


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "distilled",
        metavar="PATH",
        nargs="+",
        help="folder or file of a distilled set (docs/distilled.md lists the formats); several make a row each",
    )
    add_reading(parser)
    parser.add_argument("--dataset", help="real data (default: what the first set was distilled from)")
    parser.add_argument(
        "--recipe",
        action="append",
        metavar="NAME",
        help=f"how networks are trained: {alternatives(tuple(RECIPES))}; may be repeated (default: ours, {OURS})",
    )
    parser.add_argument("--model", action="append", help="network, may be repeated (default: the distilled one's)")
    add_field(parser, "seed", default=Config.seed)
    parser.add_argument("--out", metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--difficulty", metavar="FILE", help="EL2N scores (default: computed for the easiest images)")
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where results are kept, so that repeating continues (default: cache/evaluation beside the first set)",
    )
    parser.add_argument(
        "--ddranking", metavar="DIR", help="also write the one set as the tensors that DD-Ranking's metrics read"
    )
    add_field(parser, "backend", default=Config.backend)
    add_field(
        parser,
        "resolution",
        text="resize and crop real images to this many pixels (default: as the set was distilled from them)",
        default=None,
    )
    add_place(parser)
    parser.set_defaults(data_dir=None, device="auto")  # no file says them
    add_fields(parser, ["evaluate"])


def _run(options: argparse.Namespace) -> None:
    from ...data import load_dataset
    from ...data.distilled import load
    from ...pipeline.configured import evaluate_as_configured, evaluation_cache
    from ...runtime.files import require_writable
    from ...settings.families import find_family
    from ...settings.yaml_files import translate

    if options.out:
        require_writable(Path(options.out).parent)
    words = translate(
        options.published, source="command line", family=find_family(options.published), program="evaluate"
    )
    options.data_dir = words.pop("data_dir", options.data_dir)
    sets = {path: load(path, **reading(options)) for path in options.distilled}
    if len(sets) < len(options.distilled):
        raise ConfigError(f"a set is named twice among {', '.join(options.distilled)}; name each once")
    if options.ddranking and len(sets) > 1:
        raise ConfigError("--ddranking writes one set; name one PATH with it")
    how = whitening(options, next(iter(sets.values())))
    dataset = options.dataset or _dataset(sets)
    resolution = options.resolution or next(iter(sets.values())).config.get("resolution")
    try:
        data = load_dataset(
            dataset,
            data_dir=options.data_dir,
            resolution=resolution,
            download=options.download,
            progress=progress(options),
        )
    except DatasetError as error:
        if options.dataset:
            raise
        raise DatasetError(
            f"{error} The set says only that it was distilled from {dataset!r}, as it was named then and there; name "
            "the data as they are here with --dataset (and --data-dir)"
        ) from error
    first = options.distilled[0]
    if options.ddranking:
        print_once(sets[first].export(options.ddranking, "ddranking"))
    cache = options.cache_dir or evaluation_cache(_cache(first))
    if not options.cache_dir:
        try:
            require_writable(cache)
        except StoreError as error:
            raise StoreError(f"{error}; results are kept there, name another folder with --cache-dir") from error
    report = evaluate_as_configured(
        {**words, **given(options)},
        sets if len(sets) > 1 else sets[first],
        data,
        models=tuple(options.model or ("ConvNet",)),
        cache=cache,
        device=options.device,
        progress=progress(options),
        difficulty=options.difficulty,
        lr=options.lr,
        recipe=options.recipe or OURS,
        whitening=how,
    )
    print_once(report.table())
    if options.out and distributed.group().main:
        report.write(options.out)


def _cache(path: str) -> Path:
    """The cache beside a set; not among the folders of its classes, where it would be one, and not the Hub's."""
    from ...data.formats import hub, pngs
    from ...runs.folder import CACHE
    from ...runtime.user_cache import cache_folder

    if path.startswith(hub.PREFIX):
        return cache_folder()
    place = Path(path)
    return (place if place.is_dir() and not pngs.is_set(place) else place.parent) / CACHE


def _dataset(sets: Mapping[str, DistilledDataset]) -> str:
    """The data that all sets which say it were distilled from."""
    said = {path: str(each.config["dataset"]) for path, each in sets.items() if each.config.get("dataset") is not None}
    if not said:
        raise ConfigError(f"{', '.join(sets)} does not say which data it was distilled from; name it with --dataset")
    (first, dataset), *others = said.items()
    for path, other in others:
        if other != dataset:
            raise ConfigError(
                f"{first} was distilled from {dataset} and {path} from {other}; name the data that all are tested on "
                "with --dataset"
            )
    return dataset


EVALUATE = Command("evaluate", "train fresh networks on a distilled set and test them", _flags, _run)
