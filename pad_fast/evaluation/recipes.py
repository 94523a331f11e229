"""Recipes by name: how networks are trained on a distilled set, here and in published programs' evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, nearest

# They count epochs from 0 to the number they are given, 1000, lower the rate behind epoch 501 (here one earlier), and
# draw augmentation in an order of their own.
_TRAJECTORIES: dict[str, Any] = {"epochs": 1001, "momentum": 0.9, "weight_decay": 5e-4, "dsa_mode": "reference"}

OURS = "pad_fast"
RECIPES: dict[str, Mapping[str, Any]] = {
    OURS: {"epochs": 1000, "batch": 128, "momentum": 0.9, "weight_decay": 5e-4, "dsa_mode": "fast"},
    "mtt": {**_TRAJECTORIES, "batch": 256},
    "datm": {**_TRAJECTORIES, "batch": 128},
    # The decay is what torch's AdamW takes where it is told nothing.
    "ncfm": {
        **{"epochs": 2000, "batch": 128, "momentum": 0.9, "weight_decay": 0.01, "dsa_mode": "reference"},
        **{"lr": 1e-3, "optimizer": "adamw", "schedule": "fifths", "cutmix": 0.5},
    },
    "ddranking": {
        **{"epochs": 1000, "batch": 256, "momentum": 0.9, "weight_decay": 5e-4, "dsa_mode": "reference"},
        **{"schedule": "step"},
    },
    # The program searches the rate by accuracy on the test set; this is the one most methods it ranks were made for.
    "ddranking-teacher": {
        **{"epochs": 300, "batch": 256, "momentum": 0.9, "weight_decay": 0.01, "dsa": "none", "dsa_mode": "reference"},
        **{"lr": 1e-3, "optimizer": "adamw", "schedule": "cosine", "cutmix": 1.0, "teacher": True},
    },
}
"""What each says about the arguments of :func:`pad_fast.evaluate`, and about
:class:`pad_fast.evaluation.network.EvaluationRecipe`. MTT's is FTD's and TESLA's too, DATM's is PAD's; DD-Ranking has
one for sets with labels of their own, and one for those that a teacher labels."""


def recipe_named(name: str) -> Mapping[str, Any]:
    """A recipe of :data:`RECIPES`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; use one of {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    return RECIPES[name]
