"""What a distilled set is worth: the recipe, the rows, and sets that do not fit the data."""

from __future__ import annotations

import json
import math
import threading
import time
from functools import partial

import pytest
import torch

from pad_fast import DistilledDataset, Progress, evaluate, load, score
from pad_fast.data import fit_normalization
from pad_fast.engines.registry import record_backends
from pad_fast.errors import ConfigError, DatasetError, InputError, StoreError
from pad_fast.evaluation import AccuracyRow, EvaluationReport, RobustScore, export_ddranking, trial
from pad_fast.evaluation import network as evaluated_network
from pad_fast.evaluation.network import EvaluationRecipe, Network, train_networks
from pad_fast.evaluation.robustness import augmentation_robust_score, label_robust_score
from pad_fast.evaluation.side_by_side import side_by_side
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import generator
from pad_fast.training.optimizers import SGD
from pad_fast.training.trainer import Trainer, shuffled_batches

from ..support.native import require_native
from ..support.small import MODEL, QUIET, small_data

SETTINGS = {"models": (MODEL,), "repeats": 2, "epochs": 4, "full_epochs": 2, "batch": 4, "dsa": "color_crop"}
CPU = torch.device("cpu")
ROWS = ("random real", "easiest real", "k-means centres", "DATM", "full data")


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
        "config": {"method": "datm", "model": MODEL, "dsa": "color_crop", "score_networks": 1, "score_epochs": 2},
    }
    return DistilledDataset(**{**values, **changed})


def finish(work):
    """The result of something that yields on its way."""
    return next(side_by_side(lambda _: work, [None], workers=1))


@pytest.fixture
def epochs(monkeypatch):
    """(lr, optimiser, batch sizes, trainer) of every epoch that is trained."""
    seen = []
    original = Trainer.epoch

    def record(self, images, labels, batches, optimizer, augment=None, observe=None):
        batches = list(batches)
        if observe is None:  # not a score network's
            seen.append((optimizer.lr, optimizer, [len(batch) for batch in batches], self))
        return original(self, images, labels, batches, optimizer, augment, observe)

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


@pytest.fixture
def trained_on(monkeypatch):
    """(images, targets, recipe) of every network, by what it was trained on."""
    seen = {}
    original = trial.train_networks

    def record(networks, sets, recipe, **named):
        for network, taken in zip(networks, sets, strict=True):
            seen.setdefault(network.purpose, []).append((*taken, recipe))
        return original(networks, sets, recipe, **named)

    monkeypatch.setattr(trial, "train_networks", record)
    return seen


def rows_of(images, white):
    return [int((white == image).flatten(1).all(1).nonzero()[0]) for image in images]


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
    large = real_images(data, ipc=5)
    repeated = DistilledDataset(
        large.images.repeat(2, 1, 1, 1), None, large.labels.repeat(2), large.lr, large.whitening, {"model": MODEL}
    )
    with pytest.raises(DatasetError, match="has 10 images of class 1 .* only 9: .*baselines='full'"):
        evaluate(repeated, data, progress=QUIET, **SETTINGS)
    assert len(evaluate(repeated, data, baselines="full", progress=QUIET, **SETTINGS).rows) == 2


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


def test_scores_at_their_ends():
    assert label_robust_score(full=100, hard=0, own=0, random=100) == pytest.approx(0)
    assert label_robust_score(full=0, hard=100, own=100, random=0) == pytest.approx(1)
    assert label_robust_score(full=80, hard=60, own=70, random=50, weight=0.25) == pytest.approx(
        (math.exp(-0.1) - math.exp(-1)) / (math.e - math.exp(-1))
    )
    assert augmentation_robust_score(own=100, random=0, own_plain=100, random_plain=0) == pytest.approx(1)
    assert augmentation_robust_score(own=60, random=50, own_plain=30, random_plain=50, weight=0.25) == pytest.approx(
        (math.exp(0.025 - 0.15) - math.exp(-1)) / (math.e - math.exp(-1))
    )
    assert RobustScore("LRS", "x", "MLP", (0.5,)).std == 0 and RobustScore("LRS", "x", "MLP", (0.25, 0.5)).mean == 0.375


@pytest.mark.parametrize("soft", [True, False])
def test_ddranking_reads_images_class_by_class(tmp_path, soft):
    data = small_data()
    distilled = real_images(data, soft=soft)
    mixed = torch.tensor([3, 0, 5, 2, 1, 4])
    shuffled = DistilledDataset(
        distilled.images[mixed],
        distilled.label_logits[mixed] if soft else None,
        distilled.labels[mixed],
        distilled.lr,
        None,
        {},
    )
    export_ddranking(shuffled, tmp_path / "dd")
    images, labels, lr = (
        torch.load(tmp_path / "dd" / f"{name}.pt", weights_only=True) for name in ("images", "labels", "lr")
    )
    assert images.shape == (6, 1, 8, 8) and images.dtype == torch.float32 and lr.item() == 0.0371
    # Its metrics take image k for one of class k // ipc.
    classes = torch.arange(3).repeat_interleave(2)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = int((distilled.images == image).flatten(1).all(1).nonzero()[0])
        assert distilled.labels[place] == classes[row]
        assert torch.equal(label, distilled.targets[place])
    uneven = DistilledDataset(distilled.images[:5], None, distilled.labels[:5], 0.1, None, {})
    with pytest.raises(DatasetError, match="has 1 to 2"):
        export_ddranking(uneven, tmp_path / "no")


def test_results_are_kept_and_taken_again(tmp_path, epochs):
    data = small_data(noise=1.0)
    distilled, folder = real_images(data), tmp_path / "kept"
    first = evaluate(distilled, data, cache_dir=folder, progress=QUIET, **SETTINGS)
    trained = len(epochs)
    again = evaluate(distilled, data, cache_dir=folder, progress=QUIET, **SETTINGS)
    assert again == first and len(epochs) == trained
    more = evaluate(distilled, data, cache_dir=folder, progress=QUIET, **{**SETTINGS, "repeats": 3})
    assert len(epochs) == trained + 4 * 4 + 2, "one more network for each row"
    assert [row.accuracies[:2] for row in more.rows] == [row.accuracies for row in first.rows]
    changes = [{"seed": 1}, {"lr": 0.2}, {"epochs": 5}, {"dsa": "flip"}, {"models": ("MLP",)}, {"backend": "autograd"}]
    for change in changes:
        before = len(epochs)
        evaluate(distilled, data, baselines=False, cache_dir=folder, progress=QUIET, **{**SETTINGS, **change})
        assert len(epochs) > before, change
    before = len(epochs)
    evaluate(real_images(data, ipc=1), data, baselines=False, cache_dir=folder, progress=QUIET, **SETTINGS)
    other = small_data(noise=1.0, seed=1)
    evaluate(distilled, other, baselines=False, cache_dir=folder, progress=QUIET, **SETTINGS)
    assert len(epochs) == before + 16


def test_a_killed_evaluation_continues(tmp_path, monkeypatch, capsys):
    data = small_data(noise=1.0)
    distilled = real_images(data)
    undisturbed = evaluate(distilled, data, baselines="random", progress=QUIET, **SETTINGS)
    original = Trainer.accuracy
    tested = []

    def dies(self, *a):
        if len(tested) == 2:
            raise KeyboardInterrupt
        tested.append(1)
        return original(self, *a)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "accuracy", dies)
        with pytest.raises(KeyboardInterrupt):
            evaluate(distilled, data, baselines="random", cache_dir=tmp_path, progress=QUIET, **SETTINGS)
    report = evaluate(distilled, data, baselines="random", cache_dir=tmp_path, progress=Progress(), **SETTINGS)
    assert report == undisturbed
    assert "2 of 4 networks are known already" in capsys.readouterr().err


def test_damaged_results_are_errors(tmp_path):
    data = small_data()
    evaluate(real_images(data), data, baselines=False, cache_dir=tmp_path, progress=QUIET, **SETTINGS)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"{}")
    with pytest.raises(StoreError, match="damaged.*delete it"):
        evaluate(real_images(data), data, baselines=False, cache_dir=tmp_path, progress=QUIET, **SETTINGS)


@pytest.mark.parametrize("backend", ["cpu", "autograd"])
def test_networks_side_by_side_are_the_networks_one_by_one(backend, monkeypatch):
    if backend == "cpu":
        require_native()
    data = small_data(noise=1.0)
    distilled = real_images(data)
    settings = {**SETTINGS, "backend": backend, "repeats": 3, "epochs": 20}
    one_by_one = evaluate(distilled, data, baselines=["random", "full"], progress=QUIET, **settings)
    threads, original = set(), Trainer.epoch

    def record(self, *a, **named):
        threads.add(threading.get_ident())
        return original(self, *a, **named)

    monkeypatch.setattr(Trainer, "epoch", record)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with record_backends() as used:
            together = evaluate(distilled, data, baselines=["random", "full"], progress=QUIET, **settings)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(used) == {backend}
    assert threading.get_ident() not in threads and len(threads) > 1
    assert together == one_by_one


def counting(item, *, epochs=6):
    """Something long: it yields, and then is squared."""
    for _ in range(epochs):
        time.sleep(0.03)
        yield
    return item * item


def test_side_by_side_gives_every_result_once():
    assert sorted(side_by_side(partial(counting, epochs=3), range(7), workers=2)) == [i * i for i in range(7)]
    assert list(side_by_side(partial(counting, epochs=0), range(3), workers=1)) == [0, 1, 4]
    assert list(side_by_side(counting, [], workers=4)) == []


def test_three_networks_share_two_workers_evenly():
    threads = {item: set() for item in range(3)}

    def run(item):
        for _ in range(10):
            threads[item].add(threading.get_ident())
            time.sleep(0.03)
            yield
        return item, 9

    assert sorted(side_by_side(run, range(3), workers=2)) == [(item, 9) for item in range(3)]
    assert len(set.union(*threads.values())) == 2
    assert any(len(seen) == 2 for seen in threads.values()), "none was handed on from one worker to the other"


def test_side_by_side_stops_where_one_fails():
    turns = []

    def run(item):
        for _ in range(1000):
            turns.append(item)
            if item == 1 and len(turns) > 6:
                raise InputError("diverged")
            time.sleep(0.01)
            yield
        return item

    with pytest.raises(InputError, match="diverged"):
        list(side_by_side(run, range(5), workers=2))
    assert len(turns) < 100 and set(turns) <= {0, 1, 2}, "at most three are under way"


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
def test_trio_evaluates_like_the_safetensors_file(tmp_path, soft, recwarn):
    data = small_data(noise=1.0)
    real_images(data, soft=soft).save(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    for path in (tmp_path / "ours").glob("*_best.pt"):
        path.rename(tmp_path / "theirs" / path.name)
    ours = evaluate(tmp_path / "ours", data, progress=QUIET, **SETTINGS)
    assert not recwarn.list
    settings = {**SETTINGS, "difficulty": score(data, model=MODEL, networks=1, epochs=2, progress=QUIET)}
    # The files do not say how the images were normalised; here it was the default, so the warning is all there is.
    with pytest.warns(UserWarning, match="carries no whitening.*ZCA.*wrong"):
        theirs = evaluate(str(tmp_path / "theirs"), data, progress=QUIET, **settings)
    assert [row.accuracies for row in theirs.rows] == [row.accuracies for row in ours.rows]
    assert [row.name for row in theirs.rows] == [*ROWS[:3], "DISTILLED", "full data"]


def test_a_trio_of_whitened_images_needs_its_whitening(tmp_path):
    data = small_data(noise=1.0)
    zca = fit_normalization(data, "zca")
    rows = torch.cat([data.images_of_class(label)[:2] for label in range(3)])
    whitened = real_images(data, images=zca.apply(data.train_images[rows]), whitening=zca)
    whitened.save(tmp_path)
    ours = evaluate(whitened, data, baselines=False, progress=QUIET, **SETTINGS)
    (tmp_path / "distilled.safetensors").unlink()
    trio = load(tmp_path)
    with pytest.warns(UserWarning, match="no whitening"):
        evaluate(trio, data, baselines=False, progress=QUIET, **SETTINGS)
    mended = DistilledDataset(**{**vars(trio), "whitening": zca})
    theirs = evaluate(mended, data, baselines=False, progress=QUIET, **SETTINGS)
    assert theirs.rows[0].accuracies == ours.rows[0].accuracies


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
    original = evaluated_network.DSA
    monkeypatch.setattr(evaluated_network, "DSA", lambda s, **k: strategies.append((s, k["mode"])) or original(s, **k))
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


def test_a_report_is_read_as_written_and_older_files_too(tmp_path):
    rows = (AccuracyRow("PAD", "MLP", (30.0, 31.5)), AccuracyRow("random", "MLP", (20.25,)))
    report = EvaluationReport(rows, (RobustScore("LRS", "PAD", "MLP", (0.25, 0.75)),), "abc")
    path = tmp_path / "evaluation.json"
    report.write(path)
    assert EvaluationReport.read(path) == report
    stored = json.loads(path.read_text())
    for older in (stored["rows"], {"rows": stored["rows"]}):
        path.write_text(json.dumps(older))
        assert EvaluationReport.read(path) == EvaluationReport(rows)


@pytest.mark.parametrize("content", ["", "3", "[1]", '{"rows": [{"name": "PAD", "model": "MLP", "accuracies": []}]}'])
def test_a_report_that_is_none(tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=r"evaluation\.json"):
        EvaluationReport.read(path)


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
