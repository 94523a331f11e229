"""Settings of an evaluation, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.distilled import DistilledDataset
from ..errors import ConfigError
from .network import EvaluationRecipe
from .recipes import recipe_named


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Networks, recipes and rows that were asked for; :func:`pad_fast.evaluate` says what each setting means.

    Attributes:
        lr, dsa: None takes those of each distilled set.
        recipe_name: of :data:`pad_fast.evaluation.recipes.RECIPES`; epochs, batch, momentum, weight_decay and dsa_mode
            are its own where they are None.
        baselines: names of :data:`pad_fast.evaluation.BASELINES`.

    Raises:
        ConfigError: a count below 1, or a learning rate that is not positive.
    """

    models: tuple[str, ...]
    repeats: int
    epochs: int | None
    full_epochs: int
    batch: int | None
    lr: float | None
    momentum: float | None
    weight_decay: float | None
    dsa: str | None
    dsa_mode: str | None
    recipe_name: str
    baselines: tuple[str, ...]
    robust: bool
    seed: int

    def __post_init__(self) -> None:
        recipe_named(self.recipe_name)
        for name in ("repeats", "epochs", "full_epochs", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
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
        dsa = distilled.config.get("dsa", EvaluationRecipe.dsa)
        own = {"lr": distilled.lr, "dsa": str(dsa), **recipe_named(self.recipe_name)}
        names = ("epochs", "batch", "lr", "momentum", "weight_decay", "dsa", "dsa_mode")
        given = {name: getattr(self, name) for name in names}
        return EvaluationRecipe(**{**own, **{name: value for name, value in given.items() if value is not None}})
