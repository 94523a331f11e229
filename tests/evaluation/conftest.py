"""Records of how evaluated networks are trained."""

from __future__ import annotations

import pytest

from pad_fast.evaluation import trial
from pad_fast.training.trainer import Trainer


@pytest.fixture
def epochs(monkeypatch):
    """(lr, optimiser, batch sizes, trainer) of every epoch that is trained."""
    seen = []
    original = Trainer.epoch

    def record(self, images, labels, batches, optimizer, augment=None, observe=None, mix=None):
        batches = list(batches)
        if observe is None:  # not a score network's
            seen.append((optimizer.lr, optimizer, [len(batch) for batch in batches], self))
        return original(self, images, labels, batches, optimizer, augment, observe, mix)

    monkeypatch.setattr(Trainer, "epoch", record)
    return seen


@pytest.fixture
def trained_on(monkeypatch):
    """(images, targets, recipe) of every network, by what it was trained on."""
    seen = {}
    original = trial.train_networks

    def record(networks, sets, recipe, **named):
        for network, taken in zip(networks, sets, strict=True):
            seen.setdefault(network.purpose, []).append((*taken, recipe))
        return original(networks, sets, recipe, **named)

    monkeypatch.setattr(trial, "train_networks", record)
    return seen
