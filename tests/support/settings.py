"""Settings under which the whole pipeline takes about a second on the digits, and settings unlike the defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pad_fast import Config

SMALL: dict[str, Any] = {
    "model": "ConvNetD2W8",
    "score_networks": 1,
    "score_epochs": 1,
    "num_experts": 2,
    "train_epochs": 4,
    "add_end_epoch": 1,
    "removal1_epoch": 2,
    "removal2_epoch": 3,
    "max_start_epoch": 2,
    "syn_steps": 3,
    "iterations": 12,
    "checkpoint_every": 4,
    "threshold": 5.0,
    "eval_networks": 2,
    "eval_epochs": 6,
    "eval_full_epochs": 1,
}


def flags(settings: dict[str, Any]) -> list[str]:
    """The same settings as command-line flags."""
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


_OTHERS: dict[str, Any] = {
    "method": "mtt",
    "score_method": "grand",
    "expert_optimizer": "sgd",
    "mask": "loss",
    "mask_ratio": 0.25,
    "pix_init": "noise",
    "gradient": "tesla",
    "dsa_mode": "reference",
    "dsa": "color_crop",
    "resolution": 16,
    "batch_syn": 7,
    "threshold": None,
    "ema_decay": 0.995,
    "order_file": "orders/table.pt",
    "buffer_path": "a b/ä",
    "prune": "hardest:0.2",
    "keep": "0:5,-1",
    "expert_storage": "float16",
    "split": "batch",
    "validation_fraction": 0.1,
    "validation_every": 206,
    "outer_loop": 3,
    "inner_loop": 7,
    "lr_lr": 1e-7,
    "ipc_per_class": '{"3": 2}',
}


def changed_everywhere() -> dict[str, Any]:
    """A usable value for every field of :class:`Config`, none of them its default."""
    values: dict[str, Any] = {}
    for item in fields(Config):
        default = item.default
        if item.name in _OTHERS:
            values[item.name] = _OTHERS[item.name]
        elif isinstance(default, bool):
            values[item.name] = not default
        elif isinstance(default, int):
            values[item.name] = default + 3
        elif isinstance(default, float):
            values[item.name] = default * 0.75
        else:
            values[item.name] = f"{default}x"
    return values
