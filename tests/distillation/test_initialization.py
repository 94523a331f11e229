"""The synthetic set before its first update."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pad_fast import DSA, ExpertStore
from pad_fast.data import fit_normalization
from pad_fast.distillation.initialization import Teachers, average_correct_logits, initial_set
from pad_fast.engines import Task, select
from pad_fast.errors import DatasetError
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import generator
from pad_fast.training.trainer import Trainer

from ..support.comparison import relative_error
from ..support.small import MODEL, SIZES, small_data

TOLERANCE = 1e-9  # relative L2, float64; equal to the last bit here


def test_soft_labels_are_the_references(golden):
    case = golden("label_init.npz")
    logits, labels = torch.from_numpy(case["logits_per_expert"]), torch.from_numpy(case["labels"])
    found, correct = average_correct_logits(logits, labels)
    assert correct.tolist() == case["experts_correct"].tolist()
    expected = torch.from_numpy(case["soft_label_logits"])
    nobody = torch.from_numpy(np.isnan(case["soft_label_logits"]).any(1))
    assert 0 < int(nobody.sum()) < len(labels) and int((correct == 0).sum()) == int(nobody.sum())
    assert relative_error(found[~nobody], expected[~nobody]) < TOLERANCE
    # The reference divides by zero where no expert is right; the mean over all of them is what is left.
    assert relative_error(found[nobody], logits.mean(0)[nobody]) < TOLERANCE


def test_soft_labels_by_hand():
    logits = torch.tensor([[[4.0, 0, 1]], [[6.0, 2, 0]], [[0.0, 9, 9]]])
    found, correct = average_correct_logits(logits, torch.tensor([0]))
    assert found.tolist() == [[5.0, 1.0, 0.5]] and correct.tolist() == [2]
    everyone, correct = average_correct_logits(logits, torch.tensor([2]))
    assert correct.tolist() == [0]
    assert everyone.flatten().tolist() == pytest.approx([10 / 3, 11 / 3, 10 / 3])


class Scripted:
    """Teachers whose verdicts are written down: `right[expert]` is the set of dataset rows it classifies correctly."""

    def __init__(self, images, labels, right):
        self.images, self.labels, self.right = images, labels, right

    def __len__(self):
        return len(self.right)

    def calibrate(self, images):
        assert torch.equal(images, self.images)

    def logits(self, expert, images):
        rows = torch.tensor([int((self.images == image).flatten(1).all(1).nonzero()[0]) for image in images])
        logits = torch.zeros(len(rows), 3)
        for i, row in enumerate(rows.tolist()):
            label = int(self.labels[row])
            logits[i, label if row in self.right[expert] else (label + 1) % 3] = 1.0 + expert
        return logits


def rows_of(images, chosen):
    return [int((images == image).flatten(1).all(1).nonzero()[0]) for image in chosen]


def test_images_come_from_those_an_expert_gets_right_going_on_to_others():
    data = small_data()
    images = data.train_images
    by_class = [members.tolist() for members in data.images_by_class()]
    # Expert 0 knows many of class 0, two of class 1 and nothing of class 2; expert 1 helps with class 1; nobody
    # knows more than one of class 2.
    right = [
        {*by_class[0][:8], *by_class[1][:2]},
        {*by_class[1][1:6], by_class[2][4], *by_class[0][8:]},
    ]
    found = initial_set(
        "samples_predicted_correctly",
        [4] * 3,
        images,
        data,
        Scripted(images, data.train_labels, right),
        dsa="color_crop",
        seed=0,
    )
    rows = rows_of(images, found.images)
    assert len(set(rows)) == 12
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [int(data.train_labels[row]) for row in rows] == found.labels.tolist()
    assert set(rows[:4]) <= right[0], "the first expert knew enough of class 0"
    assert set(rows[4:6]) == set(by_class[1][:2]) and set(rows[6:8]) <= set(by_class[1][2:6])
    assert rows[8] == by_class[2][4]
    assert found.notes == (
        "class 2 (2): experts classify only 1 of 4 images correctly; filled up with 3 other real images",
    )
    assert rows[:4] != sorted(rows[:4]) or rows[4:8] != sorted(rows[4:8]), "not in random order"


def test_soft_labels_of_the_chosen_images():
    data = small_data()
    everything = set(range(len(data.train_labels)))
    teachers = Scripted(data.train_images, data.train_labels, [everything, set(), everything])
    found = initial_set("real", [2] * 3, data.train_images, data, teachers, dsa="color_crop", seed=0)
    # Experts 0 and 2 are right with logits 1 and 3, expert 1 is wrong and left out.
    expected = 2.0 * torch.nn.functional.one_hot(found.labels, 3)
    assert torch.equal(found.label_logits, expected)


def teachers_for(data, tmp_path, *, model=MODEL, epochs=8):
    images = fit_normalization(data, "mean-std").apply(data.train_images)
    spec = NetworkSpec(model, 1, data.classes, 8)
    network = spec.build(0, "student")
    store = ExpertStore.create(tmp_path, parameter_count=network.parameter_count, epochs=1, metadata={})
    from pad_fast.training.optimizers import SGD

    for index in range(2):
        trainer = Trainer(spec.build(0, "expert", index), device=torch.device("cpu"), backend="auto")
        start = trainer.theta.clone()
        for _ in range(epochs):
            trainer.epoch(images, data.train_labels, torch.arange(len(images)).split(8), SGD(0.05))
        store.append(torch.stack([start, trainer.theta]))
    task = Task(network, torch.device("cpu"), torch.float32)
    return images, Teachers(store, select("auto", task), task)


@pytest.mark.parametrize("kind", ["samples_predicted_correctly", "real", "noise"])
def test_every_kind_with_trained_experts(tmp_path, kind):
    data = small_data()
    images, teachers = teachers_for(data, tmp_path)
    found = initial_set(kind, [5] * 3, images, data, teachers, dsa="color_crop", seed=3)
    again, other = (initial_set(kind, [5] * 3, images, data, teachers, dsa="color_crop", seed=seed) for seed in (3, 4))
    assert torch.equal(found.images, again.images) and torch.equal(found.label_logits, again.label_logits)
    assert not torch.equal(found.images, other.images)
    assert found.images.shape == (15, 1, 8, 8) and found.label_logits.shape == (15, 3)
    assert (found.label_logits.argmax(1) == found.labels).all(), "experts trained on these data know them"
    if kind == "noise":
        assert abs(float(found.images.mean())) < 0.2 and abs(float(found.images.std()) - 1) < 0.2
        return
    rows = rows_of(images, found.images)
    assert len(set(rows)) == 15 and (data.train_labels[rows] == found.labels).all()
    logits = torch.stack([teachers.logits(index, images[rows]) for index in range(2)])
    assert torch.equal(found.label_logits, average_correct_logits(logits, found.labels)[0])
    found.images.zero_()
    assert float(images[rows].abs().min(0).values.sum()) > 0, "the training images were changed"


def test_teachers_are_the_last_snapshots_in_eval_mode(tmp_path):
    data = small_data()
    images, teachers = teachers_for(data, tmp_path, epochs=2)
    module = NetworkSpec(MODEL, 1, 3, 8).build(0, "x").load(teachers.store.snapshot(1, 1)).eval()
    expected = module(images).detach()
    assert len(teachers) == 2
    assert relative_error(teachers.logits(1, images, chunk=7), expected) < 1e-5
    assert relative_error(teachers.logits(0, images), expected) > 0.01


def test_batch_norm_teachers_use_statistics_of_the_data(tmp_path):
    """Snapshots hold no running statistics; with those of a fresh network the experts would guess."""
    data = small_data()
    images, teachers = teachers_for(data, tmp_path, model=f"{MODEL}BN")
    found = initial_set("samples_predicted_correctly", [8] * 3, images, data, teachers, dsa="color_crop", seed=0)
    assert found.notes == ()
    assert (found.label_logits.argmax(1) == found.labels).all()
    norm = teachers.task.network.module.features[1]
    for index in (1, 0, 1):
        logits = teachers.logits(index, images)
        batch = teachers.task.network.module.features[0]
        weights = teachers.task.network.unflatten(teachers.store.snapshot(index, -1))
        maps = torch.nn.functional.conv2d(images, weights["features.0.weight"], weights["features.0.bias"], padding=1)
        assert batch.kernel_size == (3, 3)
        assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3)), atol=1e-5), f"expert {index}"
        assert float((logits.argmax(1) == data.train_labels).float().mean()) > 0.9
    assert norm.momentum == 0.1


@pytest.mark.parametrize("kind", ["samples_predicted_correctly", "real"])
@pytest.mark.parametrize("dsa", ["color_crop", "none"])
def test_a_class_with_fewer_images_begins_with_augmented_copies(tmp_path, kind, dsa):
    data = small_data()
    images, teachers = teachers_for(data, tmp_path, epochs=1)
    ipc = SIZES[2]
    found = initial_set(kind, [ipc] * 3, images, data, teachers, dsa=dsa, seed=0)
    assert found.images.shape[0] == 3 * ipc and len(found.label_logits) == 3 * ipc
    copies = [note for note in found.notes if "augmented copies" in note]
    assert copies == [
        f"class {label} ({label}) has {SIZES[label]} training images for ipc {ipc}; augmented copies of them are the "
        f"other {ipc - SIZES[label]} to begin with"
        for label in (0, 1)
    ]
    whole = images.flatten(1)
    for label, size in enumerate(SIZES):
        mine = found.images[found.labels == label].flatten(1)
        assert len(mine.unique(dim=0)) == ipc, "no two alike"
        assert bool((mine[:size, None] == whole).all(-1).any(1).all()), "real images first"
        if size < ipc:
            strategy = "crop_scale_rotate" if dsa == "none" else dsa
            own = found.images[found.labels == label][: ipc - size]
            copies = DSA(strategy)(own, generator=generator(0, "init copies", label)).flatten(1)
            assert torch.equal(mine[size:], copies)
    again = initial_set(kind, [ipc] * 3, images, data, teachers, dsa=dsa, seed=0)
    assert torch.equal(again.images, found.images)
    other = initial_set(kind, [ipc] * 3, images, data, teachers, dsa=dsa, seed=1)
    assert not torch.equal(other.images, found.images)


@pytest.mark.parametrize("kind", ["samples_predicted_correctly", "real"])
def test_too_few_images_in_every_class(tmp_path, kind):
    data = small_data()
    images, teachers = teachers_for(data, tmp_path, epochs=1)
    with pytest.raises(DatasetError, match=rf"ipc is 17, and no class has more than {SIZES[2]} training images"):
        initial_set(kind, [17] * 3, images, data, teachers, dsa="none", seed=0)
    assert initial_set("noise", [17] * 3, images, data, teachers, dsa="none", seed=0).images.shape[0] == 51


def test_a_class_used_up_completely(tmp_path):
    data = small_data()
    images, teachers = teachers_for(data, tmp_path, epochs=1)
    found = initial_set("samples_predicted_correctly", [9] * 3, images, data, teachers, dsa="color_crop", seed=0)
    assert sorted(rows_of(images, found.images[9:18])) == data.images_of_class(1).tolist()
