"""Accuracy of what a reproduction has come to, by two recipes, beside what is printed; and the way there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Content
from benchmarks.reproduce_costs import Costs
from benchmarks.reproduce_state import Account
from pad_fast import DistilledDataset, ImageDataset, Progress
from pad_fast.data.distilled import DISTILLED, load
from pad_fast.evaluation import AccuracyRow
from pad_fast.evaluation.recipes import recipe_named
from pad_fast.evaluation.sets import FULL, KMEANS, RANDOM
from pad_fast.pipeline.configured import evaluate_as_configured
from pad_fast.runs.folder import LAST
from pad_fast.settings.config import Config

OURS, REFERENCE = "ours", "the reference's"
CHOSEN = "chosen on held-out training images"

_LOSSES = 100  # of these many iterations before a point, the median


def sets_of(run: Path, config: Config) -> dict[str, DistilledDataset]:
    """What a finished run has come to: where it held out images to choose by, the best iterate and the last."""
    name = config.method.upper()
    if (run / LAST / DISTILLED).is_file():
        return {f"{name}, {CHOSEN}": load(run), f"{name}, last iterate": load(run / LAST)}
    return {name: load(run)}


def evaluated(
    sets: Mapping[str, DistilledDataset],
    data: ImageDataset,
    config: Config,
    *,
    cache: Path,
    device: torch.device,
    networks: int,
    full_networks: int,
) -> list[dict[str, Any]]:
    """Rows of fresh networks, each tested once when its training is over; known ones are taken from `cache`.

    Args:
        full_networks: trained on all real images, each of which takes as long as many on a distilled set.
    """
    progress = Progress()

    def rows(recipe: str, names: Sequence[str], count: int, **changes: Any) -> list[dict[str, Any]]:
        report = evaluate_as_configured(
            config, sets, data, models=(config.model,), cache=cache, device=device, progress=progress, repeats=count,
            robust=False, **changes,
        )  # fmt: skip
        return [_row(report.row(name), recipe) for name in names]

    small = [*sets, RANDOM, KMEANS]
    found = rows(OURS, small, networks, baselines=("random", "kmeans"))
    found += rows(REFERENCE, small, networks, baselines=("random", "kmeans"), **reference_recipe(config))
    return found + rows(OURS, [FULL], full_networks, baselines=("full",))


def reference_recipe(config: Config) -> dict[str, Any]:
    """Arguments of :func:`pad_fast.evaluate` for training as the published programs do."""
    recipe = recipe_named("mtt" if config.method in ("mtt", "ftd") else "datm")
    return {**recipe, "epochs": config.eval_epochs + 1}  # they count from 0 to the number they are given


def _row(row: AccuracyRow, recipe: str) -> dict[str, Any]:
    return {
        "name": row.name,
        "recipe": recipe,
        "mean": row.mean,
        "std": row.std,
        "networks": row.networks,
        "accuracies": list(row.accuracies),
    }


def curve(account: Account, losses: Sequence[float], costs: Costs) -> list[dict[str, Any]]:
    """The points that were validated, and the last one; without validation, every checkpoint."""
    points = account.points
    if account.validation:
        points = [point for point in points if point[0] in account.validation]
    return [
        {
            "iteration": iteration,
            "hours": hours,
            "accuracies": account.validation.get(iteration),
            "loss": statistics.median(losses[max(0, iteration - _LOSSES) : iteration]),
            "plain_iteration": iteration / costs.times_faster,
        }
        for iteration, hours in points
    ]


def sitting_words(content: Content) -> str:
    """How the run was made, in a sentence without an end."""
    sittings, published = content["sittings"], content["published"]
    experts = [each["experts"] for each in sittings]
    iterations = sum(each["iterations"] for each in sittings)
    times = "one sitting"
    if len(experts) > 1:
        times = f"{len(experts)} sittings of {', '.join(map(str, experts[:-1]))} and {experts[-1]} experts"
    hours = sum(sum(each["hours"].values()) for each in sittings)
    rest = " (without those before the run was resumed)" if content["partial_hours"] else ""
    return (
        f"{sum(experts)} of {published['experts']} experts and {iterations:,} of {published['iterations']:,} "
        f"iterations in {hours:.3g} hours{rest}, {times}"
    )


def accuracy_table(content: Content) -> tuple[list[str], list[list[str]]]:
    """Ours beside print, as header and rows."""
    header = ["networks trained on", "recipe", "test accuracy, %", "networks", "data, or where it is printed"]
    cells = []
    for row in content["rows"]:
        real = row["name"] in (RANDOM, KMEANS, FULL)
        after = f" (after {content['chosen']:,})" if row["name"].endswith(CHOSEN) else ""
        name = row["name"] if real else f"**{row['name']}**{after}: {sitting_words(content)}"
        accuracy = f"{row['mean']:.1f} ± {row['std']:.1f}" if row["networks"] > 1 else f"{row['mean']:.1f}"
        cells.append([name, row["recipe"], accuracy, str(row["networks"]), content["data"]])
    for row in content["printed"]:
        cells.append([f"{row['name']}, printed", "", f"{row['mean']:.1f} ± {row['std']:.1f}", "", row["source"]])
    return header, cells


def curve_table(content: Content) -> tuple[list[str], list[list[str]]]:
    """Accuracy on held-out training images over iterations and hours, and how far the plain loop would be."""
    header = ["iterations", "hours", "accuracy on held-out training images, %", "matching loss (median)"]
    header += ["iterations of the plain loop in the time of these"]
    cells = []
    for point in content["curve"]:
        values = point["accuracies"]
        reached = "" if values is None else f"{statistics.fmean(values):.1f}"
        cells.append(
            [f"{point['iteration']:,}", f"{point['hours']:.3g}", reached, f"{point['loss']:.3f}",
             f"{point['plain_iteration']:,.0f}"]
        )  # fmt: skip
    return header, cells


def words_of(content: Content) -> str:
    """Settings that are not the published ones, and the costs that were measured in the same run."""
    costs, changes = content["costs"], content["changes"]
    named = ", ".join(f"{name} {value}" for name, value in changes.items())
    unlike = f"Unlike the published settings: {named}. " if changes else ""
    return (
        f"{unlike}An iteration takes {1e3 * costs['iteration']:.4g} ms, of the plain loop "
        f"{1e3 * costs['plain_iteration']:.4g} ms: {costs['times_faster']:.2f} times as long (timed by turns on "
        f"{costs['steps']} of the student's steps; their image gradients differ by {costs['error']:.0e}).\n"
    )
