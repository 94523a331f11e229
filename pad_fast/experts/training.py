"""Training of single experts, snapshot by snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.spec import NetworkSpec
from ..runtime.rng import generator
from ..training.trainer import Trainer, TrainingStreams
from .recipe import ExpertRecipe


@dataclass(frozen=True, eq=False)
class ExpertTraining:
    """Everything expert i depends on besides i; nothing in it changes from one expert to the next.

    Attributes:
        spec: the network.
        images: normalised `[N, C, H, W]`; labels: int64 `[N]`; both on `device`.
        order: dataset indices per class, easy to hard, as far as they are shown at all; on `device`.
        test: images and labels to test on every `recipe.test_every` epochs, if any.
        together: how many experts :meth:`train` should be given.
    """

    recipe: ExpertRecipe
    spec: NetworkSpec
    images: Tensor
    labels: Tensor
    order: Sequence[Tensor]
    device: torch.device
    backend: str
    test: tuple[Tensor, Tensor] | None = None
    together: int = 1

    def train(self, numbers: Sequence[int]) -> list[tuple[Tensor, dict[str, Any]]]:
        """The experts of these numbers from their first weights on, whatever was trained before them.

        Returns:
            For each expert, snapshots `[len(kept), P]` on the CPU, and what to remember: the mean training `loss` of
            the last epoch, and test `accuracy` in percent by epoch.
        """
        recipe = self.recipe
        networks = [self.spec.build(recipe.seed, "expert", number) for number in numbers]
        trainer = Trainer(networks, device=self.device, backend=self.backend)
        generators = [generator(recipe.seed, "expert draws", number) for number in numbers]
        streams = TrainingStreams(trainer, generators, recipe.augmentation())
        optimizer = recipe.make_optimizer()
        places = {epoch: place for place, epoch in enumerate(recipe.kept)}
        snapshots = torch.empty(len(numbers), len(places), trainer.theta.shape[-1])
        accuracies: dict[str, Tensor] = {}
        losses = trainer.theta.new_full((len(numbers),), float("nan"))
        for epoch in range(recipe.epochs + 1):
            if epoch:
                shown = recipe.curriculum.indices(epoch - 1, self.order)
                batches = streams.batches(shown, recipe.batch)
                losses = trainer.epoch(self.images, self.labels, batches, optimizer, streams.augment)
                if self.test is not None and (epoch % recipe.test_every == 0 or epoch == recipe.epochs):
                    accuracies[str(epoch)] = trainer.accuracy(*self.test)
            if epoch in places:
                snapshots[:, places[epoch]] = trainer.theta
        return list(zip(snapshots, _facts(losses, accuracies), strict=True))


def _facts(losses: Tensor, accuracies: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Loss and accuracies by epoch of each expert, as its file remembers them."""
    facts: list[dict[str, Any]] = [{"loss": loss} for loss in losses.reshape(-1).tolist()]
    for epoch, percent in accuracies.items():
        for fact, value in zip(facts, percent.reshape(-1).tolist(), strict=True):
            fact.setdefault("accuracy", {})[epoch] = round(value, 3)
    return facts
