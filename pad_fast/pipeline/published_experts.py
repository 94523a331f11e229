"""Experts below a `buffer_path`, in the folders that published programs give them by data set and network.

These are `DATASET/MODEL`, for CIFAR without ZCA `DATASET_NO_ZCA/MODEL`, and for parts of ImageNet
`ImageNet/SUBSET/RESOLUTION/MODEL`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ..data.imagenet import SUBSETS
from ..errors import StoreError
from ..experts import ExpertStore
from ..experts.replay import replay_files, replay_folders
from ..experts.store import STORE, further_down
from ..settings.config import Config
from ..settings.yaml_files import plain_name

_IMAGENET = "imagenet"
# Other names that a data set of ours has there.
_ALSO = {"tinyimagenet": ("tiny",), "tiny": ("tinyimagenet",), _IMAGENET: ("imagenette",)}

logger = logging.getLogger("pad_fast")


def open_experts(root: Path, config: Config, resolution: int) -> ExpertStore:
    """The experts for these settings at `root` or below it, where exactly one folder there has their names.

    The names are compared from the end of a path, so `root` may be any folder above. A network's name may differ (ours
    says depth and width) where there is only one of the data set.

    Args:
        resolution: of the images, which tells folders of ImageNet apart.

    Raises:
        StoreError: no folder or several have the names, and `root` itself holds no experts; or they are damaged.
    """
    fits = _fitting(root, config, resolution)
    if len(fits) == 1:
        if fits[0] != root:
            logger.info(f"experts of {config.dataset} for {config.model} are read from {fits[0]}")
        return ExpertStore.open(fits[0])
    if not (root / STORE).exists() and not replay_files(root):
        several = "several folders are called" if fits else "no folder is called"
        raise StoreError(
            f"no experts in {root}: neither {STORE} nor replay_buffer_*.pt is there, and {several} "
            f"{_published_place(config, resolution)} below it, as published programs call theirs{further_down(root)}"
        )
    return ExpertStore.open(root)


def _fitting(root: Path, config: Config, resolution: int) -> list[Path]:
    dataset = plain_name(config.dataset)
    names = {f"{dataset}nozca"} if _without_zca(config) else {dataset, *_ALSO.get(dataset, ())}
    found = []
    for folder in replay_folders(root):
        *above, model = (plain_name(part) for part in folder.absolute().parts)
        subset = above[-2] if above[-3:-2] == [_IMAGENET] and above[-1] == str(resolution) else ""
        if above[-1] in names or subset in names:
            found.append((folder, model))
    named = [folder for folder, model in found if model == plain_name(config.model)]
    return named or [folder for folder, _ in found]


def _published_place(config: Config, resolution: int) -> str:
    dataset = config.dataset + "_NO_ZCA" * _without_zca(config)
    if plain_name(dataset) in SUBSETS:
        dataset = f"ImageNet/{dataset}/{resolution}"
    return f"{dataset}/{config.model}"


def _without_zca(config: Config) -> bool:
    return plain_name(config.dataset).startswith("cifar") and not config.zca
