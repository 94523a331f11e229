"""Published settings (tables of PAD and DATM) and the defaults of every method and data set."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, nearest
from .yaml_files import plain_name

# What gradient and distribution matching have in common. The ratio is the one of PAD's tables, for a mask without one.
_BATCH: dict[str, Any] = {
    "curriculum": False,
    "mask": "none",
    "mask_ratio": 0.25,
    "soft_labels": False,
    "pix_init": "real",
    "sequential_generation": False,
    "threshold": None,
    "zca": False,
    "batch_syn": None,
    "lr_init": 0.01,
    "momentum_img": 0.5,
    "batch_real": 256,
}

# What distinguishes the methods. PAD is the loop's default; the others switch parts of it off.
_METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "pad": {},
    "datm": {"curriculum": False, "mask": "none", "mask_ratio": 0.0},
    "ftd": {
        "curriculum": False,
        "mask": "none",
        "mask_ratio": 0.0,
        "soft_labels": False,
        "pix_init": "real",
        "sequential_generation": False,
        "threshold": None,
        "ema_decay": 0.999,
    },
    "mtt": {
        "curriculum": False,
        "expert_optimizer": "sgd",
        "mask": "none",
        "mask_ratio": 0.0,
        "soft_labels": False,
        "pix_init": "real",
        "sequential_generation": False,
        "threshold": None,
    },
    "tesla": {
        "curriculum": False,
        "expert_optimizer": "sgd",
        "mask": "none",
        "mask_ratio": 0.0,
        "pix_init": "real",
        "sequential_generation": False,
        "threshold": None,
        "gradient": "tesla",
    },
    "dc": {**_BATCH, "iterations": 1000, "lr_img": 0.1, "match_dsa": False},
    "dsa": {**_BATCH, "iterations": 1000, "lr_img": 0.1, "match_dsa": True},
    "dm": {**_BATCH, "iterations": 20_000, "lr_img": 1.0, "match_dsa": True},
}


def _published(
    steps: int,
    matched: int,
    start: tuple[int, int],
    batch: int | None,
    lr_img: float,
    lr_lr: float,
    lr_y: float,
    threshold: float,
    ratio: float,
    *,
    growing: tuple[int, int] | None = None,
    pix_init: str = "samples_predicted_correctly",
) -> dict[str, Any]:
    """One cell of the table: T / M / start range / batch / lr_img / lr_lr / lr_y / threshold / mask ratio."""
    return {
        "syn_steps": steps,
        "expert_epochs": matched,
        "min_start_epoch": start[0],
        "max_start_epoch": start[1],
        "sequential_generation": growing is not None,
        "current_max_start_epoch": growing[0] if growing else start[1],
        "expansion_end_epoch": growing[1] if growing else 3000,
        "batch_syn": batch,
        "lr_img": lr_img,
        "lr_lr": lr_lr,
        "lr_y": lr_y,
        "threshold": threshold,
        "mask": "depth",
        "mask_ratio": ratio,
        "pix_init": pix_init,
        "zca": True,
    }


_P = _published
_TABLE: dict[str, dict[int, dict[str, Any]]] = {
    "cifar10": {
        1: _P(80, 2, (0, 4), None, 100, 1e-7, 5, 1.1, 0.0),
        10: _P(80, 2, (0, 20), 500, 100, 1e-5, 2, 1.0, 0.5, growing=(10, 1000)),
        50: _P(80, 3, (0, 40), 1000, 1000, 1e-5, 2, 1.0, 0.25, growing=(20, 2000)),
        500: _P(40, 2, (40, 70), 1000, 50, 1e-5, 10, 1.0, 0.5, growing=(60, 2000)),
        1000: _P(100, 2, (40, 60), 1000, 50, 1e-5, 10, 1.0, 0.5),
    },
    "cifar100": {
        1: _P(40, 3, (0, 30), 1000, 1000, 1e-5, 10, 1.0, 0.5, growing=(20, 1000)),
        10: _P(80, 2, (0, 50), 1000, 1000, 1e-5, 10, 1.0, 0.5, growing=(30, 2000)),
        50: _P(80, 2, (20, 70), 1000, 1000, 1e-5, 10, 1.0, 0.0, pix_init="real"),
        100: _P(80, 2, (30, 70), 1000, 50, 1e-5, 10, 1.0, 0.5),
    },
    "tinyimagenet": {
        1: _P(40, 2, (0, 20), 1000, 10000, 1e-4, 10, 1.0, 0.5, growing=(15, 2000)),
        10: _P(40, 2, (10, 50), 500, 100, 1e-4, 10, 1.0, 0.5),
        50: _P(20, 2, (40, 70), 1000, 100, 1e-4, 10, 1.0, 0.5),
    },
}

# The 8x8 digits train in seconds. Found on seed 0 by training images held out of everything; the README's numbers are
# from other seeds. An expert epoch is 18 steps, and experts need their high rate: at 0.02 they were far from trained
# where students were to follow them.
_DIGITS: dict[str, Any] = {
    "model": "ConvNetD2W32",
    "dsa": "color_crop_scale_rotate",
    "score_networks": 3,
    "score_epochs": 8,
    "score_batch": 64,
    "score_lr": 0.05,
    "num_experts": 20,
    "train_epochs": 20,
    "batch_train": 80,
    "lr_expert": 0.1,
    "add_end_epoch": 4,
    "removal1_epoch": 8,
    "removal2_epoch": 12,
    "sequential_generation": False,
    "lr_lr": 1e-4,
}
_DIGITS_IPC: dict[int, dict[str, Any]] = {
    1: {
        "syn_steps": 60,
        "expert_epochs": 2,
        "lr_init": 0.05,
        "max_start_epoch": 12,
        "lr_img": 10.0,
        "lr_y": 0.2,
        "iterations": 400,
        "mask_ratio": 0.0,
    },
    10: {
        "syn_steps": 40,
        "expert_epochs": 4,
        "lr_init": 0.1,
        "max_start_epoch": 16,
        "batch_syn": 50,
        "lr_img": 300.0,
        "lr_y": 0.5,
        "iterations": 200,
        "mask_ratio": 0.25,
    },
}
# The same for the methods that match batches; three networks each on seed 0.
_DIGITS_BATCH: dict[str, dict[int, dict[str, Any]]] = {
    "dc": {1: {"lr_img": 1.0, "iterations": 400}, 10: {"lr_img": 1.0, "iterations": 30}},
    "dsa": {1: {"lr_img": 1.0, "iterations": 400}, 10: {"lr_img": 1.0, "iterations": 30}},
    "dm": {1: {"lr_img": 10.0, "iterations": 400}, 10: {"lr_img": 10.0, "iterations": 400}},
}


SWEPT: dict[str, Any] = {"eval_baselines": False}
"""Of a sweep: baselines are the same in every cell, and their cost many times a cell's."""


def preset_names() -> list[str]:
    """Names accepted as `preset=` / `--preset`."""
    names = [f"{dataset}-ipc{ipc}" for dataset, cells in _TABLE.items() for ipc in cells]
    return [*(f"digits-ipc{ipc}" for ipc in _DIGITS_IPC), *names]


def preset(name: str) -> dict[str, Any]:
    """The published (or, for the digits, our) settings of that name, without the method's.

    Raises:
        ConfigError: unknown name, with the nearest.
    """
    dataset, _, text = name.lower().rpartition("-ipc")
    dataset = {"tiny": "tinyimagenet"}.get(dataset, dataset)
    if dataset == "digits" and text.isdigit() and int(text) in _DIGITS_IPC:
        return {"dataset": dataset, "ipc": int(text), **_DIGITS, **_DIGITS_IPC[int(text)]}
    if dataset in _TABLE and text.isdigit() and int(text) in _TABLE[dataset]:
        model = {"tinyimagenet": "ConvNetD4"}.get(dataset, "ConvNetD3")
        return {"dataset": dataset, "ipc": int(text), "model": model, **_TABLE[dataset][int(text)]}
    raise ConfigError(f"unknown preset {name!r}; there are {', '.join(preset_names())}.{nearest(name, preset_names())}")


def defaults_for(dataset: str, ipc: int) -> dict[str, Any]:
    """The preset of a data set for the nearest IPC below; for data sets without presets, nothing."""
    key = plain_name(dataset)
    key = {"tiny": "tinyimagenet"}.get(key, key)
    cells = {**_TABLE, "digits": _DIGITS_IPC}.get(key)
    if cells is None:
        return {}
    nearest_ipc = max((known for known in cells if known <= ipc), default=min(cells))
    return preset(f"{key}-ipc{nearest_ipc}")


def method_settings(method: str, dataset: str, ipc: int) -> dict[str, Any]:
    """The settings that a method changes, in general and on this data set."""
    cells = _DIGITS_BATCH.get(method, {}) if plain_name(dataset) == "digits" else {}
    return _METHOD_SETTINGS[method] | (cells[max(known for known in cells if known <= ipc)] if cells else {})
