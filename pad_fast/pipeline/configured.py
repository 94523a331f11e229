"""Stages as the settings of a run ask for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..data import ImageDataset, Normalization, load_dataset
from ..data.distilled import DistilledDataset
from ..evaluation import EvaluationReport, evaluate
from ..experts import ExpertStore, curriculum_of, train_experts
from ..runs.folder import CACHE, EVALUATION_CACHE
from ..runtime import distributed
from ..runtime.progress import Progress
from ..scoring.difficulty import Difficulty
from ..scoring.score import score
from ..settings.config import Config
from ..settings.snapshot_ranges import format_snapshots

_EVALUATE = {
    "eval_networks": "repeats",
    "eval_epochs": "epochs",
    "eval_full_epochs": "full_epochs",
    "eval_batch": "batch",
    "eval_momentum": "momentum",
    "eval_weight_decay": "weight_decay",
    "eval_baselines": "baselines",
    "eval_robust": "robust",
    "dsa_mode": "dsa_mode",
    "seed": "seed",
    "backend": "backend",
}
"""Setting -> argument of :func:`pad_fast.evaluate`."""


def configured_data(
    config: Config,
    dataset: Any,
    data_dir: str | os.PathLike[str] | None,
    *,
    download: bool = False,
    progress: Progress | None = None,
) -> tuple[ImageDataset, ImageDataset | None]:
    """The data of a run without the part it holds out, and the data with that part in place of the test set."""
    data = load_dataset(dataset, data_dir=data_dir, resolution=config.resolution, download=download, progress=progress)
    if not config.validation_fraction:
        return data, None
    return data.hold_out(config.validation_fraction, seed=config.seed)


def normalization_caches(out: Path) -> list[Path]:
    """Folders where a fitted ZCA is kept for what is written to `out`, and looked for: a run serves those in it."""
    return [out / CACHE, out.parent / CACHE]


def evaluation_cache(cache: Path) -> Path:
    """The folder of the results of single networks, in the cache of a run."""
    return cache / EVALUATION_CACHE


def needs_order(config: Config) -> bool:
    """Whether anything in the run depends on how hard images are."""
    return config.curriculum or config.prune != "none"


def may_go_on(config: Config) -> bool:
    """Whether a finished run may be continued for longer: not where a curriculum was stretched over its iterations."""
    return config.uses_experts or not config.curriculum


def order_of(data: ImageDataset, difficulty: Difficulty | None) -> list[torch.Tensor]:
    """Dataset indices per class, easy to hard where that is known."""
    return data.images_by_class() if difficulty is None else difficulty.order


def score_as_configured(
    config: Config,
    data: ImageDataset,
    normalization: Normalization,
    device: torch.device,
    progress: Progress,
    *,
    networks_dir: Path,
) -> Difficulty:
    """:func:`pad_fast.score` with a config's settings."""
    return score(
        data,
        method=config.score_method,
        model=config.model,
        networks=config.score_networks,
        epochs=config.score_epochs,
        batch=config.score_batch,
        lr=config.score_lr,
        normalization=normalization,
        seed=config.seed,
        device=str(device),
        backend=config.backend,
        networks_dir=networks_dir,
        progress=progress,
    )


def keep_scores(difficulty: Difficulty, path: Path, networks: Path) -> Difficulty:
    """Write the scores, delete the folder of the networks they come from, and return what all ranks go on with."""
    group = distributed.group()
    group.on_main("the scores to be written", lambda: difficulty.save(path))
    if group.main:
        shutil.rmtree(networks)
    # Not their own: on another machine the last bits may differ, and with them the order.
    return difficulty if group.main else Difficulty.load(path)


def train_as_configured(
    config: Config,
    data: ImageDataset,
    normalization: Normalization,
    difficulty: Difficulty | None,
    out: Path,
    device: torch.device,
    progress: Progress,
) -> ExpertStore:
    """:func:`pad_fast.train_experts` with a config's settings."""
    return train_experts(
        data,
        out=out,
        experts=config.num_experts,
        epochs=config.train_epochs,
        curriculum=curriculum_of(config),
        difficulty=difficulty,
        prune_rule=config.prune,
        optimizer=config.expert_optimizer,
        rho=config.gsam_rho,
        alpha=config.gsam_alpha,
        model=config.model,
        batch=config.batch_train,
        lr=config.lr_expert,
        dsa=config.dsa,
        dsa_mode=config.dsa_mode,
        keep=format_snapshots(config.kept_snapshots),
        storage=config.expert_storage,
        test_every=config.test_every,
        workers=config.workers,
        normalization=normalization,
        seed=config.seed,
        device=str(device),
        backend=config.backend,
        progress=progress,
    )


def evaluate_as_configured(
    config: Config | Mapping[str, Any],
    distilled: DistilledDataset | Mapping[str, DistilledDataset],
    data: ImageDataset,
    *,
    models: Sequence[str],
    cache: str | os.PathLike[str],
    device: torch.device | str,
    progress: Progress,
    **changes: Any,
) -> EvaluationReport:
    """:func:`pad_fast.evaluate` with a config's settings.

    Args:
        config: a config, or those of its settings that were given; the function's own defaults serve for the others.
        cache: folder of the results of single networks.
        **changes: arguments of :func:`pad_fast.evaluate` that are not, or not as the settings have them, in a config.
    """
    settings = asdict(config) if isinstance(config, Config) else config
    arguments = {argument: settings[name] for name, argument in _EVALUATE.items() if name in settings}
    arguments |= changes
    return evaluate(distilled, data, models=models, cache_dir=cache, device=str(device), progress=progress, **arguments)
