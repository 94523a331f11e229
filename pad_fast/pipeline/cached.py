"""Results of a stage that are there already, and the names they are found by: digests of everything they depend on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ..data import ImageDataset
from ..experts import ExpertStore
from ..models.spec import NetworkSpec
from ..scoring.difficulty import Difficulty
from ..settings.config import Config
from ..settings.snapshot_ranges import format_snapshots
from .configured import may_go_on
from .published_experts import open_experts


def spec_of(config: Config, data: ImageDataset) -> NetworkSpec:
    """The network of experts and students."""
    return NetworkSpec(config.model, data.channels, data.classes, data.resolution)


def key_of(*parts: Any) -> str:
    """Short digest of everything a stage depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def scores_path(config: Config, data: ImageDataset, cache: Path) -> Path:
    """The file of the difficulty scores."""
    return cache / f"scores-{key_of(data.fingerprint, config.digested('data', 'scores'))}.safetensors"


def experts_folder(config: Config, data: ImageDataset, cache: Path) -> Path:
    """The folder of the expert store."""
    described = config.digested("data", "scores", "experts")
    described.pop("num_experts")  # more experts extend a store, fewer use the first of it
    # A store that lacks snapshots must not be taken for another one.
    described["keep"] = format_snapshots(config.kept_snapshots)
    described["threads"] = "one" if config.workers else "all"
    return cache / f"experts-{key_of(data.fingerprint, described)}"


def distillation_key(config: Config, data: ImageDataset) -> str:
    """The key of a checkpoint, which a run with the same one may go on from."""
    described = config.digested("data", "scores", "experts", "distill")
    if may_go_on(config):
        described.pop("iterations")
    return key_of(data.fingerprint, described, torch.__version__)


def given_order(config: Config, data: ImageDataset) -> Difficulty:
    """The easy-to-hard order in the file that the settings name.

    Raises:
        StoreError: it cannot be read, or belongs to another data set.
    """
    assert config.order_file is not None
    return Difficulty.load(config.order_file, data)


def given_experts(config: Config, data: ImageDataset) -> ExpertStore:
    """The experts in the folder that the settings name, or below it.

    Raises:
        InputError: they cannot be read, belong to another network or data set, or lack snapshots of this run.
    """
    assert config.buffer_path is not None
    store = open_experts(Path(config.buffer_path), config, data.resolution)
    network = spec_of(config, data).build(config.seed, "probe")
    store.require(
        {
            "parameter_count": network.parameter_count,
            "model": config.model,
            "fingerprint": data.fingerprint,
            "normalization": "zca" if config.zca else "mean-std",
        }
    )
    config.require_snapshots(store.epochs, f"the experts in {store.folder} end at")
    store.require_snapshots([*config.reached_snapshots, -1])
    return store
