"""Evaluated as distilled: test images are normalised as the images of each set, said by the sets or by the caller."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import numpy
import pytest
import torch

from pad_fast import Progress, evaluate, load, load_normalization
from pad_fast.data import MeanStd, Pixels, fit_normalization, fit_zca
from pad_fast.data.distilled import DISTILLED
from pad_fast.errors import ConfigError, InputError

from ..support.evaluation import SETTINGS, real_images
from ..support.small import QUIET, small_data


def whitened(data, kind):
    white = fit_normalization(data, kind)
    rows = torch.cat([data.images_of_class(label)[:2] for label in range(data.classes)])
    return real_images(data, images=white.apply(data.train_images[rows]), whitening=white)


def silent(distilled):
    """The same, as published programs' files have it."""
    return real_images(small_data(), images=distilled.images, whitening=None)


def accuracies(distilled, **given):
    report = evaluate(distilled, small_data(noise=1.0), baselines=False, progress=QUIET, **SETTINGS, **given)
    return [row.accuracies for row in report.rows]


@pytest.mark.parametrize("kind", ["zca", "mean-std"])
def test_what_a_set_does_not_say_is_given(kind):
    said = whitened(small_data(noise=1.0), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_name = accuracies(silent(said), whitening=kind)
        by_value = accuracies(silent(said), whitening=said.whitening)
    assert by_name == by_value == accuracies(said)


def test_a_normalisation_from_a_file(tmp_path):
    """What kornia's ZCAWhitening keeps, for a silent set and for one that says its own, which keeps it."""
    data = small_data(noise=1.0)
    said, other = whitened(data, "zca"), whitened(data, "mean-std")
    zca = said.whitening
    torch.save({"mean_vector": zca.mean.reshape(1, -1), "transform_matrix": zca.transform}, tmp_path / "zca.pt")
    read = load_normalization(tmp_path / "zca.pt", shape=data.train_images.shape[1:])
    assert accuracies({"b": silent(said), "a": other}, whitening=read) == [
        *accuracies({"b": said}),
        *accuracies({"a": other}),
    ]


def test_a_path_is_no_normalisation(tmp_path):
    made = silent(real_images(small_data()))
    (tmp_path / "zca.pt").touch()
    for given in (tmp_path / "zca.pt", str(tmp_path / "zca.pt"), 0.1):
        with pytest.raises(ConfigError, match=r"of a file pass pad_fast.load_normalization\(FILE\) \(--normalize"):
            accuracies(made, whitening=given)


def test_that_a_set_keeps_its_own_is_said(capsys):
    sets = {"a": whitened(small_data(), "zca"), "b": silent(whitened(small_data(), "mean-std"))}
    evaluate(sets, small_data(), baselines=False, progress=Progress(), whitening="mean-std", **SETTINGS)
    assert "evaluate: normalised as they say themselves: a (zca); mean-std is for the others" in capsys.readouterr().err


def test_one_of_other_images_is_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[evaluate.__module__], "_jobs", lambda *_: pytest.fail("training begins"))
    made = silent(real_images(small_data()))
    for other in (MeanStd(torch.full((3,), 0.5), torch.full((3,), 0.5)), fit_zca(torch.rand(9, 1, 6, 6))):
        with pytest.raises(InputError, match="was fitted on"):
            accuracies(made, whitening=other)


def test_a_fitted_zca_is_kept_beside_the_results(tmp_path, monkeypatch):
    data = small_data(noise=1.0)
    accuracies(silent(whitened(data, "zca")), whitening="zca", cache_dir=tmp_path)
    monkeypatch.setattr("pad_fast.data.normalize.fit_zca", lambda *_, **__: pytest.fail("fitted again"))
    accuracies(silent(real_images(data)), whitening="zca", cache_dir=tmp_path)


def test_what_a_set_says_is_not_contradicted():
    said = whitened(small_data(noise=1.0), "zca")
    with pytest.raises(ConfigError, match=r"DATM says itself how it was normalised \(zca\)"):
        accuracies(said, whitening="mean-std")


@pytest.mark.parametrize("order", [1, -1])
def test_sets_of_two_normalisations_give_beside_each_other_what_they_give_apart(order):
    data = small_data(noise=1.0)
    sets = {"a": whitened(data, "zca"), "b": whitened(data, "mean-std")}
    apart = {name: accuracies({name: each})[0] for name, each in sets.items()}
    beside = accuracies(dict(list(sets.items())[::order]))
    assert dict(zip(list(sets)[::order], beside, strict=True)) == apart
    wrong = real_images(data, images=sets["a"].images, whitening=sets["b"].whitening)
    assert accuracies(wrong)[0] != apart["a"], "the normalisation does not matter here: the test proves nothing"


@pytest.mark.parametrize("order", [1, -1])
def test_a_set_that_says_nothing_beside_one_that_does(order):
    data = small_data(noise=1.0)
    sets = dict(list({"a": whitened(data, "zca"), "b": silent(whitened(data, "zca"))}.items())[::order])
    with pytest.warns(UserWarning, match="^b carries no whitening"):
        guessed = dict(zip(sets, accuracies(sets), strict=True))
    said = dict(zip(sets, accuracies(sets, whitening="zca"), strict=True))
    assert said["a"] == said["b"] == guessed["a"] != guessed["b"]


def test_baselines_are_normalised_as_the_first_set():
    data = small_data(noise=1.0)
    sets = {"a": whitened(data, "zca"), "b": whitened(data, "mean-std")}

    def baselines(sets):
        report = evaluate(sets, data, baselines=["random", "kmeans"], progress=QUIET, **SETTINGS)
        return {row.name: row.accuracies for row in report.rows if row.name not in sets}

    assert baselines(sets) == baselines({"a": sets["a"]}) != baselines({"b": sets["b"]})


def test_a_name_is_checked():
    with pytest.raises(ConfigError, match="Did you mean 'zca'"):
        accuracies(silent(real_images(small_data())), whitening="zac")


def test_a_set_without_rate_takes_the_one_of_the_evaluation(tmp_path):
    data = small_data(noise=1.0)
    real_images(data).save(tmp_path)
    (tmp_path / DISTILLED).unlink()
    expected = accuracies(load(tmp_path), whitening="mean-std", lr=0.05)
    (tmp_path / "lr_best.pt").unlink()
    assert accuracies(tmp_path, whitening="mean-std", lr=0.05) == expected


@pytest.mark.parametrize("kind", [None, "mean-std", "zca"])
@pytest.mark.parametrize("saved", ["npz", "bytes"])
def test_pixels_are_normalised_as_the_test_images_are(tmp_path, kind, saved):
    data = small_data(noise=1.0)
    rows = torch.cat([data.images_of_class(label)[:2] for label in range(data.classes)])
    pixels = data.train_images[rows].clamp(0, 1)
    if saved == "bytes":
        pixels = (pixels * 255).round() / 255
    labels = data.train_labels[rows]
    stored = (pixels * 255).round().byte() if saved == "bytes" else pixels
    numpy.savez(tmp_path / "set.npz", images=stored.numpy(), labels=labels.numpy(), lr=0.0371)
    white = fit_normalization(data, kind or "mean-std")
    expected = accuracies({"a": real_images(data, soft=False, images=white.apply(pixels), whitening=white)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = {} if kind is None else {"whitening": kind}
        read = load(tmp_path / "set.npz")
        assert read.are_pixels and torch.equal(read.images, pixels)
        assert accuracies({"a": tmp_path / "set.npz"}, **given) == expected == accuracies({"a": read}, **given)
        assert accuracies({"a": load(tmp_path / "set.npz", whitening=white)}) == expected
        beside = accuracies({"b": whitened(data, "zca"), "a": read}, **given)
    assert beside == [*accuracies({"b": whitened(data, "zca")}), *expected]
    unnormalised = real_images(data, soft=False, images=pixels, whitening=white)
    assert accuracies({"a": unnormalised}) != expected, "normalising does not matter here: the test proves nothing"


def test_that_pixels_are_normalised_is_said(capsys):
    data = small_data(noise=1.0)
    sets = {"a": replace(real_images(data), images=real_images(data).pixels(), whitening=Pixels())}
    evaluate(sets, data, baselines=["random"], progress=Progress(), **SETTINGS)
    assert "evaluate: a holds pixels; they are normalised (mean-std) as the test images are" in capsys.readouterr().err
