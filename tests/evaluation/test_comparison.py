"""The rows of a report: baselines of the distilled set's size, and robust scores computed from rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pad_fast import Progress, evaluate, score
from pad_fast.errors import ConfigError, InputError
from pad_fast.evaluation.network import Network, train_networks
from pad_fast.models.spec import NetworkSpec

from ..support.evaluation import SETTINGS, finish, real_images
from ..support.small import MODEL, QUIET, small_data

CPU = torch.device("cpu")
ROWS = ("random real", "easiest real", "k-means centres", "DATM", "full data")


def rows_of(images, white):
    return [int((white == image).flatten(1).all(1).nonzero()[0]) for image in images]


def test_rows_of_a_full_report():
    data = small_data()
    report = evaluate(
        real_images(data), data, progress=QUIET, **{**SETTINGS, "models": ("ConvNet", "MLP"), "repeats": 3}
    )
    assert [(row.name, row.model, row.networks) for row in report.rows] == [
        (name, model, 3) for model in (MODEL, "MLP") for name in ROWS
    ]
    assert all(0 <= value <= 100 for row in report.rows for value in row.accuracies)
    assert report.row("full data").mean >= report.row("random real").mean - 20
    assert report.row("DATM", "MLP").model == "MLP" and report.row("DATM").model == MODEL
    table = report.table().splitlines()
    assert len(table) == 11 and "test accuracy, %" in table[0] and "(3 networks)" in table[3]
    assert repr(report) == report.table()
    with pytest.raises(InputError, match="no row 'PAD'; there are DATM, easiest real, full data"):
        report.row("PAD")


def test_baselines_have_the_same_number_of_images_and_the_same_recipe(trained_on):
    data = small_data()
    distilled = real_images(data, ipc=3)
    difficulty = score(data, model=MODEL, networks=2, epochs=2, seed=3, progress=QUIET)
    evaluate(distilled, data, difficulty=difficulty, progress=QUIET, **SETTINGS)
    assert set(trained_on) == {"random real", "easiest real", "k-means centres", "distilled", "full data"}
    white = distilled.whitening.apply(data.train_images)
    draws = []
    for images, targets, recipe in trained_on["random real"]:
        assert targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and recipe.epochs == 4
        rows = rows_of(images, white)
        assert len(set(rows)) == 9 and data.train_labels[rows].tolist() == targets.tolist()
        draws.append(rows)
    assert draws[0] != draws[1], "each network needs another draw"
    for images, targets, _ in trained_on["easiest real"]:
        assert rows_of(images, white) == torch.cat([order[:3] for order in difficulty.order]).tolist()
        assert targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for images, targets, recipe in trained_on["full data"]:
        assert torch.equal(images, white) and torch.equal(targets, data.train_labels) and recipe.epochs == 2
    for images, targets, recipe in trained_on["distilled"]:
        assert torch.equal(images, distilled.images) and torch.equal(targets, distilled.label_logits)
        assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch) == (0.0371, 0.9, 5e-4, 4)


def test_k_means_centres_are_means_of_their_clusters(trained_on):
    data = small_data()
    distilled = real_images(data, ipc=2)
    evaluate(distilled, data, baselines=["kmeans"], progress=QUIET, **SETTINGS)
    (images, targets, recipe), (again, _, _) = trained_on["k-means centres"]
    assert torch.equal(images, again), "found once for all networks"
    assert targets.tolist() == [0, 0, 1, 1, 2, 2] and recipe.dsa == "color_crop"
    white = distilled.whitening.apply(data.train_images).flatten(1)
    for label in range(3):
        members, centres = white[data.train_labels == label], images[targets == label].flatten(1)
        nearest = torch.cdist(members, centres).argmin(1)
        assert sorted(set(nearest.tolist())) == [0, 1]
        means = torch.stack([members[nearest == k].mean(0) for k in (0, 1)])
        assert torch.allclose(centres, means, atol=1e-4)


def test_baselines_can_be_chosen():
    data = small_data()
    report = evaluate(real_images(data), data, baselines=["full", "random"], progress=QUIET, **SETTINGS)
    assert [row.name for row in report.rows] == ["random real", "DATM", "full data"]
    with pytest.raises(ConfigError, match="unknown baseline 'rondom'.*Did you mean 'random'"):
        evaluate(real_images(data), data, baselines="rondom", progress=QUIET, **SETTINGS)


def test_a_class_with_fewer_real_images_gives_all_it_has(trained_on, capsys):
    data = small_data()  # 13, 9 and 16 images
    large = real_images(data, ipc=5)
    twice = replace(large, images=large.images.repeat(2, 1, 1, 1), label_logits=None, labels=large.labels.repeat(2))
    evaluate(twice, data, baselines=["random", "easiest", "kmeans"], progress=Progress(), **SETTINGS)
    assert "class 1 (1) has 9 real images and 10 distilled ones: baselines" in capsys.readouterr().err
    for name in ROWS[:3]:
        for _, labels, _ in trained_on[name]:
            assert labels.bincount().tolist() == [10, 9, 10]


def test_several_sets_by_name_see_the_same_networks():
    data = small_data(noise=1.0)
    ours, other = real_images(data), real_images(data, lr=0.2)
    report = evaluate({"best": ours, "last": other}, data, baselines="random", progress=QUIET, **SETTINGS)
    assert [row.name for row in report.rows] == ["random real", "best", "last"]
    alone = evaluate(ours, data, baselines=False, progress=QUIET, **SETTINGS).rows[0]
    assert report.row("best").accuracies == alone.accuracies != report.row("last").accuracies
    with pytest.raises(ConfigError, match="name at least one"):
        evaluate({}, data, progress=QUIET, **SETTINGS)


@pytest.mark.parametrize("soft", [True, False])
def test_robust_scores_come_from_the_rows(trained_on, soft):
    data = small_data(noise=1.0)
    settings = {**SETTINGS, "epochs": 6, "full_epochs": 8}
    distilled = real_images(data, soft=soft)
    report = evaluate(distilled, data, baselines=False, robust=True, progress=QUIET, **settings)
    random = "random real, soft labels" if soft else "random real"
    names = {"random real", "DATM", "full data", "DATM, no augmentation", random, f"{random}, no augmentation"}
    names |= {"DATM, hard labels"} if soft else set()
    assert {row.name for row in report.rows} == names
    values = {name: report.row(name).accuracies for name in names}
    hard = values["DATM, hard labels" if soft else "DATM"]
    label, augmentation = report.scores
    assert (label.name, augmentation.name, label.trained_on, label.model) == ("LRS", "ARS", "DATM", MODEL)
    for i in range(2):
        a = ((values["DATM"][i] - values[random][i]) - (values["full data"][i] - hard[i])) / 200
        assert label.values[i] == pytest.approx((math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1)))
        plain = values["DATM, no augmentation"][i] - values[f"{random}, no augmentation"][i]
        b = (values["DATM"][i] - values[random][i] + plain) / 200
        assert augmentation.values[i] == pytest.approx((math.exp(b) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert len({*label.values, *augmentation.values}) == 4, "the data should tell the scores apart"
    assert "DATM" in report.table() and "LRS 0." in report.table() and "ARS 0." in report.table()
    assert {recipe.dsa for _, _, recipe in trained_on["distilled"]} == {"color_crop", "none"}
    if soft:
        # The teacher is network 0 of the full set, trained once; its outputs are the soft labels of random images.
        assert len(trained_on["full data"]) == 2
        teacher = Network(NetworkSpec(MODEL, 1, 3, 8), 0, "full data", 0)
        images, labels, recipe = trained_on["full data"][0]
        logits = finish(train_networks([teacher], [(images, labels)], recipe, device=CPU, backend="auto")).logits(
            images
        )
        seen = [(x, y) for x, y, _ in trained_on["random real"] if y.is_floating_point()]
        assert len(seen) == 4
        for x, y in seen:
            assert torch.allclose(y, logits[rows_of(x, images)], atol=1e-5)


def test_a_network_named_twice_is_one_row():
    data = small_data()
    report = evaluate(
        real_images(data), data, baselines=False, progress=QUIET, **{**SETTINGS, "models": ("ConvNet", MODEL)}
    )
    assert [(row.model, row.networks) for row in report.rows] == [(MODEL, 2)]
