"""Difficulty of every training image (EL2N, GraNd, forgetting) and the easy-to-hard order it gives."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..data import DSA, Normalization, fit_normalization, load_dataset
from ..errors import ConfigError, InputError, nearest
from ..models.sources import Maker, model_name
from ..models.spec import NetworkSpec
from ..runtime.device import resolve_device
from ..runtime.progress import Progress
from ..settings.choices import SCORE_METHODS
from .difficulty import Difficulty
from .formulas import class_order
from .networks import NetworkFolder, ScoreRecipe, require_features, trained_networks
from .one_pass import score_in_one_pass


def score(
    dataset: Any,
    *,
    method: str = "el2n",
    model: str | Maker = "ConvNet",
    networks: int = 10,
    epochs: int = 10,
    batch: int = 256,
    lr: float = 0.01,
    momentum: float = 0.0,
    dsa: str = "none",
    normalization: Normalization | None = None,
    zca: bool = False,
    seed: int = 0,
    device: str = "auto",
    backend: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    networks_dir: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Difficulty:
    """Train a few networks for a few epochs and average each image's score over them (arXiv 2107.07075, 1812.05159).

    After their training, one pass over the data scores all networks, in eval mode without augmentation. An engine for
    GPUs takes as many networks together as keep the GPU busy, which changes each by rounding only. Scores are never
    divided by a batch size.

    Args:
        dataset: anything :func:`pad_fast.load_dataset` takes.
        method: "el2n"; "grand" (last layer, closed form); "forgetting" (times an image goes from right to wrong
            between the epochs' looks at it; an image never learnt counts as `epochs`).
        model: network of the score networks, as :func:`pad_fast.network` takes it.
        networks, epochs, batch, lr, momentum: how many score networks, and their SGD.
        dsa: augmentation during training, a DSA strategy or "none".
        normalization: how pixels are normalised; fitted to the data when None (`zca` chooses ZCA).
        seed: same seed, same scores.
        networks_dir: folder that keeps each network as soon as it is trained. A killed call is continued by repeating
            it and gives the result of an undisturbed one; with another method or more networks, those that are there
            are used again.

    Returns:
        The scores, their variance over networks, the order they give, and each image's forgetting events.

    Raises:
        ConfigError: unknown method, a count below 1, or a learning rate that is not positive.
        InputError: the networks diverged.
        StoreError: `networks_dir` cannot be written to, or holds networks of other settings.

    Example:
        >>> difficulty = score("digits", model="ConvNetD1W8", networks=1, epochs=1, progress=Progress(quiet=True))
        >>> len(difficulty.scores), len(difficulty.order)
        (1437, 10)
    """
    _require_usable(method, lr, dsa, networks=networks, epochs=epochs, batch=batch)
    model, progress = model_name(model), Progress.of(progress)
    data = load_dataset(dataset, data_dir=data_dir, progress=progress)
    where = resolve_device(device)
    normalization = normalization or fit_normalization(data, "zca" if zca else "mean-std", progress=progress)
    spec = NetworkSpec(model, data.channels, data.classes, data.resolution)
    recipe = ScoreRecipe(
        spec, epochs=epochs, batch=batch, lr=lr, momentum=momentum, dsa=dsa, seed=seed, device=where, backend=backend
    )
    if method == "grand":
        require_features(recipe)

    @cache
    def prepared() -> tuple[Tensor, Tensor]:
        return normalization.apply(data.train_images).to(where), data.train_labels.to(where)

    folder = NetworkFolder(networks_dir, recipe.key(data.fingerprint, normalization))
    trained = trained_networks(recipe, networks, prepared, folder, progress)
    events = torch.stack([network.forgetting for network in trained]).double()  # [networks, N]
    forgetting = events.mean(0)
    if method == "forgetting":
        mean, variance = forgetting, events.var(0, correction=min(1, networks - 1))
    else:
        running = score_in_one_pass(recipe, trained, *prepared(), method, progress)
        mean, variance = running.mean.cpu(), running.variance(networks).cpu()
    scores = mean.float()
    if not bool(scores.isfinite().all()):
        raise InputError(f"the score networks diverged with learning rate {lr:g}; lower it")
    return Difficulty(
        scores,
        class_order(scores, data.train_labels, data.classes),
        method,
        data.fingerprint,
        variance=variance.float(),
        forgetting=forgetting.float(),
        settings={
            "dataset": data.name,
            "model": model,
            "networks": networks,
            "epochs": epochs,
            "batch": batch,
            "lr": lr,
            "momentum": momentum,
            "dsa": dsa,
            "normalization": normalization.kind,
            "seed": seed,
        },
    )


def _require_usable(method: str, lr: float, dsa: str, **counts: int) -> None:
    if method not in SCORE_METHODS:
        raise ConfigError(
            f"unknown score method {method!r}; use one of {', '.join(SCORE_METHODS)}.{nearest(method, SCORE_METHODS)}"
        )
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"score {name} is {value}; it must be at least 1")
    if not lr > 0:
        raise ConfigError(f"score learning rate is {lr}; it must be positive")
    if dsa != "none":
        DSA(dsa)
