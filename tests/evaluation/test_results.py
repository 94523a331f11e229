"""Results that are kept: taken again, continued after a kill, refused when damaged."""

from __future__ import annotations

import pytest

from pad_fast import Progress, evaluate
from pad_fast.errors import StoreError
from pad_fast.training.trainer import Trainer

from ..support.evaluation import SETTINGS, real_images
from ..support.small import QUIET, small_data


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
    original = Trainer.predictions
    tested = []

    def dies(self, *a):
        if len(tested) == 2:
            raise KeyboardInterrupt
        tested.append(1)
        return original(self, *a)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "predictions", dies)
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
