"""Settings under which the whole pipeline takes about a second on the digits."""

from __future__ import annotations

from typing import Any

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
