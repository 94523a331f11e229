"""Distilled sets in every form, their whitening, seeds and progress; sets and settings that do not fit."""

from __future__ import annotations

import pytest
import torch

from pad_fast import DistilledDataset, Progress, evaluate, load, score
from pad_fast.data import fit_normalization
from pad_fast.errors import ConfigError, DatasetError, InputError
from pad_fast.training.trainer import Trainer

from ..support.evaluation import SETTINGS, real_images
from ..support.small import MODEL, QUIET, small_data

ROWS = ("random real", "easiest real", "k-means centres", "DATM", "full data")


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
    original = Trainer.predictions
    monkeypatch.setattr(Trainer, "predictions", lambda self, x: seen.append(x) or original(self, x))
    evaluate(distilled, data, baselines=False, progress=QUIET, **SETTINGS)
    assert torch.equal(seen[0], zca.apply(data.test_images))


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


def test_progress_is_reported(capsys):
    data = small_data()
    evaluate(real_images(data), data, progress=Progress(), **{**SETTINGS, "epochs": 1, "full_epochs": 1})
    assert "evaluate: 100%" in capsys.readouterr().err


def test_one_name_is_one_network(capfd):
    small = small_data()
    settings = {**SETTINGS, "models": "MLP", "baselines": False, "repeats": 1}
    assert [row.model for row in evaluate(real_images(small), small, progress=False, **settings).rows] == ["MLP"]
    assert capfd.readouterr().err == ""
    evaluate(real_images(small), small, progress=True, **settings)
    assert "evaluate" in capfd.readouterr().err
