"""`pad-fast export`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...data.distilled import EXPORTS
from ...errors import ConfigError
from ...runtime import distributed
from ...settings.fields import alternatives
from ..command import Command
from ..options import add_reading, reading, whitening

if TYPE_CHECKING:
    from ...data import Normalization
    from ...data.distilled import DistilledDataset


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "distilled", metavar="PATH", help="folder or file of a distilled set, in any format that we read"
    )
    parser.add_argument("--to", metavar="FORMAT", required=True, help=f"{alternatives(EXPORTS)} (docs/distilled.md)")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write; of npz also a file")
    add_reading(parser)
    parser.add_argument(
        "--dataset", help="data that zca or mean-std is fitted to (default: what the set was distilled from)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets are")
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is not there yet")


def _run(options: argparse.Namespace) -> None:
    from ...data.distilled import load, with_whitening

    if not distributed.group().main:
        return
    distilled = load(options.distilled, **reading(options))
    if how := whitening(options, distilled):
        distilled = with_whitening(distilled, _normalization(how, distilled, options))
    print(distilled.export(options.out, options.to))


def _normalization(how: str | Normalization, distilled: DistilledDataset, options: argparse.Namespace) -> Normalization:
    """The one that was named, fitted to the data, or read from a file."""
    from ...data import Normalization, fit_normalization, load_dataset

    if distilled.whitening is not None and not distilled.are_pixels:
        raise ConfigError(
            f"{options.distilled} says itself how it was normalised ({distilled.whitening.kind}); leave out "
            "--whitening, --zca, --mean-std and --normalize"
        )
    if isinstance(how, Normalization):
        return how
    dataset, resolution = options.dataset or distilled.config.get("dataset"), distilled.images.shape[-1]
    if dataset is None:
        raise ConfigError(f"--whitening {how} is fitted to the real data; name them with --dataset")
    data = load_dataset(dataset, data_dir=options.data_dir, resolution=resolution, download=options.download)
    return fit_normalization(data, how)


EXPORT = Command("export", "write a distilled set for other programs", _flags, _run)
