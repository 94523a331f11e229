"""How the images of an evaluation are normalised: as the distilled ones were."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from ..data import ImageDataset, Normalization, fit_normalization
from ..data.distilled import DistilledDataset
from ..errors import ConfigError


def normalization_of(
    sets: Mapping[str, DistilledDataset],
    data: ImageDataset,
    whitening: str | Normalization | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Normalization:
    """The one normalisation of all sets; arguments as in :func:`pad_fast.evaluate`.

    Raises:
        ConfigError: sets were normalised in different ways, or all say how and `whitening` is given.

    Warns:
        UserWarning: a set does not say how, and neither does `whitening`.
    """
    said = {name: each.whitening for name, each in sets.items() if each.whitening is not None}
    if whitening is not None and len(said) == len(sets):
        name, own = next(iter(said.items()))
        raise ConfigError(
            f"{name} says itself how it was normalised ({own.kind}); leave out whitening= (--whitening), which is for "
            "sets that do not"
        )
    known: dict[str, Normalization] = dict(said)
    if len(said) < len(sets):
        if whitening is None:
            warnings.warn(
                "this distilled set carries no whitening; test images are normalised with mean and std. If it was "
                "made with ZCA, the accuracies are wrong: pass whitening='zca' (--whitening zca), or the folder that "
                "pad_fast saved; whitening='mean-std' says that this is right",
                UserWarning,
                stacklevel=3,
            )
        caches = [] if cache_dir is None else [Path(cache_dir)]
        kind = "mean-std" if whitening is None else whitening
        other = kind if isinstance(kind, Normalization) else fit_normalization(data, kind, caches=caches)
        known |= {name: other for name in sets if name not in said}
    (first, normalization), *others = known.items()
    for name, other in others:
        if not _equal(normalization, other):
            raise ConfigError(
                f"{first} was normalised with {normalization.kind} and {name} in another way ({other.kind}), so no "
                "test images fit both; evaluate them in calls of their own"
            )
    return normalization


def _equal(one: Normalization, other: Normalization) -> bool:
    if one is other:
        return True
    mine, theirs = one.state(), other.state()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
