"""Normalisation: the published ZCA numbers, the defining identities, storage, and refusals."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pad_fast.data import (
    ZCA,
    MeanStd,
    Normalization,
    fit_mean_std,
    fit_normalization,
    fit_zca,
    load_dataset,
    normalization_from_state,
    normalize,
)
from pad_fast.errors import ConfigError, InputError, StoreError

from ..support.small import small_data

Golden = Callable[[str], dict[str, np.ndarray]]


def pixels(n: int, *shape: int, seed: int = 0) -> Tensor:
    """Correlated pixels in [0, 1]: white noise would make whitening nearly trivial."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, *shape, generator=rng)
    shared = torch.rand(n, 1, 1, 1, generator=rng)
    return 0.5 * shared + 0.25 * noise + 0.25 * noise.roll(1, -1)


def test_zca_equals_the_published_one(golden: Golden) -> None:
    data = {key: torch.from_numpy(value) for key, value in golden("zca.npz").items()}
    zca = fit_zca(data["train"], eps=float(data["eps"]))

    def close(actual: Tensor, published: Tensor) -> None:
        torch.testing.assert_close(actual, published, rtol=0, atol=1e-5)  # both float32; worst seen 4.0e-6

    close(zca.mean.flatten(), data["mean"].flatten())
    close(zca.transform, data["transform"])
    close(zca.apply(data["train"]), data["train_white"])
    close(zca.apply(data["test"]), data["test_white"])
    close(zca.invert(data["test_white"]), data["test_restored"])


@pytest.mark.parametrize(("n", "shape"), [(500, (3, 6, 6)), (40, (3, 8, 8)), (2, (1, 3, 3))], ids=str)
def test_zca_by_definition(n: int, shape: tuple[int, ...]) -> None:
    """Also with fewer images than pixels, where the covariance is singular."""
    images, eps = pixels(n, *shape), 0.03
    zca = fit_zca(images, eps=eps)
    flat = images.flatten(1).double()
    covariance = torch.cov(flat.T)  # n - 1
    u, s, _ = torch.linalg.svd(covariance)
    torch.testing.assert_close(zca.transform.double(), u @ torch.diag((s + eps) ** -0.5) @ u.T, rtol=0, atol=3e-6)
    torch.testing.assert_close(zca.inverse.double(), u @ torch.diag((s + eps) ** 0.5) @ u.T, rtol=0, atol=3e-6)
    torch.testing.assert_close(zca.mean.flatten().double(), flat.mean(0), rtol=0, atol=1e-7)
    white = torch.cov(zca.apply(images).flatten(1).double().T)
    torch.testing.assert_close(white, u @ torch.diag(s / (s + eps)) @ u.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(zca.invert(zca.apply(images)), images, rtol=0, atol=1e-5)


def test_zca_does_not_depend_on_how_the_images_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(101, 3, 5, 5)
    whole = fit_zca(images)
    monkeypatch.setattr("pad_fast.data.normalize._CHUNK", 7)
    torch.testing.assert_close(fit_zca(images).transform, whole.transform, rtol=0, atol=1e-6)


def test_zca_is_repeatable_and_leaves_its_input_alone() -> None:
    images = pixels(60, 3, 8, 8)
    before = images.clone()
    first, second = fit_zca(images), fit_zca(images.to(memory_format=torch.channels_last), device="cpu")
    assert torch.equal(first.transform, second.transform) and torch.equal(first.inverse, second.inverse)
    assert torch.equal(images, before)
    assert not first.transform.is_inference() and not first.transform.requires_grad


def fitted() -> list[Normalization]:
    return [fit_zca(pixels(50, 3, 6, 6)), MeanStd(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))]


@pytest.mark.parametrize("normalization", fitted(), ids=lambda normalization: normalization.kind)
def test_state_round_trip(normalization: Normalization) -> None:
    state = normalization.state()
    assert all(value.is_contiguous() and value.device.type == "cpu" for value in state.values())
    back = normalization_from_state(state)
    assert type(back) is type(normalization) and back.kind == normalization.kind
    assert repr(back) == repr(normalization)
    images = pixels(4, 3, 6, 6, seed=1)
    assert torch.equal(back.apply(images), normalization.apply(images))
    assert torch.equal(back.invert(images), normalization.invert(images))


@pytest.mark.parametrize("normalization", fitted(), ids=lambda normalization: normalization.kind)
def test_layouts_types_and_gradients(normalization: Normalization) -> None:
    images = pixels(5, 3, 6, 6, seed=2)
    expected = normalization.apply(images)
    strided = images.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(normalization.apply(strided), expected, rtol=0, atol=1e-6)
    double = normalization.apply(images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(normalization.invert(double), images.double(), rtol=0, atol=1e-5)
    sample = images[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(normalization.apply, (sample,))
    assert torch.autograd.gradcheck(normalization.invert, (sample,))


@pytest.mark.parametrize("normalization", fitted(), ids=lambda normalization: normalization.kind)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 6, 6), "fitted on"),
        (torch.zeros(3, 6, 6), r"\[N, C, H, W\]"),
        (torch.zeros(2, 3, 6, 6, dtype=torch.uint8), "uint8"),
    ],
    ids=["channels", "rank", "dtype"],
)
def test_unfit_images(normalization: Normalization, images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalization.apply(images)
    with pytest.raises(InputError, match=message):
        normalization.invert(images)


def test_mean_std_uses_the_data_sets_numbers() -> None:
    dataset = load_dataset("digits")
    normalization = fit_mean_std(dataset)
    out = normalization.apply(dataset.train_images)
    assert abs(float(out.mean())) < 1e-5 and abs(float(out.std()) - 1) < 1e-4
    torch.testing.assert_close(normalization.invert(out), dataset.train_images, rtol=0, atol=1e-6)


def test_fit_by_name() -> None:
    dataset = load_dataset("digits")
    assert isinstance(fit_normalization(dataset, "mean-std"), MeanStd)
    zca = fit_normalization(dataset, "zca")
    assert isinstance(zca, ZCA) and zca.eps == 0.1
    assert torch.equal(zca.transform, fit_zca(dataset.train_images).transform)
    with pytest.raises(ConfigError, match="Did you mean 'mean-std'"):
        fit_normalization(dataset, "meanstd")


def test_zca_refuses_large_images_before_allocating() -> None:
    images = torch.zeros(1, 1, 1, 1).expand(4, 3, 128, 128)  # no memory of its own
    with pytest.raises(ConfigError, match=re.escape("49152 x 49152 covariance: 19.3 GB in float64")):
        fit_zca(images)


@pytest.mark.parametrize("eps", [0.0, -0.1, float("nan"), float("inf")])
def test_zca_refuses_eps(eps: float) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        fit_zca(pixels(4, 1, 3, 3), eps=eps)


@pytest.mark.parametrize("n", [0, 1])
def test_zca_refuses_too_few_images(n: int) -> None:
    with pytest.raises(InputError, match=f"at least two training images, got {n}"):
        fit_zca(torch.zeros(n, 3, 4, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_zca_refuses_nonfinite_pixels(value: float) -> None:
    images = pixels(9, 1, 4, 4)
    images[3, 0, 1, 2] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        fit_zca(images)


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.5], [0.0]), ([0.5], [-1.0]), ([float("nan")], [1.0]), ([0.5], [float("inf")]), ([0.5, 0.5], [1.0])],
)
def test_mean_std_refuses(mean: list[float], std: list[float]) -> None:
    with pytest.raises(InputError, match="mean-std normalisation needs"):
        MeanStd(torch.tensor(mean), torch.tensor(std))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("inverse"),
        lambda state: state.update(inverse=state["inverse"][:5]),
        lambda state: state.update(eps=torch.ones(3)),
        lambda state: state.update(other=torch.ones(1)),
    ],
    ids=["missing", "cut", "eps", "extra"],
)
def test_damaged_state(change: Callable[[dict[str, Tensor]], object]) -> None:
    state = fit_zca(pixels(20, 1, 4, 4)).state()
    change(state)
    with pytest.raises(StoreError, match="stored normalisation"):
        normalization_from_state(state)


def test_a_fitted_zca_is_kept_and_found_again(tmp_path, monkeypatch):
    data = small_data()
    own, shared = tmp_path / "run" / "experts" / "cache", tmp_path / "run" / "cache"
    fitted = fit_normalization(data, "zca", caches=[shared])
    fits = []
    original = normalize.fit_zca
    monkeypatch.setattr(normalize, "fit_zca", lambda *a, **k: fits.append(1) or original(*a, **k))
    found = fit_normalization(data, "zca", caches=[own, shared])
    assert not fits and not own.exists()
    for name, values in fitted.state().items():
        assert torch.equal(found.state()[name], values)
    fit_normalization(small_data(seed=3), "zca", caches=[own, shared])
    assert len(fits) == 1 and len(list(own.iterdir())) == 1, "of another data set"
    (path,) = shared.iterdir()
    sound = path.read_bytes()
    for damage in (sound[:-5], sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:], b"", b"words" * 9):
        path.write_bytes(damage)
        again = fit_normalization(data, "zca", caches=[shared])
        assert torch.equal(again.transform, fitted.transform) and path.read_bytes() == sound
    assert len(fits) == 5
    fit_normalization(data, "mean-std", caches=[tmp_path / "none"])
    assert not (tmp_path / "none").exists()
