"""What a distilled set is worth: the recipe, the rows, and sets that do not fit the data."""

from __future__ import annotations

import math

import pytest
import torch

from pad_fast import DistilledDataset, Progress, evaluate, evaluation
from pad_fast.data import fit_normalization
from pad_fast.errors import ConfigError, DatasetError, InputError
from pad_fast.evaluation import AccuracyRow, EvaluationReport, Recipe, train_and_test
from pad_fast.optimizers import SGD
from pad_fast.rng import generator
from pad_fast.training import NetworkSpec, Trainer, shuffled_batches

from .small import MODEL, QUIET, small_data

SETTINGS = {"models": (MODEL,), "repeats": 2, "epochs": 4, "full_epochs": 2, "batch": 4, "dsa": "color_crop"}
CPU = torch.device("cpu")


def real_images(data, *, ipc: int = 2, soft: bool = True, **changed) -> DistilledDataset:
    """Real images in place of distilled ones; soft labels in favour of the right class."""
    white = fit_normalization(data, "mean-std")
    rows = torch.cat([data.images_of_class(label)[:ipc] for label in range(data.classes)])
    labels = data.train_labels[rows]
    logits = 3.0 * torch.nn.functional.one_hot(labels, data.classes) + 0.1 * torch.arange(data.classes)
    values = {
        "images": white.apply(data.train_images[rows]),
        "label_logits": logits if soft else None,
        "labels": labels,
        "lr": 0.0371,
        "whitening": white,
        "config": {"method": "datm", "model": MODEL, "dsa": "color_crop"},
    }
    return DistilledDataset(**{**values, **changed})


@pytest.fixture
def epochs(monkeypatch):
    """(lr, optimiser, batch sizes, trainer) of every epoch that is trained."""
    seen = []
    original = Trainer.epoch

    def record(self, images, labels, batches, optimizer, augment=None):
        batches = list(batches)
        seen.append((optimizer.lr, optimizer, [len(batch) for batch in batches], self))
        return original(self, images, labels, batches, optimizer, augment)

    monkeypatch.setattr(Trainer, "epoch", record)
    return seen


@pytest.mark.parametrize(("count", "first"), [(1, 1), (2, 1), (3, 2), (6, 3), (7, 4)])
def test_rate_drops_tenfold_halfway_with_fresh_momentum(epochs, count, first):
    data = small_data()
    evaluate(real_images(data), data, baselines=False, progress=QUIET, **{**SETTINGS, "repeats": 1, "epochs": count})
    rates = [rate for rate, *_ in epochs]
    assert rates == pytest.approx([0.0371] * first + [0.00371] * (count - first))
    optimizers = [optimizer for _, optimizer, *_ in epochs]
    assert all(one is optimizers[0] for one in optimizers[:first])
    assert all(one is not optimizers[0] and one is optimizers[first] for one in optimizers[first:])
    assert {(o.momentum, o.weight_decay) for o in optimizers} == {(0.9, 5e-4)}
    assert all(sizes == [4, 2] for _, _, sizes, _ in epochs)


def test_accuracy_is_measured_once_at_the_end(monkeypatch, epochs):
    data = small_data()
    measured = []
    original = Trainer.accuracy
    monkeypatch.setattr(Trainer, "accuracy", lambda self, *a: measured.append(len(epochs)) or original(self, *a))
    report = evaluate(real_images(data), data, baselines=False, progress=QUIET, **SETTINGS)
    assert measured == [4, 8]
    assert report.rows[0].networks == 2


@pytest.mark.parametrize("soft", [True, False])
def test_training_is_the_recipe_by_torch(soft):
    data = small_data()
    distilled = real_images(data, soft=soft)
    recipe = Recipe(lr=0.1, epochs=4, batch=4, momentum=0.8, weight_decay=1e-2, dsa="none")
    test = distilled.whitening.apply(data.test_images), data.test_labels
    spec = NetworkSpec(MODEL, 1, 3, 8)
    found = train_and_test(
        distilled.images,
        distilled.targets,
        test,
        spec,
        recipe,
        purpose=("x", "y", 0),
        seed=5,
        device=CPU,
        backend="autograd",
    )
    module = spec.build(5, "x", "y", 0).module
    draws = generator(5, "x", "y", 0, "draws")
    for epoch in range(4):
        if epoch in (0, 2):
            rate = 0.1 if epoch == 0 else 0.01
            optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.8, weight_decay=1e-2)
        for rows in shuffled_batches(torch.arange(6), 4, draws):
            logits = module(distilled.images[rows])
            if soft:
                target = distilled.label_logits[rows].softmax(-1)
                loss = -(target * logits.log_softmax(-1)).sum(-1).mean()
            else:
                loss = torch.nn.functional.nll_loss(logits.log_softmax(-1), distilled.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()
    expected = 100 * float((module(test[0]).argmax(1) == test[1]).double().mean())
    assert found == pytest.approx(expected)
    assert 100 / 3 < found, "nothing was learnt"


def test_batch_norm_is_tested_with_running_statistics():
    data = small_data()
    images = fit_normalization(data, "mean-std").apply(data.train_images)
    trainer = Trainer(NetworkSpec(f"{MODEL}BN", 1, 3, 8).build(0, "x"), device=CPU, backend="auto")
    for _ in range(3):
        trainer.epoch(images, data.train_labels, torch.arange(38).split(10), SGD(0.05))
    together = trainer.logits(images)
    alone = torch.cat([trainer.logits(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-4), "the batch's own statistics were used"
    assert float(trainer.network.module.features[1].running_mean.abs().sum()) > 0.01


def test_soft_labels_make_a_difference(epochs):
    data = small_data()
    for soft in (True, False):
        evaluate(real_images(data, soft=soft), data, baselines=False, progress=QUIET, **{**SETTINGS, "repeats": 1})
    soft, hard = epochs[3][3].theta, epochs[7][3].theta
    assert float((soft - hard).norm() / hard.norm()) > 1e-3


def test_rows_of_a_full_report():
    data = small_data()
    report = evaluate(
        real_images(data), data, progress=QUIET, **{**SETTINGS, "models": ("ConvNet", "MLP"), "repeats": 3}
    )
    assert [(row.name, row.model, row.networks) for row in report.rows] == [
        (name, model, 3) for model in (MODEL, "MLP") for name in ("random real", "DATM", "full data")
    ]
    assert all(0 <= value <= 100 for row in report.rows for value in row.accuracies)
    assert report.row("full data").mean >= report.row("random real").mean - 20
    assert report.row("DATM", "MLP").model == "MLP" and report.row("DATM").model == MODEL
    table = report.table().splitlines()
    assert len(table) == 7 and "test accuracy, %" in table[0] and "(3 networks)" in table[3]
    assert repr(report) == report.table()
    with pytest.raises(InputError, match="no row 'PAD'; there are DATM, full data, random real"):
        report.row("PAD")


def test_baselines_use_fresh_real_images_of_the_same_number_and_the_full_set(monkeypatch):
    data = small_data()
    trained_on = []
    original = evaluation.train_and_test

    def record(images, targets, *rest, **named):
        trained_on.append((images, targets, named["purpose"], rest[2]))
        return original(images, targets, *rest, **named)

    monkeypatch.setattr(evaluation, "train_and_test", record)
    distilled = real_images(data, ipc=3)
    evaluate(distilled, data, progress=QUIET, **SETTINGS)
    by_name = {}
    for images, targets, purpose, recipe in trained_on:
        by_name.setdefault(purpose[2], []).append((images, targets, recipe))
    assert set(by_name) == {"random real", "distilled", "full data"}
    white = distilled.whitening.apply(data.train_images)
    draws = []
    for images, targets, recipe in by_name["random real"]:
        assert targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and recipe.epochs == 4
        rows = [int((white == image).flatten(1).all(1).nonzero()[0]) for image in images]
        assert len(set(rows)) == 9 and data.train_labels[rows].tolist() == targets.tolist()
        draws.append(rows)
    assert draws[0] != draws[1], "each network needs another draw"
    for images, targets, recipe in by_name["full data"]:
        assert torch.equal(images, white) and torch.equal(targets, data.train_labels) and recipe.epochs == 2
    for images, targets, recipe in by_name["distilled"]:
        assert torch.equal(images, distilled.images) and torch.equal(targets, distilled.label_logits)
        assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch) == (0.0371, 0.9, 5e-4, 4)


def test_same_seed_same_numbers_whatever_else_is_evaluated():
    data = small_data(noise=1.0)
    distilled = real_images(data)
    alone = evaluate(distilled, data, baselines=False, progress=QUIET, **SETTINGS).row("DATM").accuracies
    beside = evaluate(distilled, data, progress=QUIET, **SETTINGS).row("DATM").accuracies
    more = evaluate(distilled, data, baselines=False, progress=QUIET, **{**SETTINGS, "repeats": 3}).rows[0].accuracies
    assert alone == beside == more[:2]
    other = evaluate(distilled, data, baselines=False, seed=1, progress=QUIET, **SETTINGS).rows[0].accuracies
    assert other != alone


def test_the_methods_name_does_not_choose_the_networks():
    data = small_data(noise=1.0)
    accuracies = {
        evaluate(
            real_images(data, config={"method": method, "model": MODEL}),
            data,
            baselines=False,
            progress=QUIET,
            **SETTINGS,
        )
        .rows[0]
        .accuracies
        for method in ("pad", "mtt")
    }
    assert len(accuracies) == 1


def test_a_network_named_twice_is_one_row():
    data = small_data()
    report = evaluate(
        real_images(data), data, baselines=False, progress=QUIET, **{**SETTINGS, "models": ("ConvNet", MODEL)}
    )
    assert [(row.model, row.networks) for row in report.rows] == [(MODEL, 2)]


@pytest.mark.parametrize("soft", [True, False])
def test_trio_evaluates_like_the_safetensors_file(tmp_path, capsys, soft):
    data = small_data(noise=1.0)
    real_images(data, soft=soft).save(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    for path in (tmp_path / "ours").glob("*_best.pt"):
        path.rename(tmp_path / "theirs" / path.name)
    ours = evaluate(tmp_path / "ours", data, **SETTINGS)
    assert "whitening" not in capsys.readouterr().err
    theirs = evaluate(str(tmp_path / "theirs"), data, **SETTINGS)
    # The files do not say how the images were normalised; here it was the default, so the warning is all there is.
    warning = capsys.readouterr().err
    assert "warning: this distilled set carries no whitening" in warning and "ZCA" in warning
    assert [row.accuracies for row in theirs.rows] == [row.accuracies for row in ours.rows]
    assert [row.name for row in theirs.rows] == ["random real", "DISTILLED", "full data"]


def test_whitening_of_the_set_is_used(monkeypatch):
    data = small_data()
    zca = fit_normalization(data, "zca")
    distilled = real_images(data, images=zca.apply(data.train_images[:6]), whitening=zca)
    seen = []
    original = Trainer.accuracy
    monkeypatch.setattr(Trainer, "accuracy", lambda self, x, y: seen.append(x) or original(self, x, y))
    evaluate(distilled, data, baselines=False, progress=QUIET, **SETTINGS)
    assert torch.equal(seen[0], zca.apply(data.test_images))


def test_lr_and_augmentation_can_be_chosen(epochs, monkeypatch):
    data = small_data()
    strategies = []
    original = evaluation.DSA
    monkeypatch.setattr(evaluation, "DSA", lambda s, **k: strategies.append((s, k["mode"])) or original(s, **k))
    settings = {**SETTINGS, "repeats": 1, "epochs": 1, "baselines": False, "progress": QUIET}
    evaluate(real_images(data), data, **{**settings, "lr": 0.5, "dsa": None, "dsa_mode": "reference"})
    evaluate(real_images(data, config={}), data, **{**settings, "dsa": None})
    assert [rate for rate, *_ in epochs] == [0.5, 0.0371]
    assert strategies == [("color_crop", "reference"), ("color_crop_cutout_flip_scale_rotate", "fast")]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"images": torch.randn(6, 1, 16, 16)}, r"images are \[1, 16, 16\], but tensors has \[1, 8, 8\]"),
        ({"images": torch.randn(6, 3, 8, 8)}, r"images are \[3, 8, 8\]"),
        ({"label_logits": torch.randn(6, 5)}, "labels have 5 classes, but tensors has 3"),
        ({"label_logits": None, "labels": torch.tensor([0, 1, 2, 3, 4, 0])}, "labels reach 4, but tensors has 3"),
    ],
)
def test_sets_of_other_data(changed, named):
    data = small_data()
    with pytest.raises(DatasetError, match=named):
        evaluate(real_images(data, **changed), data, progress=QUIET, **SETTINGS)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"repeats": 0}, "repeats is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"full_epochs": 0}, "full_epochs is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_settings_that_cannot_be_used(changed, named):
    data = small_data()
    with pytest.raises(ConfigError, match=named):
        evaluate(real_images(data), data, progress=QUIET, **{**SETTINGS, **changed})


def test_an_unknown_network_is_an_error_before_any_training(epochs):
    data = small_data()
    with pytest.raises(InputError, match="unknown network 'ResNet19'.*Did you mean 'ResNet18'"):
        evaluate(real_images(data), data, progress=QUIET, **{**SETTINGS, "models": (MODEL, "ResNet19")})
    assert epochs == []


def test_divergence_is_an_error_not_an_accuracy():
    data = small_data()
    with pytest.raises(InputError, match=r"training on distilled diverged in epoch \d with learning rate 1e\+30"):
        evaluate(real_images(data), data, baselines=False, progress=QUIET, **{**SETTINGS, "lr": 1e30})


def test_mean_and_standard_deviation():
    row = AccuracyRow("x", "ConvNet", (10.0, 20.0, 60.0))
    assert (row.mean, row.networks) == (30.0, 3)
    assert row.std == pytest.approx(math.sqrt((400 + 100 + 900) / 2))
    assert AccuracyRow("x", "ConvNet", (10.0,)).std == 0.0
    line = EvaluationReport((row,)).table().splitlines()[1]
    assert line.split() == ["x", "ConvNet", "30.0", "+-", "26.5", "(3", "networks)"]


def test_progress_is_reported(capsys):
    data = small_data()
    evaluate(real_images(data), data, progress=Progress(), **{**SETTINGS, "epochs": 1, "full_epochs": 1})
    assert "evaluate: 100%" in capsys.readouterr().err
