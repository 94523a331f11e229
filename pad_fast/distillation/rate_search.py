"""The images' learning rate for `lr_img="auto"`: the best of some powers of ten, each tried on a copy of the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import mean

from ..settings.config import Config
from .back_off import Fault
from .iterations import Iterations
from .state import State

POWERS = (-3, -2, -1, 0)
"""Candidates: these powers of ten times the rate at which one step takes the images as far as they are large."""
STEPS = 10
"""Iterations with each."""
LATE = 5
"""The last of them, whose mean loss is compared: all candidates see the same draws."""
ALIKE = 0.01
"""A loss within this part of the lowest is no reason for the larger rate."""

UNKNOWN = 0.0
"""The rate until the first update has been seen, which the search begins at: images stay, their gradient is kept."""


def prepare(state: State, config: Config) -> None:
    """Let a run begin whose rate is to be found."""
    if config.lr_img == "auto":
        state.found.setdefault("lr_img", UNKNOWN)


def is_due(state: State) -> bool:
    """Whether the rate is still to be found."""
    return state.found.get("lr_img") == UNKNOWN


def has_gradient(state: State) -> bool:
    """Whether an update has been seen."""
    return bool(state.momentum["images"].any())


def find_rate(loop: Iterations, state: State, say: Callable[[str], None]) -> None:
    """Find the rate of a state that has just had its first update, with no iteration under way.

    Deterministic: iterations are functions of seed and number, and nothing is measured in time.
    """
    gradient = float(state.momentum["images"].double().norm())
    size = float(state.images.double().norm())
    # Without a gradient every rate is as good as any other.
    center = round(math.log10(size / gradient)) if size > 0 and gradient > 0 else 0
    losses = {rate: _loss_after(loop, state, rate) for rate in (10.0 ** (center + power) for power in POWERS)}
    state.found["lr_img"] = choose(losses)
    listed = ", ".join(f"{rate:g}: {loss:.4g}" for rate, loss in losses.items())
    say(f"distill: lr_img is {state.found['lr_img']:g}, by the matching loss after {STEPS} iterations ({listed})")


def choose(losses: Mapping[float, float]) -> float:
    """The smallest rate whose loss is as good as the lowest.

    Example:
        >>> choose({1.0: 0.9, 10.0: 0.702, 100.0: 0.7, 1000.0: float("inf")})
        10.0
    """
    lowest = min(losses.values())
    return min(rate for rate, loss in losses.items() if loss <= lowest * (1 + ALIKE))


def _loss_after(loop: Iterations, state: State, rate: float) -> float:
    """Mean loss of the late iterations with this rate; infinite where it does not get so far."""
    trial = state.copy()
    trial.found["lr_img"] = rate
    losses = []
    try:
        for _ in range(STEPS):
            losses.append(loop.settle(trial, loop.begin(trial))["loss"])
    except Fault:
        return math.inf
    return mean(losses[-LATE:])
