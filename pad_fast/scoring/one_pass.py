"""Scores of all networks in one pass over the images, and their mean and variance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..models.flat import embed
from ..runtime.progress import Progress
from . import native
from .formulas import el2n_naive, grand_naive
from .networks import ScoreNetwork, ScoreRecipe

_CHUNK = 512  # images in a forward pass


def score_in_one_pass(
    recipe: ScoreRecipe,
    networks: list[ScoreNetwork],
    images: Tensor,
    labels: Tensor,
    method: str,
    progress: Progress,
) -> RunningScores:
    """All networks' scores from one pass over the images; only a chunk's logits exist at a time.

    Args:
        images, labels: normalised `[N, C, H, W]` and int64 `[N]`, on the recipe's device.
        method: "el2n" or "grand".
    """
    trained = TrainedNetworks(recipe, networks, wants_features=method == "grand")
    running = RunningScores(len(labels), recipe.device)
    pieces = _chunks(len(labels))
    with trained.running():
        for rows in progress.track(pieces, "scores: one pass", total=len(pieces), unit="batch"):
            for index, (logits, features) in enumerate(trained(images[rows])):
                running.add(index, rows, logits, labels[rows], features)
    return running


class RunningScores:
    """Mean and variance of every image's score over networks, without ever holding more than the two.

    Networks are added in any number of batches of images; each image sees its networks in the same order.

    Attributes:
        mean: float64 `[N]`, of the networks added so far.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.mean = torch.zeros(count, dtype=torch.float64, device=device)
        self._deviations = torch.zeros_like(self.mean)

    def add(self, network: int, rows: slice, logits: Tensor, labels: Tensor, features: Tensor | None = None) -> None:
        """Add the scores of images `rows` under network number `network` (from 0): EL2N, or GraNd with `features`."""
        mean, deviations = self.mean[rows], self._deviations[rows]
        if native.serves(logits, *([] if features is None else [features])):
            whole = None if features is None else features.contiguous()
            native.accumulate(mean, deviations, network, logits.contiguous(), labels.contiguous(), features=whole)
            return
        # The formulas: el2n() and grand() would wait for the device to see whether the labels are classes.
        scores = (
            el2n_naive(logits.double(), labels)
            if features is None
            else grand_naive(logits.double(), features.double(), labels)
        )
        before = mean if network else scores
        delta = scores - before
        mean.copy_(before + delta / (network + 1))
        deviations.mul_(bool(network)).add_(delta * (scores - mean))

    def variance(self, networks: int) -> Tensor:
        """Unbiased variance over the `networks` added, float64 `[N]`; 0 for a single one."""
        return self._deviations / max(networks - 1, 1)


class TrainedNetworks:
    """Trained networks in eval mode: logits, and features where they are asked for, of any images."""

    def __init__(self, recipe: ScoreRecipe, networks: Sequence[ScoreNetwork], *, wants_features: bool) -> None:
        self.trainers = []
        most = 1 if wants_features else recipe.together(_CHUNK)
        for first in range(0, len(networks), most):
            group = networks[first : first + most]
            trainer = recipe.trainer(range(first, first + len(group)))
            buffers: dict[str, Any] = dict(trainer.network.module.named_buffers())
            for name, value in group[0].buffers.items():  # networks that have some are alone in their group
                buffers[name].copy_(value)
            trainer.theta = torch.stack([network.theta for network in group]).view_as(trainer.theta).to(recipe.device)
            trainer.network.module.eval()
            if wants_features:
                trainer.network.load(trainer.theta)
            self.trainers.append(trainer)
        self.wants_features = wants_features

    def running(self) -> AbstractContextManager[None]:
        """Held around many calls."""
        return nullcontext() if self.wants_features else self.trainers[0].engine.running()

    def __call__(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """For each network, logits `[B, classes]` of normalised images, and features `[B, F]` or None."""
        for trainer in self.trainers:
            if not self.wants_features:
                logits = trainer.forward(images)
                yield from ((own, None) for own in (logits if trainer.stacked else [logits]))
                continue
            module = trainer.network.module
            with torch.no_grad():
                features = embed(module, images)
                yield module.get_submodule("classifier")(features), features


def _chunks(count: int) -> list[slice]:
    """The images of one forward pass after the other."""
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
