"""`evaluate()`: which networks are trained on what, and the table that comes of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import ImageDataset, Normalization, load_dataset
from ..data.distilled import DistilledDataset, load, with_whitening
from ..errors import ConfigError, DatasetError
from ..models.sources import Maker, model_name
from ..models.spec import NetworkSpec
from ..runtime.device import resolve_device
from ..runtime.progress import Progress
from ..scoring.difficulty import Difficulty
from ..scoring.score import score
from .comparison import Comparison
from .normalization import normalizations_of
from .recipes import OURS
from .results import Results, key_of
from .sets import RealBaselines, TrainingSet, baseline_names
from .settings import EvaluationSettings
from .table import EvaluationReport
from .trial import Job, Trial, jobs_of

Distilled = DistilledDataset | str | os.PathLike[str]


def evaluate(
    distilled: Distilled | Mapping[str, Distilled],
    dataset: Any,
    *,
    models: str | Maker | Sequence[str | Maker] = ("ConvNet",),
    repeats: int = 5,
    recipe: str | Sequence[str] = OURS,
    epochs: int | None = None,
    full_epochs: int = 50,
    batch: int | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    dsa: str | None = None,
    dsa_mode: str | None = None,
    baselines: bool | Sequence[str] = True,
    robust: bool = False,
    whitening: str | Normalization | None = None,
    difficulty: Difficulty | str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    backend: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> EvaluationReport:
    """Train fresh networks on a distilled set and test them on real images.

    Our recipe: SGD with the distilled learning rate, soft cross entropy for soft labels, DSA, rate x 0.1 with fresh
    momentum halfway. Whatever the recipe, accuracy is taken once, at the end of training, never as a maximum over test
    evaluations. Network `i` of a row depends on the seed, the architecture, the row and `i`, not on what else is
    evaluated. Several processes (`pad_fast.distributed.join()`) divide the networks between them and get the same
    report.

    Args:
        distilled: a result, or the folder or file it was saved in (published programs' too, see
            :func:`pad_fast.load`). Several by name make a row each, tested on images normalised as its own are; the
            first gives the baselines their size, learning rate and normalisation.
        dataset: the real data, anything :func:`pad_fast.load_dataset` takes.
        models: networks as :func:`pad_fast.network` takes them, one or several; "ConvNet" is the one the set was
            distilled with, where that is known.
        repeats: fresh networks per row.
        recipe: how networks are trained, by name: ours ("pad_fast"), or that of the programs of "mtt" (FTD, TESLA),
            "datm" (PAD) or "ncfm", or DD-Ranking's: "ddranking" or "ddranking-teacher"
            (:data:`pad_fast.evaluation.recipes.RECIPES`). Several make a row each of every row, but for the full set.
        epochs: epochs on the distilled set and on baselines of its size (1000 of ours); `full_epochs` on the full set,
            whose epochs have more steps.
        batch, momentum, weight_decay, dsa_mode: in place of the recipe's (ours: 128, 0.9, 5e-4, "fast").
        lr: learning rate; None takes the recipe's, where it has one, or the distilled one, for the baselines too.
        dsa: augmentation strategy; None takes the one the set was distilled with.
        baselines: rows with the same recipe: "random" real images (as many per class, another draw for each network),
            the "easiest" by EL2N, "kmeans" (the centres, per class), and the "full" set; True for all.
        whitening: how sets that do not say it were normalised, as published programs' do not: "zca", "mean-std", or a
            :class:`pad_fast.data.Normalization` (:func:`pad_fast.load_normalization` reads one from a file). Sets of
            pixels are normalised so before networks are trained on them (None: mean and std); sets that carry theirs
            keep it.
        robust: add DD-Ranking's label- and augmentation-robust scores, and the rows they need (docs/evaluation.md).
        difficulty: EL2N scores for "easiest" (an object or a file); computed when None.
        cache_dir: folder that keeps every network's result as soon as it is there; repeats are taken from it, and a
            killed call is continued by repeating it.

    Raises:
        InputError: class counts or image shapes do not match, a count below 1, or training diverged.
        StoreError: a file is foreign or damaged, or `cache_dir` cannot be written to.

    Warns:
        UserWarning: a set does not say how it was normalised, and neither does `whitening`.
    """
    first_recipe, *others = [recipe] if isinstance(recipe, str) else dict.fromkeys(recipe)
    if robust and (others or first_recipe != OURS):
        raise ConfigError("robust scores are defined with our recipe; leave out recipe= (--recipe), or robust=")
    settings = EvaluationSettings(
        models=tuple(model_name(model) for model in _each(models)),
        repeats=repeats,
        epochs=epochs,
        full_epochs=full_epochs,
        batch=batch,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        dsa=dsa,
        dsa_mode=dsa_mode,
        recipe_name=first_recipe,
        baselines=baseline_names(baselines),
        robust=robust,
        seed=seed,
    )
    progress = Progress.of(progress)
    sets = _by_name(distilled, lr)
    first = next(iter(sets.values()))
    # At the size that the set was distilled at, where that was not the data's own.
    resolution = None if isinstance(dataset, ImageDataset) else first.config.get("resolution")
    data = load_dataset(dataset, data_dir=data_dir, resolution=resolution, progress=progress)
    for each in sets.values():
        _require_fit(each, data)
    specs = _specs(settings, first, data)
    normalizations = normalizations_of(sets, data, whitening, cache_dir, progress)
    if pixels := [name for name, each in sets.items() if each.are_pixels]:
        kind = next(normalizations[name].kind for name in pixels)
        progress.say(f"evaluate: {', '.join(pixels)} holds pixels; they are normalised ({kind}) as the test images are")
        sets = {name: with_whitening(each, normalizations[name]) for name, each in sets.items()}
        first = next(iter(sets.values()))
    trial = Trial(
        data,
        seed=seed,
        device=resolve_device(device),
        backend=backend,
        results=Results(cache_dir),
        progress=progress,
    )
    counts = first.labels.bincount(minlength=data.classes).tolist() if settings.sized else []
    real = RealBaselines(data, next(iter(normalizations.values())), trial.device, counts, seed)
    for note in real.notes:
        trial.progress.say(f"evaluate: {note}")
    easiest = functools.cache(lambda: _difficulty(difficulty, first, real, trial, cache_dir))
    comparison = Comparison(sets, normalizations, real, settings)
    rows = _named(comparison.rows(easiest), first_recipe)
    for name in others:
        small = tuple(each for each in settings.baselines if each != "full")
        other = replace(settings, recipe_name=name, baselines=small)
        rows += _named(Comparison(sets, normalizations, real, other).rows(easiest), name)
    rows = _taught(rows, comparison)
    jobs = _jobs(comparison, rows, specs, trial)
    return comparison.report(jobs, trial.outcomes(jobs))


def _each(models: str | Maker | Sequence[str | Maker]) -> Sequence[str | Maker]:
    return models if isinstance(models, Sequence) and not isinstance(models, str) else [models]


def _named(rows: Sequence[TrainingSet], recipe: str) -> list[TrainingSet]:
    """Rows that say how their networks are trained, where that is not our way."""
    return [row if recipe == OURS else replace(row, name=f"{row.name}, {recipe}'s recipe") for row in rows]


def _taught(rows: Sequence[TrainingSet], comparison: Comparison) -> list[TrainingSet]:
    """Rows with the full set that their teachers are trained on, in each row's normalisation."""
    real, full = comparison.real, {comparison.full.normalization: comparison.full}
    for row in rows:
        if row.recipe.teacher and row.normalization not in full:
            other = RealBaselines(real.data, row.normalization, real.device, [], real.seed)
            full[row.normalization] = other.full(comparison.full.recipe)
    return [replace(row, teacher=full[row.normalization]) if row.recipe.teacher else row for row in rows]


def _specs(settings: EvaluationSettings, distilled: DistilledDataset, data: ImageDataset) -> list[NetworkSpec]:
    models = settings.models_for(_own_model(distilled))
    specs = [NetworkSpec(model, data.channels, data.classes, data.resolution) for model in models]
    for spec in specs:
        spec.build(settings.seed, "probe")  # an unknown name is an error before any training
    return specs


def _own_model(distilled: DistilledDataset) -> str:
    return str(distilled.config.get("model", "ConvNet"))


def _jobs(comparison: Comparison, rows: Sequence[TrainingSet], specs: Sequence[NetworkSpec], trial: Trial) -> list[Job]:
    """Every network of every row; soft labels of real images come from a teacher, which is trained here."""
    settings = comparison.settings
    jobs: list[Job] = []
    for spec in specs:
        jobs += jobs_of(rows, spec, settings.repeats, settings.seed)
        if settings.robust:
            teacher = trial.soft_labels(spec, comparison.full) if comparison.soft else None
            jobs += jobs_of([*comparison.robust_rows(teacher)], spec, settings.repeats, settings.seed)
    return jobs


def _by_name(distilled: Distilled | Mapping[str, Distilled], lr: float | None) -> dict[str, DistilledDataset]:
    """Distilled sets by the names of their rows."""

    def loaded(each: Distilled) -> DistilledDataset:
        return each if isinstance(each, DistilledDataset) else load(each, lr=lr)

    if isinstance(distilled, Mapping):
        if not distilled:
            raise ConfigError("no distilled set was given to evaluate; name at least one")
        return {str(name): loaded(each) for name, each in distilled.items()}
    one = loaded(distilled)
    return {str(one.config.get("method", "distilled")).upper(): one}


def _difficulty(
    given: Difficulty | str | os.PathLike[str] | None,
    distilled: DistilledDataset,
    real: RealBaselines,
    trial: Trial,
    cache_dir: str | os.PathLike[str] | None,
) -> Difficulty:
    """The scores that were given, or EL2N as the run's own settings compute it."""
    if given is not None:
        if not isinstance(given, Difficulty):
            return Difficulty.load(given, trial.data)
        given.require(trial.data)
        return given
    named = ("score_networks", "score_epochs", "score_batch", "score_lr")
    settings = {name.removeprefix("score_"): distilled.config[name] for name in named if name in distilled.config}
    model = _own_model(distilled)
    described = {"data": real.origin, "model": model, "seed": trial.seed, "backend": trial.backend, **settings}
    return score(
        trial.data,
        model=model,
        normalization=real.normalization,
        seed=trial.seed,
        device=str(trial.device),
        backend=trial.backend,
        networks_dir=None if cache_dir is None else Path(cache_dir) / f"score-networks-{key_of(described)}",
        progress=trial.progress,
        **settings,
    )


def _require_fit(distilled: DistilledDataset, data: ImageDataset) -> None:
    shape, expected = list(distilled.images.shape[1:]), list(data.train_images.shape[1:])
    if shape != expected:
        times, rest = divmod(shape[1], expected[1])
        canvases = times > 1 and not rest and shape == [expected[0], *(times * side for side in expected[1:])]
        raise DatasetError(
            f"distilled images are {shape}, but {data.name} has {expected}; evaluate on the data it came from"
            + ". Canvases of MTT's texture mode, of which networks see pieces, are not evaluated here" * canvases
        )
    if distilled.label_logits is not None and distilled.label_logits.shape[1] != data.classes:
        raise DatasetError(
            f"distilled labels have {distilled.label_logits.shape[1]} classes, but {data.name} has {data.classes}"
        )
    if int(distilled.labels.max()) >= data.classes or int(distilled.labels.min()) < 0:
        raise DatasetError(
            f"distilled labels reach {int(distilled.labels.max())}, but {data.name} has {data.classes} classes, 0 to "
            f"{data.classes - 1}"
        )
