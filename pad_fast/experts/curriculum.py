"""FIEx: which images an expert sees in which epoch, and static pruning by difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..settings.choices import PRUNES
from ..settings.config import Config


@dataclass(frozen=True)
class Curriculum:
    """Easy images first, hard ones added later, the easiest removed at the end (PAD's FIEx).

    With n images of a class ordered easy to hard and epochs counted from 0:

    * `e <= add_end_epoch`: the first `floor(p n)`, `p = min(1, initial_ratio + (1 - initial_ratio) e / add_end_epoch)`
    * `e <= removal1_epoch`: all
    * `e <= removal2_epoch`: all but the first `floor(removal1_ratio n)`
    * later: all but the first `floor(removal2_ratio n)`

    `add_end_epoch = 0` shows everything from the start. Defaults are the published ones, for 100 epochs.

    Example:
        >>> Curriculum().span(0, 5000), Curriculum().span(50, 5000), Curriculum().span(99, 5000)
        ((0, 3750), (500, 5000), (1000, 5000))
    """

    initial_ratio: float = 0.75
    add_end_epoch: int = 20
    removal1_epoch: int = 40
    removal2_epoch: int = 60
    removal1_ratio: float = 0.1
    removal2_ratio: float = 0.2

    def __post_init__(self) -> None:
        for name in ("initial_ratio", "removal1_ratio", "removal2_ratio"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"curriculum {name} is {value}; it is a fraction of a class, from 0 to 1")
        if not 0 <= self.add_end_epoch <= self.removal1_epoch <= self.removal2_epoch:
            raise ConfigError(
                f"curriculum epochs are add_end_epoch {self.add_end_epoch}, removal1_epoch {self.removal1_epoch}, "
                f"removal2_epoch {self.removal2_epoch}; they must be >= 0 and in this order"
            )

    @classmethod
    def none(cls) -> Curriculum:
        """Every image in every epoch (MTT, FTD, DATM)."""
        return cls(1.0, 0, 0, 0, 0.0, 0.0)

    def scaled(self, epochs: int, published_epochs: int = 100) -> Curriculum:
        """The same schedule for a shorter training: epochs are scaled and rounded, ratios kept."""
        factor = epochs / published_epochs
        return replace(
            self,
            add_end_epoch=round(self.add_end_epoch * factor),
            removal1_epoch=round(self.removal1_epoch * factor),
            removal2_epoch=round(self.removal2_epoch * factor),
        )

    def span(self, epoch: int, count: int) -> tuple[int, int]:
        """Half-open range of the easy-to-hard list of a class with `count` images."""
        if epoch <= self.add_end_epoch:
            if self.add_end_epoch == 0:
                return 0, count
            ratio = min(1.0, self.initial_ratio + (1 - self.initial_ratio) * epoch / self.add_end_epoch)
            return 0, int(ratio * count)
        if epoch <= self.removal1_epoch:
            return 0, count
        removed = self.removal1_ratio if epoch <= self.removal2_epoch else self.removal2_ratio
        return int(removed * count), count

    def indices(self, epoch: int, order: Sequence[Tensor]) -> Tensor:
        """Dataset indices shown in `epoch`, class after class, from an easy-to-hard order per class."""
        return torch.cat([indices[slice(*self.span(epoch, len(indices)))] for indices in order])

    def require_images(self, epochs: int, class_sizes: Sequence[int]) -> None:
        """Prove before training that every class shows at least one image in every epoch.

        Raises:
            ConfigError: names the first empty stage.
        """
        for epoch in range(epochs):
            for label, count in enumerate(class_sizes):
                start, stop = self.span(epoch, count)
                if stop <= start:
                    raise ConfigError(
                        f"the curriculum shows no image of class {label} ({count} images) in epoch {epoch}: "
                        "raise initial_ratio, lower the removal ratios, or add images"
                    )


def curriculum_of(config: Config) -> Curriculum:
    """The curriculum a config asks for."""
    if not config.curriculum:
        return Curriculum.none()
    return Curriculum(
        config.initial_ratio,
        config.add_end_epoch,
        config.removal1_epoch,
        config.removal2_epoch,
        config.removal1_ratio,
        config.removal2_ratio,
    )


def prune(order: Sequence[Tensor], rule: str) -> list[Tensor]:
    """Drop a fraction of every class once: `"hardest:0.2"`, `"easiest:0.1"`, or `"none"`.

    Args:
        order: dataset indices per class, easy to hard.
        rule: which end, and the fraction in [0, 1).

    Raises:
        ConfigError: malformed rule, or a class would be left empty.

    Example:
        >>> prune([torch.arange(5)], "hardest:0.4")
        [tensor([0, 1, 2])]
    """
    if rule == "none":
        return list(order)
    end, separator, text = rule.partition(":")
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if end not in PRUNES or not separator or not 0 <= ratio < 1:
        raise ConfigError(f"prune rule {rule!r} is not understood; write 'hardest:0.2', 'easiest:0.1' or 'none'")
    kept = []
    for label, indices in enumerate(order):
        dropped = int(ratio * len(indices))
        left = indices[: len(indices) - dropped] if end == "hardest" else indices[dropped:]
        if len(left) == 0:
            raise ConfigError(f"prune rule {rule!r} leaves no image of class {label} ({len(indices)} images)")
        kept.append(left)
    return kept
