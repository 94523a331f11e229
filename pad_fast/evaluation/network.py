"""The networks of an evaluation: fresh ones are trained on a set and tested once."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data import DSA
from ..errors import InputError
from ..models.spec import NetworkSpec
from ..runtime.rng import generator
from ..training.optimizers import SGD, AdamW
from ..training.trainer import BatchMix, Trainer, TrainingStreams

# Epochs between two looks at the losses: each look waits for the device.
_LOOK_EVERY = 50


@dataclass(frozen=True)
class EvaluationRecipe:
    """Training of a network on a set.

    Attributes:
        lr: learning rate to begin with.
        momentum: of "sgd".
        dsa: augmentation strategy or "none".
        optimizer: "sgd" or "adamw".
        schedule: "half": halfway the rate drops tenfold and the optimiser starts afresh; "step": the rate alone does;
            "fifths": the rate is halved after every fifth of the epochs; "cosine": it falls to half of itself, as the
            first half of a cosine's fall to zero.
        cutmix: probability that a batch is mixed (:mod:`pad_fast.data.cutmix`).
        teacher: whether a network trained on the full set labels every augmented and mixed batch.
    """

    lr: float
    epochs: int = 1000
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dsa: str = "color_crop_cutout_flip_scale_rotate"
    dsa_mode: str = "fast"
    optimizer: str = "sgd"
    schedule: str = "half"
    cutmix: float = 0.0
    teacher: bool = False

    def described(self) -> dict[str, Any]:
        """All of it, for what results are found by; the last four, which came later, only where they say something."""
        values, defaults = asdict(self), EvaluationRecipe(self.lr)
        later = ("optimizer", "schedule", "cutmix", "teacher")
        return {name: value for name, value in values.items() if name not in later or value != getattr(defaults, name)}

    def optimizer_of(self, epoch: int, before: SGD | AdamW | None) -> SGD | AdamW:
        """The optimiser of an epoch, made of the one of the epoch before it."""
        if self.schedule == "half":
            halfway = (self.epochs + 1) // 2  # one epoch alone keeps the full rate
            if before is None or epoch == halfway:
                return self._fresh(0.1 if epoch >= halfway else 1.0)
            return before
        optimizer = before or self._fresh()
        optimizer.lr = self.lr * self._share(epoch)
        return optimizer

    def _share(self, epoch: int) -> float:
        """Of the first rate."""
        if self.schedule == "step":
            return 0.1 if epoch >= (self.epochs + 1) // 2 else 1.0
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * epoch / (2 * self.epochs))) / 2
        return 0.5 ** sum(epoch >= fifth * self.epochs // 5 for fifth in (1, 2, 3, 4))

    def _fresh(self, scale: float = 1.0) -> SGD | AdamW:
        if self.optimizer == "adamw":
            return AdamW(self.lr * scale, weight_decay=self.weight_decay)
        return SGD(self.lr * scale, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Network:
    """Network `index` of a row; with its training set and recipe this decides everything about it.

    Attributes:
        spec: the architecture.
        seed: of the evaluation.
        purpose: what it is trained on, in one word: networks of different rows start from different weights.
        index: networks of one row are numbered from 0.
    """

    spec: NetworkSpec
    seed: int
    purpose: str
    index: int

    @property
    def names(self) -> tuple[str | int, ...]:
        """Names of its random streams."""
        return ("evaluation", self.spec.model, self.purpose, self.index)


def train_networks(
    networks: Sequence[Network],
    sets: Sequence[tuple[Tensor, Tensor]],
    recipe: EvaluationRecipe,
    *,
    device: torch.device,
    backend: str,
    teacher: nn.Module | None = None,
) -> Generator[None, None, Trainer]:
    """Train networks of one architecture together, epoch by epoch: yields after each, and returns the trained ones.

    Args:
        sets: for each network what it is trained on: normalised images `[N, C, H, W]` and targets, label logits
            `[N, classes]` (soft) or classes int64 `[N]`, on `device`; of the same shapes for all of them.
        teacher: gives the logits that label every batch, where the recipe wants one; in eval mode.

    Raises:
        InputError: training diverged.
    """
    modules = [each.spec.build(each.seed, *each.names) for each in networks]
    mixes = recipe.cutmix > 0 or recipe.teacher
    trainer = Trainer(modules, device=device, backend=backend, labels_are="probabilities" if mixes else "logits")
    generators = [generator(each.seed, *each.names, "draws") for each in networks]
    streams = TrainingStreams(trainer, generators, DSA(recipe.dsa, mode=recipe.dsa_mode), cutmix=recipe.cutmix)
    images, targets, rows = _pooled(sets)
    mix = streams.mix
    if recipe.teacher:
        assert teacher is not None
        mix = partial(_taught, teacher, streams.mix)
    if mixes:
        targets = _probabilities(targets, networks[0].spec.classes)
    optimizer: SGD | AdamW | None = None
    losses: list[Tensor] = []
    for epoch in range(recipe.epochs):
        optimizer = recipe.optimizer_of(epoch, optimizer)
        batches = streams.batches(rows, recipe.batch)
        losses.append(trainer.epoch(images, targets, batches, optimizer, streams.augment, mix=mix))
        last = epoch == recipe.epochs - 1
        if last:
            # Parameters that are not finite would show in the next epoch's loss.
            losses[-1] = losses[-1].where(trainer.theta.isfinite().all(-1), torch.nan)
        if last or len(losses) == _LOOK_EVERY:
            _require_finite(losses, epoch, networks, recipe)
            losses.clear()
        yield
    return trainer


@torch.no_grad()
def _taught(teacher: nn.Module, mix: BatchMix | None, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A batch `[*K, B, C, H, W]`, mixed, with the probabilities `[*K, B, classes]` that the teacher gives it."""
    if mix is not None:
        images, _ = mix(images, targets)
    taught = teacher(images.reshape(-1, *images.shape[-3:])).softmax(-1)
    return images, taught.reshape(*images.shape[:-3], -1)


def _probabilities(targets: Tensor, classes: int) -> Tensor:
    """`[N, classes]` of label logits, or of classes `[N]`."""
    if targets.is_floating_point():
        return targets.softmax(-1)
    return torch.nn.functional.one_hot(targets, classes).float()


def _pooled(sets: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """All images and all targets, and the rows of them that are each network's: `[N]` of all, or `[K, N]`."""
    images, targets = sets[0]
    rows = torch.arange(len(images), device=images.device)
    if all(one[0] is images and one[1] is targets for one in sets):
        return images, targets, rows
    starts = torch.arange(len(sets), device=images.device)[:, None] * len(images)
    return torch.cat([one[0] for one in sets]), torch.cat([one[1] for one in sets]), starts + rows


def _require_finite(losses: list[Tensor], epoch: int, networks: Sequence[Network], recipe: EvaluationRecipe) -> None:
    """Check the losses of the last epochs, up to `epoch`."""
    finite = torch.stack(losses).isfinite().reshape(len(losses), -1)
    if bool(finite.all()):
        return
    place, index = (~finite).nonzero()[0].tolist()
    raise InputError(
        f"training on {networks[index].purpose} diverged in epoch {epoch - len(losses) + 1 + place} with learning rate "
        f"{recipe.lr:g}; lower lr"
    )
