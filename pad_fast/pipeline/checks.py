"""Checks of a run's settings against its data, its device and its folder, before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..data import DSA, ImageDataset
from ..distillation.batch_matching import make_criterion, require_alone
from ..distillation.initialization import require_images
from ..distillation.trajectory_matching import require_possible
from ..engines import Task, select
from ..errors import ConfigError, DatasetError, StoreError
from ..experts import curriculum_of, prune
from ..runs.folder import CHECKPOINT, CONFIG, DESCRIPTION, DISTILLED, read_description
from ..runtime import distributed, files
from ..runtime.device import cache_bytes
from ..settings.config import Config, completed
from ..settings.per_class import counts_of
from ..settings.snapshot_ranges import format_snapshots
from ..settings.yaml_files import to_yaml
from .cached import given_experts, given_order, spec_of
from .configured import may_go_on, needs_order


def require_usable(config: Config, data: ImageDataset, device: torch.device) -> None:
    """Prove that the settings fit each other, the data and the device.

    Raises:
        InputError: they do not. BackendError: the backend asked for cannot serve this.
    """
    _require_images(config, data)
    _require_served(config, data, device)
    if config.order_file is not None and needs_order(config):
        given_order(config, data)
    if config.buffer_path is not None:
        given_experts(config, data)
        return
    if config.uses_experts:
        config.require_snapshots(config.train_epochs, "experts are trained for train_epochs")
        _require_kept(config)
    _require_curriculum(config, data)


def as_recorded(config: Config, data: ImageDataset, folder: Path) -> Config:
    """The settings, with the data named as the run in `folder` names it, where its data are the same.

    A relative path, an absolute one and a copy elsewhere are the same data, but settings are compared, and stages
    found again, by their words.
    """
    try:
        theirs = read_description(folder)
    except StoreError:
        return config
    if theirs.get("dataset_fingerprint") != data.fingerprint:
        return config
    return replace(config, **{name: theirs[name] for name in ("dataset", "resolution") if name in theirs})


def claim(config: Config, data: ImageDataset, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Write settings and description of the run, unless the folder belongs to a run with other settings.

    Raises:
        ConfigError: it does.
    """
    mine = {"dataset_fingerprint": data.fingerprint, **config.describe()}
    # A run that ended before its first checkpoint has nothing to lose but its stages, which carry their own keys.
    begun = (out / DESCRIPTION).exists() and any((out / name).exists() for name in (CHECKPOINT, DISTILLED))
    if begun and not overwrite:
        theirs = completed(read_description(out))
        skip = set(config.describe("run", "evaluate"))
        if resume and may_go_on(config):
            skip.add("iterations")
        different = [k for k in mine if k not in skip and mine[k] != theirs.get(k)]
        if different:
            key = different[0]
            raise ConfigError(
                f"{out} holds a run with other settings ({key}: {theirs.get(key)!r}, now {mine[key]!r}"
                f"{f' and {len(different) - 1} more' if len(different) > 1 else ''}); "
                "choose another output folder, or pass overwrite=True (--overwrite) to replace its results"
            )
    if distributed.group().main:
        files.write_json(out / DESCRIPTION, mine)
        files.write_text(out / CONFIG, to_yaml(config))


def _require_images(config: Config, data: ImageDataset) -> None:
    """Enough of them to begin with."""
    counts = counts_of(config.ipc_per_class, config.ipc, data.class_names)
    if config.pix_init != "noise":
        require_images([len(indices) for indices in data.images_by_class()], counts)


def _require_served(config: Config, data: ImageDataset, device: torch.device) -> None:
    """An engine for the method and the network."""
    network = spec_of(config, data).build(config.seed, "probe")
    DSA(config.dsa, mode=config.dsa_mode)
    cache_bytes(config.cache, device)
    if config.uses_experts:
        require_possible(config, network)
        select(config.backend, Task(network, device, torch.float32, config.gradient, config.precision))
    else:
        require_alone(config)
        make_criterion(config, network, device)


def _require_kept(config: Config) -> None:
    """Before experts are trained whose snapshots would then be missing."""
    lost = {*config.reached_snapshots, config.train_epochs} - set(config.kept_snapshots)
    if lost:
        raise ConfigError(
            f"keep is {config.keep!r}, but these settings reach snapshots {format_snapshots(lost)} as well; use "
            "keep plan, or all"
        )


def _require_curriculum(config: Config, data: ImageDataset) -> None:
    """Images of every class in every epoch, after pruning."""
    pruned = [len(indices) for indices in prune(data.images_by_class(), config.prune)]
    curriculum_of(config).require_images(config.train_epochs, pruned)
    if config.uses_experts or config.pix_init == "noise":
        return
    for left, size in zip(pruned, map(len, data.images_by_class()), strict=True):
        if left < min(config.ipc, size):
            raise DatasetError(
                f"prune {config.prune!r} leaves {left} images of a class, fewer than ipc {config.ipc}; "
                "drop fewer, lower ipc or use pix_init noise"
            )
