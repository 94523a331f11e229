"""Stages as the settings of a run ask for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ..data import ImageDataset, Normalization, load_dataset
from ..experts import ExpertStore, curriculum_of, train_experts
from ..runtime import distributed
from ..runtime.progress import Progress
from ..scoring.difficulty import Difficulty
from ..scoring.score import score
from ..settings.config import Config
from ..settings.snapshot_ranges import format_snapshots


def configured_data(
    config: Config, dataset: Any, data_dir: str | os.PathLike[str] | None, *, download: bool = False
) -> tuple[ImageDataset, ImageDataset | None]:
    """The data of a run without the part it holds out, and the data with that part in place of the test set."""
    data = load_dataset(dataset, data_dir=data_dir, resolution=config.resolution, download=download)
    if not config.validation_fraction:
        return data, None
    return data.hold_out(config.validation_fraction, seed=config.seed)


def normalization_caches(out: Path) -> list[Path]:
    """Where a fitted ZCA is kept for what is written to `out`, and looked for: a run's folder serves those in it."""
    return [out / "cache", out.parent / "cache"]


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
