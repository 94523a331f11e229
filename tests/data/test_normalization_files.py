"""Normalisations from files: ours, a distilled set's, and arrays as other programs keep them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from pad_fast import load, load_normalization
from pad_fast.data import ZCA, MeanStd, Normalization, Pixels, fit_normalization, fit_zca
from pad_fast.errors import InputError, StoreError

from ..support.evaluation import real_images
from ..support.small import small_data

SHAPE = (3, 4, 5)
REAL = torch.rand(90, *SHAPE, generator=torch.Generator().manual_seed(2))
FITTED = fit_zca(REAL)
BY_CHANNEL = MeanStd(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]))


def same(one: Normalization, other: Normalization) -> bool:
    mine, theirs = one.state(), other.state()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def kornia(images: torch.Tensor, eps: float = 0.1, *, inverse: bool = True) -> SimpleNamespace:
    """The attributes of kornia's fitted ZCAWhitening, by its formulas: a flat mean of one row, float32."""
    flat = images.flatten(1)
    mean = flat.mean(0, keepdim=True)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / (len(flat) - 1))
    there, back = ((vectors * (values + eps) ** power) @ vectors.T for power in (-0.5, 0.5))
    return SimpleNamespace(
        mean_vector=mean, transform_matrix=there, transform_inv=back if inverse else torch.empty(0), eps=eps
    )


def written(path: Path, values: dict[str, object]) -> Path:
    if path.suffix == ".pt":
        torch.save(values, path)
    else:
        numpy.savez(path, **{name: numpy.asarray(value) for name, value in values.items()})
    return path


@pytest.mark.parametrize("one", [FITTED, BY_CHANNEL])
def test_what_was_saved_is_read_again(tmp_path, one):
    path = one.save(tmp_path / "new" / "how.safetensors")
    assert path == tmp_path / "new" / "how.safetensors" and same(load_normalization(str(path)), one)
    for suffix in (".pt", ".npz"):
        assert same(load_normalization(written(tmp_path / f"state{suffix}", one.state())), one)


def test_the_fitted_zca_of_a_run_is_read(tmp_path):
    fitted = fit_normalization(small_data(), "zca", caches=[tmp_path])
    (path,) = tmp_path.iterdir()
    assert same(load_normalization(path), fitted)


@pytest.mark.parametrize("kind", ["zca", "mean-std"])
def test_a_set_gives_its_own(tmp_path, kind):
    white = fit_normalization(small_data(), kind)
    made = real_images(small_data(), whitening=white)
    made.save(tmp_path / "run")
    archive = made.export(tmp_path / "set.npz", "npz")
    for path in (tmp_path / "run", tmp_path / "run" / "distilled.safetensors", archive):
        assert same(load_normalization(path), white)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
@pytest.mark.parametrize("inverse", [True, False])
def test_kornias_whitening(tmp_path, suffix, inverse):
    zca = kornia(REAL, inverse=inverse)
    read = load_normalization(written(tmp_path / f"zca{suffix}", vars(zca)), shape=SHAPE)
    assert isinstance(read, ZCA) and torch.equal(read.transform, zca.transform_matrix)
    expected = ((REAL.flatten(1) - zca.mean_vector) @ zca.transform_matrix).view(REAL.shape)
    torch.testing.assert_close(read.apply(REAL), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(read.apply(REAL), FITTED.apply(REAL), rtol=0, atol=1e-4)
    torch.testing.assert_close(read.invert(read.apply(REAL)), REAL, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
@pytest.mark.parametrize("form", [lambda t: t, lambda t: t[:, None, None], lambda t: t[None, :, None, None].double()])
def test_mean_and_std_in_any_form(tmp_path, suffix, form):
    values = {"mean": form(BY_CHANNEL.mean), "std": form(BY_CHANNEL.std), "images": torch.zeros(1)}
    assert same(load_normalization(written(tmp_path / f"how{suffix}", values)), BY_CHANNEL)
    if suffix == ".pt":
        plain = {"mean": BY_CHANNEL.mean.tolist(), "std": BY_CHANNEL.std.tolist()}
        assert same(load_normalization(written(tmp_path / "plain.pt", plain)), BY_CHANNEL)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean_vector": None}, "holds transform_matrix, transform_inv, eps; expected mean and std, or mean and tr"),
        ({"std": torch.ones(3)}, "holds .*; expected mean and std, or"),
        ({"mean_vector": torch.zeros(1, 59)}, r"a transform \[60, 60\] and a mean of 59 values"),
        ({"transform_matrix": torch.ones(60)}, r"a transform \[60\] and a mean"),
        ({"transform_matrix": FITTED.transform.tril()}, "not symmetric, so it is no ZCA"),
        ({"transform_inv": FITTED.transform}, "the inverse in .* is not that of its transform; leave it out"),
        ({"transform_inv": FITTED.inverse[:5]}, "the inverse in .* is not that of its transform"),
        ({"transform_inv": None, "transform_matrix": torch.zeros(60, 60)}, "damaged or no normalization .*singular"),
        ({"transform_matrix": torch.full((60, 60), torch.nan)}, "NaN or infinite"),
        ({"mean_vector": 255 * FITTED.mean.reshape(1, -1)}, "and pixels here go from 0 to 1; divide mean and std"),
        ({"eps": torch.ones(3)}, "damaged or no normalization"),
    ],
)
def test_matrices_that_make_no_sense(tmp_path, suffix, changes, said):
    values = {name: value for name, value in {**vars(kornia(REAL)), **changes}.items() if value is not None}
    with pytest.raises(StoreError, match=said):
        load_normalization(written(tmp_path / f"zca{suffix}", values), shape=SHAPE)


def test_a_flat_mean_needs_the_shape_of_the_images(tmp_path):
    path = written(tmp_path / "zca.pt", vars(kornia(REAL)))
    with pytest.raises(StoreError, match=r"has 60 values in a row; pass shape=\(C, H, W\)"):
        load_normalization(path)
    with pytest.raises(InputError, match=re.escape("whitens images of 60 values, and these are [3, 8, 8]")):
        load_normalization(path, shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.zeros(3), "holds a Tensor; expected a dict of mean and std"),
        (([0.5], [0.5]), "holds a tuple; expected a dict"),
        ({}, "holds nothing; expected"),
        ({"mean": "words", "std": [0.5]}, "damaged or no normalization"),
        ({"mean": [125.3], "std": [63.0]}, "means of .* reach 125.3, and pixels here go from 0 to 1; divide"),
        (SimpleNamespace(mean_vector=0), "of kornia's ZCAWhitening save torch.save"),
    ],
)
def test_files_of_something_else(tmp_path, values, said):
    torch.save(values, tmp_path / "how.pt")
    with pytest.raises(StoreError, match=said):
        load_normalization(tmp_path / "how.pt")


def test_numbers_that_normalise_nothing(tmp_path):
    for values in ({"mean": [0.5], "std": [0.0]}, {"mean": [0.5, 0.5], "std": [0.2]}):
        with pytest.raises(InputError, match="mean-std normalisation needs"):
            load_normalization(written(tmp_path / "how.pt", values))


def test_places_without_a_normalisation(tmp_path):
    made = real_images(small_data(), whitening=None)
    made.export(tmp_path / "trio", "trio"), made.save(tmp_path / "silent")
    real_images(small_data(), images=made.images.sigmoid(), whitening=Pixels()).export(tmp_path / "pixels.npz", "npz")
    (tmp_path / "trio" / "lr_best.pt").unlink()
    (tmp_path / "words.txt").write_text("words")
    for name, said in (
        ("none.pt", "no normalization at .*none.pt: there is no such file"),
        ("trio", "carries no whitening; name a set or file that says how"),
        ("silent/distilled.safetensors", "carries no whitening; name a set or file that says how"),
        ("pixels.npz", "holds pixels; name a set or file that says how"),
        ("words.txt", "words.txt is none of .safetensors, .npz, .pt, nor the folder of a distilled set"),
        (".", "no distilled set at "),
    ):
        with pytest.raises(StoreError, match=said):
            load_normalization(tmp_path / name)
    with pytest.raises(StoreError, match="name a file that ends in .safetensors"):
        BY_CHANNEL.save(tmp_path / "how.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"how{suffix}"
    FITTED.save(path) if suffix == ".safetensors" else written(path, FITTED.state())
    sound = path.read_bytes()
    flipped = sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:]
    for damage in (sound[:-50], b"", b"words" * 9, *([flipped] if suffix == ".safetensors" else [])):
        path.write_bytes(damage)
        with pytest.raises(StoreError, match=f"how{suffix} is damaged or no normalization of pad_fast"):
            load_normalization(path)
    if suffix == ".safetensors":
        path.write_bytes(sound.replace(b"normalization 1", b"normalization 2"))
        with pytest.raises(StoreError, match="has format 'pad_fast normalization 2'; this version reads"):
            load_normalization(path)


def test_one_of_other_images_is_refused_where_a_set_is_read(tmp_path):
    path = real_images(small_data()).export(tmp_path, "trio")
    for other in (FITTED, BY_CHANNEL):
        with pytest.raises(InputError, match="was fitted on"):
            load(path, whitening=other)
