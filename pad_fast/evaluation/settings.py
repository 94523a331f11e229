"""Settings of an evaluation, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.distilled import DistilledDataset
from ..errors import ConfigError
from .network import EvaluationRecipe


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Networks, recipes and rows that were asked for; :func:`pad_fast.evaluate` says what each setting means.

    Attributes:
        lr, dsa: None takes those of each distilled set.
        baselines: names of :data:`pad_fast.evaluation.BASELINES`.

    Raises:
        ConfigError: a count below 1, or a learning rate that is not positive.
    """

    models: tuple[str, ...]
    repeats: int
    epochs: int
    full_epochs: int
    batch: int
    lr: float | None
    momentum: float
    weight_decay: float
    dsa: str | None
    dsa_mode: str
    baselines: tuple[str, ...]
    robust: bool
    seed: int

    def __post_init__(self) -> None:
        for name in ("repeats", "epochs", "full_epochs", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}; it must be positive")

    @property
    def sized(self) -> bool:
        """Whether there are rows of as many real images as the distilled set has."""
        return self.robust or any(name != "full" for name in self.baselines)

    def models_for(self, own: str) -> tuple[str, ...]:
        """Names of the networks, where the set was distilled with `own`.

        A network named twice, once as "ConvNet", would only repeat the same numbers.
        """
        return tuple(dict.fromkeys(own if model == "ConvNet" else model for model in self.models))

    def recipe(self, distilled: DistilledDataset) -> EvaluationRecipe:
        """Training on a distilled set, and on baselines of its size."""
        return EvaluationRecipe(
            lr=distilled.lr if self.lr is None else self.lr,
            epochs=self.epochs,
            batch=self.batch,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dsa=str(distilled.config.get("dsa", EvaluationRecipe.dsa)) if self.dsa is None else self.dsa,
            dsa_mode=self.dsa_mode,
        )
