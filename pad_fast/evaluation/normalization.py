"""How the images of an evaluation are normalised: for each set as its distilled images were."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from ..data import ImageDataset, Normalization, fit_normalization
from ..data.distilled import DistilledDataset
from ..data.normalize import NORMALIZATIONS
from ..errors import ConfigError
from ..runtime.progress import Progress


def normalizations_of(
    sets: Mapping[str, DistilledDataset],
    data: ImageDataset,
    whitening: str | Normalization | None,
    cache_dir: str | os.PathLike[str] | None,
    progress: Progress | None = None,
) -> dict[str, Normalization]:
    """The normalisation of each set, one object where they are equal; arguments as in :func:`pad_fast.evaluate`.

    That of pixels, which have none yet, is the one that `whitening` names, or mean and std. A set that carries its own
    keeps it.

    Raises:
        ConfigError: all say how they were normalised, and `whitening` is given; or that is a file's path.
        InputError: `whitening` is of images of another shape.

    Warns:
        UserWarning: a set does not say how, and neither does `whitening`.
    """
    if not isinstance(whitening, str | Normalization | None) or (
        isinstance(whitening, str) and whitening not in NORMALIZATIONS and Path(whitening).exists()
    ):
        raise ConfigError(
            f"whitening is {str(whitening)!r}; of a file pass pad_fast.load_normalization(FILE) (--normalize FILE)"
        )
    said = {name: each.whitening for name, each in sets.items() if each.whitening is not None and not each.are_pixels}
    if whitening is not None and len(said) == len(sets):
        name, own = next(iter(said.items()))
        raise ConfigError(
            f"{name} says itself how it was normalised ({own.kind}); leave out whitening= (--whitening, --zca, "
            "--mean-std, --normalize), which is for sets that do not"
        )
    known: dict[str, Normalization] = dict(said)
    if len(said) < len(sets):
        silent = [name for name, each in sets.items() if each.whitening is None]
        if whitening is None and silent:
            warnings.warn(
                f"{', '.join(silent)} carries no whitening; its test images are normalised with mean and std. If it "
                "was made with ZCA, its accuracies are wrong: pass whitening='zca' (--zca), or the folder that "
                "pad_fast saved; whitening='mean-std' (--mean-std) says that this is right",
                UserWarning,
                stacklevel=3,
            )
        caches = [] if cache_dir is None else [Path(cache_dir)]
        kind = "mean-std" if whitening is None else whitening
        other = (
            kind if isinstance(kind, Normalization) else fit_normalization(data, kind, caches=caches, progress=progress)
        )
        for name in sets.keys() - said.keys():
            other.invert(sets[name].images[:1])  # one of other images is refused before any training
            known[name] = other
        if whitening is not None and said and progress is not None:
            kept = ", ".join(f"{name} ({own.kind})" for name, own in said.items())
            progress.say(f"evaluate: normalised as they say themselves: {kept}; {other.kind} is for the others")
    found: dict[str, Normalization] = {}
    for name in sets:
        found[name] = next((one for one in found.values() if _equal(one, known[name])), known[name])
    return found


def _equal(one: Normalization, other: Normalization) -> bool:
    if one is other:
        return True
    mine, theirs = one.state(), other.state()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
