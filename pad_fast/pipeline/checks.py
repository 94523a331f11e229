"""Checks of a run's settings against its data, its device and its folder, before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data import DSA, ImageDataset
from ..data.sources import absolute, needs_folder
from ..data.splits import Reading
from ..distillation.batch_matching import make_criterion, require_alone
from ..distillation.initialization import require_images
from ..distillation.trajectory_matching import require_possible
from ..engines import Task, select
from ..errors import ConfigError, DatasetError, StoreError
from ..experts import curriculum_of, prune
from ..runs.folder import CHECKPOINT, CONFIG, DESCRIPTION, DISTILLED, PLACE, WRITTEN, is_running, read_description
from ..runtime import distributed, files
from ..runtime.device import cache_bytes
from ..settings.config import Config, completed
from ..settings.per_class import counts_of
from ..settings.resolve import Settings, override
from ..settings.snapshot_ranges import format_snapshots
from ..settings.yaml_files import to_yaml
from .cached import given_experts, given_order, spec_of
from .configured import may_go_on, needs_order

PATHS = ("order_file", "buffer_path")
"""Settings that are files or folders."""


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
    same = ["dataset", "resolution"]
    # Runs of older versions may name these as they were given, from the folder that they were started in.
    same += [name for name in PATHS if isinstance(theirs.get(name), str) and _at(theirs[name]) == getattr(config, name)]
    return replace(config, **{name: theirs[name] for name in same if name in theirs})


def with_places(config: Config) -> Config:
    """The settings with absolute paths, so that they mean the same from wherever the run is continued."""
    given: dict[str, Any] = {name: getattr(config, name) for name in PATHS if getattr(config, name) is not None}
    places = {name: _at(path) for name, path in given.items()}
    return override(config, {"dataset": absolute(config.dataset), **places})


def place_of(settings: Settings, *, named: bool) -> dict[str, str]:
    """What a run says of its machine, so that it is continued with the same data and device: data_dir and device.

    Args:
        named: the data are those that the settings name, not objects.
    """
    place = {}
    if named and needs_folder(settings.config.dataset):
        place["data_dir"] = str(Reading(settings.data_dir).folder.absolute())
    elif settings.data_dir is not None:
        place["data_dir"] = _at(os.fspath(settings.data_dir))
    if settings.device != "auto":
        place["device"] = settings.device
    return place


def _at(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def require_folder_name(out: str | os.PathLike[str] | None) -> None:
    """Refuse an empty name, which would stand for the folder one is in.

    Raises:
        ConfigError: it is empty.
    """
    if out is not None and not os.fspath(out):
        raise ConfigError("out is empty (--out ''); name the folder to write to, or . for the one you are in")


def require_no_stranger(out: Path) -> None:
    """Refuse a folder of somebody else's, in which a run would write over files; before any work.

    Raises:
        ConfigError: there is a file that has the name of one of a run's, and no run.
    """
    if (out / DESCRIPTION).exists():
        return
    theirs = [name for name in WRITTEN if (out / name).exists()]
    if theirs:
        raise ConfigError(
            f"{out} holds {theirs[0]}, which a run would overwrite, but no run of pad_fast ({DESCRIPTION} is missing); "
            "choose another output folder"
        )


def require_same_run(
    config: Config, data: ImageDataset, out: Path, *, resume: bool, overwrite: bool, alone: bool = False
) -> None:
    """Refuse a folder whose run has other settings: before waiting for a process that works on it.

    Args:
        alone: this process holds the folder's lock, or one of its group does.

    Raises:
        ConfigError: it has.
    """
    if overwrite or not (out / DESCRIPTION).exists():
        return
    # Rank 0 takes the lock for all ranks, of which another one may be here still.
    running = not alone and distributed.group().main and bool(is_running(out))
    # A run that ended before its first checkpoint has nothing to lose but its stages, which carry their own keys.
    if running or any((out / name).exists() for name in (CHECKPOINT, DISTILLED)):
        _require_same(config, data, out, resume=resume, running=running)


def claim(config: Config, data: ImageDataset, out: Path, place: Mapping[str, str]) -> None:
    """Write settings and description of the run, and where it finds its data and device (:func:`place_of`)."""
    if distributed.group().main:
        files.write_json(out / DESCRIPTION, _described(config, data))
        files.write_text(out / CONFIG, to_yaml(config))
        if place or (out / PLACE).exists():
            files.write_json(out / PLACE, dict(place))


def _described(config: Config, data: ImageDataset) -> dict[str, Any]:
    return {"dataset_fingerprint": data.fingerprint, **config.describe()}


def _require_same(config: Config, data: ImageDataset, out: Path, *, resume: bool, running: bool) -> None:
    mine, theirs = _described(config, data), completed(read_description(out))
    skip = set(config.describe("run", "evaluate"))
    if resume and may_go_on(config):
        skip.add("iterations")
    different = [k for k in mine if k not in skip and mine[k] != theirs.get(k)]
    if not different:
        return
    key = different[0]
    longer = different == ["iterations"] and may_go_on(config) and config.iterations > theirs["iterations"]
    raise ConfigError(
        f"{out} holds a run with other settings{', which a process is working on' if running else ''} "
        f"({key}: {theirs.get(key)!r}, now {mine[key]!r}"
        f"{f' and {len(different) - 1} more' if len(different) > 1 else ''}); "
        f"{'go on with it for longer with resume=True (--resume), ' if longer else ''}"
        "choose another output folder, or pass overwrite=True (--overwrite) to replace its results"
    )


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
