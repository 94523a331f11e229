"""Runs of which too many iterations are skipped: what they began with would be called their result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import DistillationStopped
from ..settings.config import Config
from .state import State

PATIENCE = 50
"""A run whose first this many iterations are all skipped is stopped, as is a shorter one at its end."""

_HARDLY = 0.1  # of the iterations


def require_update(state: State, config: Config, history: Sequence[Mapping[str, float]]) -> None:
    """Stop a run that has updated nothing after :data:`PATIENCE` iterations, or at its end.

    Raises:
        DistillationStopped: with what usually helps.
    """
    # A run that was stopped here is stopped again when it is repeated, which goes on from its checkpoint.
    due = state.iteration >= min(PATIENCE, config.iterations)
    if not due or state.iteration != state.skipped or config.threshold is None:
        return
    typical = sorted(row["loss"] for row in history)[len(history) // 2]
    raise DistillationStopped(
        f"all of the first {state.iteration} iterations were skipped: the matching loss (median {typical:.3g}) is "
        f"above the threshold {config.threshold:g}, so nothing would ever be updated. {advice(config)}"
    )


def hardly_updated(history: Sequence[Mapping[str, float]]) -> str | None:
    """A sentence about a run that updated its images in at most a tenth of its iterations; None of any other."""
    skipped = sum(bool(row.get("skipped")) for row in history)
    if len(history) - skipped > _HARDLY * len(history) or not skipped:
        return None
    return (
        f"{skipped:,} of {len(history):,} iterations were skipped, because their matching loss was above the "
        "threshold: the images are nearly those that the run began with"
    )


def advice(config: Config) -> str:
    """What usually helps where the loss is above the threshold."""
    return (
        "The student moves away from the experts, usually because its learning rate is too large: start it at the "
        f"experts' (lr_init is {config.lr_init:g}, lr_expert {config.lr_expert:g}), lower syn_steps "
        f"({config.syn_steps}), or raise threshold"
    )
