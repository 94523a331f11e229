"""Iterations of a criterion as the loop repeats them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..matching import ParameterMask
from ..settings.config import Config
from .state import State

LATE = 8
"""On a GPU, how many iterations may be under way while the results of earlier ones are still unknown to the host."""


class Iterations(Protocol):
    """A criterion's iterations, as :func:`run` repeats them: each is begun, and settled when its outcome is wanted.

    Attributes:
        late: iterations that may be begun before the first of them is settled.
    """

    config: Config
    late: int

    def begin(self, state: State) -> Any:
        """Start an iteration; what it returns goes to :meth:`settle`."""

    def settle(self, state: State, pending: Any) -> dict[str, float]:
        """The row of metrics.jsonl of an iteration, after all earlier ones were settled.

        Raises:
            DistillationStopped: it went wrong; `state` is as it was before it. A run that backs off goes on from a
                :class:`.back_off.Fault`.
        """


def read_later(outcome: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """`outcome` in host memory, and what to wait for before it is read; None when it is there already."""
    if outcome.device.type != "cuda":
        return outcome, None
    copied = torch.empty(outcome.shape, dtype=outcome.dtype, pin_memory=True).copy_(outcome, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copied, arrived


def make_mask(config: Config) -> ParameterMask:
    """The mask a config asks for."""
    if config.mask == "none":
        return ParameterMask.none()
    return ParameterMask(config.mask, config.mask_ratio)
