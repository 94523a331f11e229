"""Networks by name, built from a seed."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

from ..runtime.rng import derive_seed
from . import FlatNetwork, network

_building = threading.Lock()  # modules draw their weights from the one global generator


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name for images of one kind; `build` makes as many different ones as there are seeds."""

    model: str
    channels: int
    classes: int
    resolution: int

    def build(self, seed: int, *purpose: str | int) -> FlatNetwork:
        """A freshly initialised network; the global generator is left as it was."""
        with _building, torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the GPUs' generators as well.
            torch.default_generator.manual_seed(derive_seed(seed, *purpose, "weights"))
            module = network(self.model, channels=self.channels, classes=self.classes, resolution=self.resolution)
        return FlatNetwork(module)
