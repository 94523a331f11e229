"""What a distilled set is worth: the test accuracy of fresh networks trained on it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import distributed
from .data import DSA, ImageDataset, fit_normalization, load_dataset
from .device import resolve_device
from .distilled import DistilledDataset, load
from .errors import ConfigError, DatasetError, InputError
from .optimizers import SGD
from .progress import Progress
from .rng import generator
from .training import NetworkSpec, Trainer, shuffled_batches


@dataclass(frozen=True)
class AccuracyRow:
    """Test accuracy in percent of networks trained on one set.

    Attributes:
        name: what was trained on.
        model: network.
        accuracies: one value per network, each taken once, at the end of training.
    """

    name: str
    model: str
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over networks, percent."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation over networks (n - 1), percentage points; 0 for one network."""
        if len(self.accuracies) < 2:
            return 0.0
        mean = self.mean
        return (sum((value - mean) ** 2 for value in self.accuracies) / (len(self.accuracies) - 1)) ** 0.5

    @property
    def networks(self) -> int:
        """How many networks."""
        return len(self.accuracies)


@dataclass(frozen=True)
class EvaluationReport:
    """Rows of the final table."""

    rows: tuple[AccuracyRow, ...]

    def __repr__(self) -> str:
        return self.table()

    def row(self, name: str, model: str | None = None) -> AccuracyRow:
        """The first row of that name (and model).

        Raises:
            InputError: no such row.
        """
        for row in self.rows:
            if row.name == name and model in (None, row.model):
                return row
        raise InputError(f"no row {name!r}; there are {', '.join(sorted({row.name for row in self.rows}))}")

    def table(self) -> str:
        """The rows as aligned text."""
        width = max([len(row.name) for row in self.rows] + [8])
        model = max([len(row.model) for row in self.rows] + [7])
        lines = [f"{'trained on':<{width}}  {'network':<{model}}  test accuracy, %"]
        for row in self.rows:
            accuracy = f"{row.mean:5.1f} +- {row.std:.1f}"
            lines.append(f"{row.name:<{width}}  {row.model:<{model}}  {accuracy}  ({row.networks} networks)")
        return "\n".join(lines)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a set: SGD, halfway the rate drops tenfold and momentum starts afresh.

    Attributes:
        lr: learning rate of the first half.
        dsa: augmentation strategy or "none".
    """

    lr: float
    epochs: int = 1000
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dsa: str = "color_crop_cutout_flip_scale_rotate"
    dsa_mode: str = "fast"


def train_and_test(
    images: Tensor,
    targets: Tensor,
    test: tuple[Tensor, Tensor],
    spec: NetworkSpec,
    recipe: Recipe,
    *,
    purpose: tuple[str | int, ...],
    seed: int,
    device: torch.device,
    backend: str,
) -> float:
    """Train one fresh network and return its test accuracy in percent, measured once, at the end."""
    trainer = Trainer(spec.build(seed, *purpose), device=device, backend=backend)
    augment = DSA(recipe.dsa, mode=recipe.dsa_mode)
    draws = generator(seed, *purpose, "draws")
    everything = torch.arange(len(images), device=device)
    halfway = (recipe.epochs + 1) // 2  # one epoch alone keeps the full rate
    optimizer = SGD(recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    for epoch in range(recipe.epochs):
        if epoch == halfway:
            optimizer = SGD(recipe.lr * 0.1, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        batches = shuffled_batches(everything, recipe.batch, draws)
        loss = trainer.epoch(images, targets, batches, optimizer, partial(augment, generator=draws))
        if not math.isfinite(loss) or not bool(trainer.theta.isfinite().all()):
            raise InputError(
                f"training on {purpose[-2]} diverged in epoch {epoch} with learning rate {recipe.lr:g}; lower lr"
            )
    return trainer.accuracy(*test)


def evaluate(
    distilled: DistilledDataset | str | os.PathLike[str],
    dataset: Any,
    *,
    models: Sequence[str] = ("ConvNet",),
    repeats: int = 5,
    epochs: int = 1000,
    full_epochs: int = 50,
    batch: int = 128,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    dsa: str | None = None,
    dsa_mode: str = "fast",
    baselines: bool = True,
    seed: int = 0,
    device: str = "auto",
    backend: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Train fresh networks on a distilled set and test them on real images.

    SGD with the distilled learning rate, soft cross entropy for soft labels, DSA, rate x 0.1 with fresh momentum
    halfway; accuracy is taken once, at the end of training, never as a maximum over test evaluations. Several processes
    (`pad_fast.distributed.join()`) divide the networks between them and get the same report.

    Args:
        distilled: a result, or the folder or file it was saved in (the reference's trio too).
        dataset: the real data, anything :func:`pad_fast.load_dataset` takes.
        models: networks by name; "ConvNet" is the one the set was distilled with, where that is known.
        repeats: fresh networks per row.
        epochs: epochs on the distilled and the random set; `full_epochs` on the full set, whose epochs have more steps.
        lr: learning rate; None takes the distilled one, for the baselines too.
        dsa: augmentation strategy; None takes the one the set was distilled with.
        baselines: add rows for random real images (as many per class, another draw for each network) and for the
            full training set, with the same recipe.

    Raises:
        InputError: class counts or image shapes do not match, a count below 1, or training diverged.
    """
    if not isinstance(distilled, DistilledDataset):
        distilled = load(distilled)
    for name, value in (
        ("repeats", repeats),
        ("epochs", epochs),
        ("full_epochs", full_epochs),
        ("batch", batch),
    ):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if lr is not None and not lr > 0:
        raise ConfigError(f"lr is {lr}; it must be positive")
    progress = progress or Progress()
    data = load_dataset(dataset, data_dir=data_dir)
    _require_fit(distilled, data)
    normalization = distilled.whitening
    if normalization is None:
        normalization = fit_normalization(data, "mean-std")
        progress.say(
            "warning: this distilled set carries no whitening; test images are normalised with mean and std. If it was "
            "made with ZCA, the accuracies below are wrong"
        )
    where = resolve_device(device)
    train = normalization.apply(data.train_images).to(where)
    train_labels = data.train_labels.to(where)
    test = normalization.apply(data.test_images).to(where), data.test_labels.to(where)
    recipe = Recipe(
        lr=distilled.lr if lr is None else lr,
        epochs=epochs,
        batch=batch,
        momentum=momentum,
        weight_decay=weight_decay,
        dsa=str(distilled.config.get("dsa", Recipe.dsa)) if dsa is None else dsa,
        dsa_mode=dsa_mode,
    )
    full_recipe = Recipe(**{**vars(recipe), "epochs": full_epochs})
    method = str(distilled.config.get("method", "distilled")).upper()
    sets = [method] if not baselines else ["random real", method, "full data"]
    own = str(distilled.config.get("model", "ConvNet"))
    # A network named twice, once as "ConvNet", would only repeat the same numbers.
    resolved = list(dict.fromkeys(own if model == "ConvNet" else model for model in models))
    specs = {model: NetworkSpec(model, data.channels, data.classes, data.resolution) for model in resolved}
    for spec in specs.values():
        spec.build(seed, "probe")  # an unknown name is an error before any training
    jobs = [(model, name, repeat) for model in resolved for name in sets for repeat in range(repeats)]
    accuracies = torch.zeros(len(jobs), dtype=torch.float64)
    group = distributed.group()
    mine = group.turns(range(len(jobs)))
    for job in progress.track(mine, "evaluate", total=len(mine), unit="network"):
        model, name, repeat = jobs[job]
        if name == method:
            images, targets = distilled.images.to(where), distilled.targets.to(where)
        elif name == "full data":
            images, targets = train, train_labels
        else:
            rows = _random_rows(data, distilled.labels, seed, repeat).to(where)
            images, targets = train[rows], train_labels[rows]
        accuracies[job] = train_and_test(
            images,
            targets,
            test,
            specs[model],
            full_recipe if name == "full data" else recipe,
            # Not the method's name: every method's set is tested on the same networks.
            purpose=("evaluation", model, "distilled" if name == method else name, repeat),
            seed=seed,
            device=where,
            backend=backend,
        )
    group.wait("the networks that other ranks evaluate")
    group.sum_(accuracies)
    results: dict[tuple[str, str], list[float]] = {}
    for (model, name, _), accuracy in zip(jobs, accuracies.tolist(), strict=True):
        results.setdefault((name, model), []).append(accuracy)
    return EvaluationReport(tuple(AccuracyRow(name, model, tuple(v)) for (name, model), v in results.items()))


def _random_rows(data: ImageDataset, labels: Tensor, seed: int, repeat: int) -> Tensor:
    """As many random training images of each class as the distilled set has."""
    picked = []
    for label, count in enumerate(labels.bincount(minlength=data.classes).tolist()):
        rows = data.images_of_class(label)
        picked.append(rows[torch.randperm(len(rows), generator=generator(seed, "random real", label, repeat))[:count]])
    return torch.cat(picked)


def _require_fit(distilled: DistilledDataset, data: ImageDataset) -> None:
    shape, expected = list(distilled.images.shape[1:]), list(data.train_images.shape[1:])
    if shape != expected:
        raise DatasetError(
            f"distilled images are {shape}, but {data.name} has {expected}; evaluate on the data it came from"
        )
    if distilled.label_logits is not None and distilled.label_logits.shape[1] != data.classes:
        raise DatasetError(
            f"distilled labels have {distilled.label_logits.shape[1]} classes, but {data.name} has {data.classes}"
        )
    if int(distilled.labels.max()) >= data.classes or int(distilled.labels.min()) < 0:
        raise DatasetError(
            f"distilled labels reach {int(distilled.labels.max())}, but {data.name} has {data.classes} classes"
        )
