"""The recipe of evaluated networks: rates, momentum, soft labels, augmentation, one test at the end."""

from __future__ import annotations

import pytest
import torch

from pad_fast import evaluate
from pad_fast.data import fit_normalization
from pad_fast.errors import InputError
from pad_fast.evaluation import network as evaluated_network
from pad_fast.evaluation.network import EvaluationRecipe, Network, train_networks
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import generator
from pad_fast.training.optimizers import SGD
from pad_fast.training.trainer import Trainer, shuffled_batches

from ..support.evaluation import SETTINGS, finish, real_images
from ..support.small import MODEL, QUIET, small_data

CPU = torch.device("cpu")


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
    original = Trainer.predictions
    monkeypatch.setattr(Trainer, "predictions", lambda self, *a: measured.append(len(epochs)) or original(self, *a))
    report = evaluate(real_images(data), data, baselines=False, progress=QUIET, **SETTINGS)
    assert measured == [4, 8]
    assert report.rows[0].networks == 2


@pytest.mark.parametrize("soft", [True, False])
def test_training_is_the_recipe_by_torch(soft):
    data = small_data()
    distilled = real_images(data, soft=soft)
    recipe = EvaluationRecipe(lr=0.1, epochs=4, batch=4, momentum=0.8, weight_decay=1e-2, dsa="none")
    test = distilled.whitening.apply(data.test_images), data.test_labels
    network = Network(NetworkSpec(MODEL, 1, 3, 8), 5, "y", 0)
    trained = finish(
        train_networks([network], [(distilled.images, distilled.targets)], recipe, device=CPU, backend="autograd")
    )
    found = trained.accuracy(*test)
    module = network.spec.build(5, "evaluation", MODEL, "y", 0).module
    draws = generator(5, "evaluation", MODEL, "y", 0, "draws")
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


def test_lr_and_augmentation_can_be_chosen(epochs, monkeypatch):
    data = small_data()
    strategies = []
    original = evaluated_network.DSA
    monkeypatch.setattr(evaluated_network, "DSA", lambda s, **k: strategies.append((s, k["mode"])) or original(s, **k))
    settings = {**SETTINGS, "repeats": 1, "epochs": 1, "baselines": False, "progress": QUIET}
    evaluate(real_images(data), data, **{**settings, "lr": 0.5, "dsa": None, "dsa_mode": "reference"})
    evaluate(real_images(data, config={}), data, **{**settings, "dsa": None})
    assert [rate for rate, *_ in epochs] == [0.5, 0.0371]
    assert strategies == [("color_crop", "reference"), ("color_crop_cutout_flip_scale_rotate", "fast")]


def test_divergence_is_an_error_not_an_accuracy():
    data = small_data()
    with pytest.raises(InputError, match=r"training on distilled diverged in epoch \d with learning rate 1e\+30"):
        evaluate(real_images(data), data, baselines=False, progress=QUIET, **{**SETTINGS, "lr": 1e30})
