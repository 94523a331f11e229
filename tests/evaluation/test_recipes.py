"""Recipes by name, each against torch's own optimisers and schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pad_fast import evaluate
from pad_fast.data import fit_normalization
from pad_fast.data.cutmix import apply_cutmix, draw_cutmix
from pad_fast.errors import ConfigError
from pad_fast.evaluation import network as network_module
from pad_fast.evaluation.network import EvaluationRecipe, Network, train_networks
from pad_fast.evaluation.recipes import RECIPES
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import generator
from pad_fast.training.optimizers import AdamW
from pad_fast.training.trainer import shuffled_batches

from ..support.comparison import relative_error
from ..support.evaluation import SETTINGS, finish, real_images
from ..support.loops import CPU
from ..support.small import MODEL, QUIET, small_data


@pytest.mark.parametrize("shape", [(7,), (3, 7)], ids=["one", "stacked"])
def test_adamw_is_torchs(shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(*shape, generator=draws, dtype=torch.float64)
    gradients = torch.randn(5, *shape, generator=draws, dtype=torch.float64)
    given, leaf = start.clone(), start.clone().requires_grad_()
    theirs, ours, theta = torch.optim.AdamW([leaf], lr=0.03, weight_decay=0.02), AdamW(0.03, weight_decay=0.02), start
    for step, gradient in enumerate(gradients):
        if step == 3:
            ours.lr = theirs.param_groups[0]["lr"] = 0.01
        leaf.grad = gradient
        theirs.step()
        theta, _ = ours.step(theta, lambda _, gradient=gradient: (gradient.sum(-1), gradient))
        assert relative_error(theta, leaf) < 1e-14
    assert torch.equal(start, given), "the old parameters were written to"


@pytest.mark.parametrize("epochs", [5, 12, 2000])
def test_the_rate_of_ncfm_is_halved_after_every_fifth(epochs: int) -> None:
    leaf = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.AdamW([leaf], lr=0.4)
    fifths = [number * epochs // 5 for number in (1, 2, 3, 4)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, fifths, gamma=0.5)
    recipe, found = EvaluationRecipe(0.4, epochs=epochs, optimizer="adamw", schedule="fifths"), None
    for epoch in range(epochs):
        found = recipe.optimizer_of(epoch, found)
        assert found.lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("epochs", [1, 5, 12, 1000])
def test_ddrankings_rates_are_those_of_its_schedules(epochs: int) -> None:
    leaf, other = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    step, cosine = torch.optim.SGD([leaf], lr=0.4), torch.optim.SGD([other], lr=0.4)
    schedules = [
        torch.optim.lr_scheduler.StepLR(step, step_size=(epochs + 1) // 2, gamma=0.1),
        torch.optim.lr_scheduler.CosineAnnealingLR(cosine, T_max=2 * epochs),
    ]
    if epochs == 1:
        schedules = schedules[1:]  # one epoch alone keeps the full rate, as StepLR's first epoch does
    for epoch in range(epochs):
        for name, optimizer in (("step", step), ("cosine", cosine)):
            found = EvaluationRecipe(0.4, epochs=epochs, schedule=name).optimizer_of(epoch, None)
            assert found.lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    recipe = EvaluationRecipe(0.4, epochs=6, schedule="step")
    first = recipe.optimizer_of(0, None)
    assert recipe.optimizer_of(3, first) is first and first.lr == pytest.approx(0.04), "momentum goes on"


def test_our_rate_drops_halfway_and_momentum_begins_afresh() -> None:
    recipe = EvaluationRecipe(0.4, epochs=5)
    first = recipe.optimizer_of(0, None)
    assert recipe.optimizer_of(1, first) is recipe.optimizer_of(2, first) is first and first.lr == 0.4
    second = recipe.optimizer_of(3, first)
    assert second is not first and second.lr == pytest.approx(0.04)
    assert recipe.optimizer_of(4, second) is second


def test_cutmix_exchanges_a_rectangle_and_its_share_of_the_label() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 2, 6, 9).clone()
    targets = torch.eye(4)
    draws = torch.Generator().manual_seed(1)
    for _ in range(300):
        draw = draw_cutmix(4, 6, 9, probability=1.0, generator=draws)
        assert draw is not None
        mixed, labels = apply_cutmix(images, targets, draw)
        for row in range(4):
            other = int(draw.order[row])
            taken = (mixed[row] == other).float().mean() if other != row else torch.tensor(0.0)
            if other != row:
                assert labels[row, other] == pytest.approx(float(taken)) and mixed[row].unique().numel() <= 2
            assert float(labels[row].sum()) == pytest.approx(1)
    assert torch.equal(images, torch.arange(4.0)[:, None, None, None].expand(4, 2, 6, 9))
    often = [draw_cutmix(4, 6, 9, probability=0.25, generator=draws) is not None for _ in range(400)]
    assert 60 < sum(often) < 140
    assert torch.equal(apply_cutmix(images, targets, None)[0], images)


def test_rectangles_are_as_large_as_published_ones() -> None:
    draws, numpy = torch.Generator().manual_seed(1), np.random.default_rng(2)

    def ours() -> float:
        draw = draw_cutmix(2, 32, 24, probability=1.0, generator=draws)
        assert draw is not None
        top, bottom, left, right = draw.box
        return (bottom - top) * (right - left) / (32 * 24)

    def theirs() -> float:
        side, share = (1 - numpy.beta(1.0, 1.0)) ** 0.5, 1.0
        for size in (32, 24):
            centre, half = numpy.integers(size), int(size * side) // 2
            share *= (min(size, centre + half) - max(0, centre - half)) / size
        return share

    mine, published = np.array([ours() for _ in range(3000)]), np.array([theirs() for _ in range(3000)])
    assert abs(mine.mean() - published.mean()) < 0.02  # three standard errors
    assert np.abs(np.quantile(mine, [0.1, 0.5, 0.9]) - np.quantile(published, [0.1, 0.5, 0.9])).max() < 0.04


@pytest.mark.parametrize("soft", [True, False])
def test_training_by_ncfms_recipe_is_torchs(soft: bool) -> None:
    distilled = real_images(small_data(), soft=soft)
    named = {name: value for name, value in RECIPES["ncfm"].items() if name != "epochs"}
    recipe = EvaluationRecipe(**{**named, "epochs": 6, "batch": 4, "dsa": "none", "lr": 0.02})
    network = Network(NetworkSpec(MODEL, 1, 3, 8), 5, "y", 0)
    trained = finish(
        train_networks([network], [(distilled.images, distilled.targets)], recipe, device=CPU, backend="autograd")
    )
    module = network.spec.build(5, "evaluation", MODEL, "y", 0).module
    draws = generator(5, "evaluation", MODEL, "y", 0, "draws")
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 3, 4], gamma=0.5)
    targets: Tensor = torch.nn.functional.one_hot(distilled.labels, 3).float()
    if soft:
        targets = distilled.label_logits.softmax(-1)
    mixed = 0
    for _ in range(6):
        for rows in shuffled_batches(torch.arange(6), 4, draws):
            draw = draw_cutmix(len(rows), 8, 8, probability=0.5, generator=draws)
            mixed += draw is not None
            x, y = apply_cutmix(distilled.images[rows], targets[rows], draw)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
        schedule.step()
    assert 0 < mixed < 12
    # Logits, because Adam makes whole steps of the rounding that is the gradient of a bias in front of a norm.
    expected = module.eval()(distilled.images).detach()
    assert relative_error(trained.logits(distilled.images), expected) < 1e-3
    assert (
        relative_error(network.spec.build(5, *network.names)(trained.network.initial(), distilled.images), expected)
        > 0.1
    )


def test_training_by_a_teacher_is_torchs() -> None:
    """KL to the teacher's probabilities of every mixed batch, AdamW, the cosine's first half."""
    distilled = real_images(small_data())
    named = {name: value for name, value in RECIPES["ddranking-teacher"].items() if name not in ("epochs", "batch")}
    recipe = EvaluationRecipe(**{**named, "epochs": 6, "batch": 4, "lr": 0.02})
    network = Network(NetworkSpec(MODEL, 1, 3, 8), 5, "y", 0)
    teacher = NetworkSpec("MLP", 1, 3, 8).build(0, "teacher").module.eval()
    sets = [(distilled.images, distilled.targets)]
    trained = finish(train_networks([network], sets, recipe, device=CPU, backend="autograd", teacher=teacher))
    module = network.spec.build(5, "evaluation", MODEL, "y", 0).module
    draws = generator(5, "evaluation", MODEL, "y", 0, "draws")
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    for _ in range(6):
        for rows in shuffled_batches(torch.arange(6), 4, draws):
            draw = draw_cutmix(len(rows), 8, 8, probability=1.0, generator=draws)
            x, _ = apply_cutmix(distilled.images[rows], torch.zeros(len(rows), 3), draw)
            optimizer.zero_grad()
            told = teacher(x).detach().log_softmax(-1)
            torch.nn.functional.kl_div(
                module(x).log_softmax(-1), told, log_target=True, reduction="batchmean"
            ).backward()
            optimizer.step()
        schedule.step()
    expected = module.eval()(distilled.images).detach()
    assert relative_error(trained.logits(distilled.images), expected) < 1e-3
    untaught = finish(train_networks([network], sets, replace(recipe, teacher=False), device=CPU, backend="autograd"))
    assert relative_error(untaught.logits(distilled.images), expected) > 0.05
    networks = [replace(network, index=index) for index in range(3)]
    stacked = finish(train_networks(networks, sets * 3, recipe, device=CPU, backend="autograd", teacher=teacher))
    assert relative_error(stacked.logits(distilled.images)[0], expected) < 1e-3


def rows_of(**given: Any) -> dict[str, tuple[float, ...]]:
    settings = {name: value for name, value in SETTINGS.items() if name not in given}
    report = evaluate(real_images(small_data()), small_data(), progress=QUIET, **{**settings, **given})
    return {row.name: row.accuracies for row in report.rows}


def test_a_set_under_several_recipes() -> None:
    found = rows_of(recipe=["pad_fast", "datm", "ncfm"], baselines=["random", "full"], epochs=4)
    small = ["random real", "DATM"]
    assert list(found) == [
        *small, "full data", *(f"{row}, {name}'s recipe" for name in ("datm", "ncfm") for row in small)
    ]  # fmt: skip
    for name in ("pad_fast", "datm", "ncfm"):
        alone = rows_of(recipe=name, baselines=["random"], epochs=4)
        assert alone.items() <= found.items()
    assert found["DATM"] == rows_of(baselines=False)["DATM"]
    assert len({found["DATM"], found["DATM, ncfm's recipe"]}) == 2


def test_the_teacher_is_network_0_of_the_full_set_in_each_sets_normalisation(trained_on, tmp_path, monkeypatch) -> None:
    data = small_data()
    white = real_images(data)
    plain = replace(white, images=white.images * 0.7 + 0.1, whitening=fit_normalization(data, "zca"))
    assert (white.whitening.kind, plain.whitening.kind) == ("mean-std", "zca")
    taught: list[Any] = []
    original = network_module._taught
    monkeypatch.setattr(
        network_module, "_taught", lambda teacher, *rest: (taught.append(teacher), original(teacher, *rest))[1]
    )
    settings = {**SETTINGS, "repeats": 1, "epochs": 2, "baselines": ["full"], "progress": QUIET}
    settings |= {"recipe": ["pad_fast", "ddranking-teacher"], "cache_dir": tmp_path}
    report = evaluate({"A": white, "B": plain}, data, **settings)
    names = ["A", "B", "full data", *(f"{name}, ddranking-teacher's recipe" for name in "AB")]
    assert [row.name for row in report.rows] == names
    # The row of the table and one in the other normalisation; neither has a teacher itself.
    full = trained_on["full data"]
    assert [recipe.teacher for *_, recipe in full] == [False, False] and not torch.equal(full[0][0], full[1][0])
    assert len({id(each) for each in taught}) == 2
    for teacher, (images, labels, recipe) in zip({id(each): each for each in taught}.values(), full, strict=True):
        first = Network(NetworkSpec(MODEL, 1, 3, 8), 0, "full data", 0)
        expected = finish(train_networks([first], [(images, labels)], recipe, device=CPU, backend="auto"))
        with torch.no_grad():
            assert relative_error(teacher(images), expected.logits(images)) < 1e-4
    taught.clear()
    again = evaluate({"A": white, "B": plain}, data, **settings)
    assert [row.accuracies for row in again.rows] == [row.accuracies for row in report.rows] and not taught
    alone = evaluate(white, data, **{**settings, "recipe": "ddranking-teacher", "baselines": False, "cache_dir": None})
    assert [row.name for row in alone.rows] == ["DATM, ddranking-teacher's recipe"] and taught


def test_several_networks_together_see_what_they_see_alone() -> None:
    """Mixing draws from the streams of each network."""
    distilled = real_images(small_data())
    recipe = EvaluationRecipe(0.02, epochs=3, batch=4, dsa="color_crop", optimizer="adamw", cutmix=0.7)
    networks = [Network(NetworkSpec(MODEL, 1, 3, 8), 5, "y", index) for index in range(3)]
    sets = [(distilled.images, distilled.targets)] * 3
    stacked = finish(train_networks(networks, sets, recipe, device=CPU, backend="autograd")).theta
    for row, network, one in zip(stacked, networks, sets, strict=True):
        alone = finish(train_networks([network], [one], recipe, device=CPU, backend="autograd")).theta
        assert relative_error(row, alone) < 1e-5


def test_what_results_are_found_by_is_what_it_was() -> None:
    ours = EvaluationRecipe(0.1).described()
    assert set(ours) == {"lr", "epochs", "batch", "momentum", "weight_decay", "dsa", "dsa_mode"}
    assert EvaluationRecipe(0.1, cutmix=0.5).described() == {**ours, "cutmix": 0.5}


def test_names_and_robust_scores() -> None:
    with pytest.raises(
        ConfigError,
        match="unknown recipe 'datn'; use one of pad_fast, mtt, datm, ncfm, ddranking, ddranking-teacher.*'datm'",
    ):
        rows_of(recipe="datn", baselines=False)
    with pytest.raises(ConfigError, match="robust scores are defined with our recipe; leave out recipe="):
        rows_of(recipe=["pad_fast", "mtt"], robust=True)
    assert rows_of(recipe=["pad_fast"], baselines=False).keys() == {"DATM"}
