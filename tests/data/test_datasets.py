"""Data sets from memory: the digits, tensors, arrays, torch Datasets; splitting, resolution, names, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from pad_fast.data import ImageDataset, load_dataset, stratified_split
from pad_fast.data.named import NAMES, canonical_name
from pad_fast.errors import DatasetError

from ..support.items import Items
from ..support.small import noise


def pixels(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def labels(n: int, classes: int) -> Tensor:
    return torch.arange(n) % classes


def four(n: int = 12, m: int = 6, *, classes: int = 3, shape: tuple[int, ...] = (3, 8, 8)) -> dict[str, Any]:
    return {
        "train_images": pixels(n, *shape),
        "train_labels": labels(n, classes),
        "test_images": pixels(m, *shape, seed=1),
        "test_labels": labels(m, classes),
    }


# ---------------------------------------------------------------- digits and the dataset object


def test_digits() -> None:
    dataset = load_dataset("digits")
    assert repr(dataset) == "ImageDataset('digits', 1437 train / 360 test, 1x8x8, 10 classes)"
    assert (dataset.channels, dataset.resolution, dataset.classes) == (1, 8, 10)
    assert dataset.train_images.dtype == torch.float32 and dataset.train_labels.dtype == torch.int64
    assert float(dataset.train_images.min()) == 0 and float(dataset.train_images.max()) == 1
    assert torch.equal(dataset.train_images * 16, (dataset.train_images * 16).round())
    assert len(dataset.mean) == 1
    torch.testing.assert_close(dataset.train_images.mean().item(), dataset.mean[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(dataset.train_images.std().item(), dataset.std[0], rtol=0, atol=1e-4)
    counts = torch.bincount(dataset.test_labels)
    assert int(counts.min()) >= 35 and int(counts.max()) <= 37
    # Train and test together are the 1797 originals, each once.
    from sklearn.datasets import load_digits

    everything = np.concatenate([dataset.train_images.numpy(), dataset.test_images.numpy()])[:, 0] * 16
    originals = load_digits().images
    assert sorted(image.tobytes() for image in everything.astype(np.float64)) == sorted(
        image.tobytes() for image in originals
    )


def test_digits_are_the_same_every_time() -> None:
    first, second = load_dataset("digits"), load_dataset("Digits")
    assert first.fingerprint == second.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)


def test_fingerprint_sees_every_part() -> None:
    dataset = load_dataset(four())
    changed = [
        replace(dataset, train_images=dataset.train_images + 1e-3),
        replace(dataset, test_images=dataset.test_images.flip(0)),
        replace(dataset, train_labels=dataset.train_labels.flip(0)),
        replace(dataset, test_labels=dataset.test_labels.flip(0)),
    ]
    assert len({dataset.fingerprint, *(other.fingerprint for other in changed)}) == 5
    strided = dataset.train_images.to(memory_format=torch.channels_last)
    assert replace(dataset, train_images=strided).fingerprint == dataset.fingerprint


def test_images_of_class() -> None:
    dataset = load_dataset(four(13, 7))
    for label in range(3):
        indices = dataset.images_of_class(label)
        assert indices.dtype == torch.int64 and indices.tolist() == list(range(label, 13, 3))
    for label in (-1, 3):
        with pytest.raises(DatasetError, match=f"class {label} does not exist"):
            dataset.images_of_class(label)
    assert [members.tolist() for members in dataset.images_by_class()] == [list(range(i, 13, 3)) for i in range(3)]


def test_frozen_and_compared_by_identity() -> None:
    dataset = load_dataset(four())
    with pytest.raises(FrozenInstanceError):
        dataset.name = "other"  # type: ignore[misc]
    assert dataset == dataset and dataset != replace(dataset) and hash(dataset)


def test_an_image_dataset_passes_through() -> None:
    dataset = load_dataset(four())
    assert load_dataset(dataset) is dataset
    assert load_dataset(dataset, resolution=8) is dataset
    larger = load_dataset(dataset, resolution=16)
    assert larger.resolution == 16 and larger.mean == dataset.mean


# ---------------------------------------------------------------- tensors, arrays, dicts


def test_four_tensors_are_kept_as_they_are() -> None:
    parts = four()
    dataset = load_dataset(tuple(parts.values()))
    assert dataset.name == "tensors" and dataset.class_names == ("0", "1", "2")
    for name, value in parts.items():
        assert torch.equal(getattr(dataset, name), value)
    wide = load_dataset({**parts, "train_images": parts["train_images"] * 50 - 20})
    assert float(wide.train_images.max()) > 20  # a user's own range is not touched


def test_dict_with_everything() -> None:
    dataset = load_dataset(
        {**four(), "name": "mine", "class_names": ["a", "b", "c"], "mean": [0.1, 0.2, 0.3], "std": (1, 2, 3)}
    )
    assert (dataset.name, dataset.class_names) == ("mine", ("a", "b", "c"))
    assert (dataset.mean, dataset.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_statistics_come_from_the_training_images() -> None:
    parts = four(5000, 30, shape=(3, 4, 4))
    parts["train_images"][:, 1] *= 0.3
    parts["train_images"][:, 2] = 0.1
    dataset = load_dataset(parts)
    flat = parts["train_images"].double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(dataset.mean, flat.mean(1).numpy(), atol=1e-9)
    np.testing.assert_allclose(dataset.std[:2], flat.std(1, correction=0)[:2].numpy(), atol=1e-9)
    assert dataset.std[2] == 1.0  # a constant channel is only shifted


@pytest.mark.parametrize(
    "convert",
    [
        lambda images: images.numpy(),
        lambda images: images.permute(0, 2, 3, 1).numpy(),  # the layout of most arrays
        lambda images: images.numpy()[:, :, :, ::-1][:, :, :, ::-1],
        lambda images: list(images),
        lambda images: [image.permute(1, 2, 0).numpy() for image in images],
        lambda images: [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images],
        lambda images: images.float() / 255,
        lambda images: images.double().numpy() / 255,
    ],
    ids=["array", "nhwc", "negative-strides", "tensors", "hwc-arrays", "pil", "float", "float64"],
)
def test_forms_of_images(convert: Callable[[Tensor], Any]) -> None:
    images = torch.from_numpy(noise(20, 3, 8, 8, seed=0))
    dataset = load_dataset((convert(images), labels(20, 2).numpy().astype(np.int16)))
    expected = images.float() / 255
    train, test = stratified_split(labels(20, 2))
    torch.testing.assert_close(dataset.train_images, expected[train], rtol=0, atol=1e-7)
    torch.testing.assert_close(dataset.test_images, expected[test], rtol=0, atol=1e-7)
    assert dataset.train_images.is_contiguous()


def test_gray_images_without_a_channel_axis() -> None:
    dataset = load_dataset((noise(30, 7, 7, seed=0), [index % 3 for index in range(30)]))
    assert (dataset.channels, dataset.resolution, dataset.classes) == (1, 7, 3)


def test_read_only_arrays_and_gradients_are_fine() -> None:
    images = noise(20, 3, 8, 8, seed=0)
    images.flags.writeable = False
    load_dataset((images, labels(20, 2)))
    learned = pixels(20, 3, 8, 8).requires_grad_()
    assert not load_dataset((learned, labels(20, 2))).train_images.requires_grad


def test_the_callers_tensors_are_not_changed() -> None:
    images, ids = torch.from_numpy(noise(20, 3, 8, 10, seed=0)), labels(20, 2)
    before = images.clone(), ids.clone()
    load_dataset((images, ids), resolution=8)
    assert torch.equal(images, before[0]) and torch.equal(ids, before[1])


# ---------------------------------------------------------------- splitting


def test_stratified_split_takes_a_fifth_of_every_class() -> None:
    ids = torch.cat([torch.full((n,), label) for label, n in enumerate((50, 23, 7, 2))])
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    train, test = stratified_split(ids)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(82))
    assert train.tolist() == sorted(train.tolist()) and test.tolist() == sorted(test.tolist())
    counts = torch.bincount(ids[test])
    assert int(counts.sum()) == 17
    assert counts.tolist() == [10, 5, 1, 1]
    again = stratified_split(ids)
    assert torch.equal(again[1], test)
    assert not torch.equal(stratified_split(ids, seed=1)[1], test)


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(DatasetError, match="class 2 has one image"):
        load_dataset((pixels(9, 1, 8, 8), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])))


# ---------------------------------------------------------------- torch Datasets


def test_pair_of_torch_datasets() -> None:
    parts = four()
    train = TensorDataset(parts["train_images"], parts["train_labels"])
    test = TensorDataset(parts["test_images"], parts["test_labels"])
    dataset = load_dataset((train, test))
    assert dataset.name == "torch-dataset"
    for name, value in parts.items():
        assert torch.equal(getattr(dataset, name), value)


def test_single_torch_dataset_of_pil_images_is_split() -> None:
    items = [(Image.fromarray(noise(8, 8, 3, seed=index)), np.int64(index % 2)) for index in range(20)]
    dataset = load_dataset(Items(items, ["cat", "dog"]))
    assert (len(dataset.train_images), len(dataset.test_images)) == (16, 4)
    assert dataset.class_names == ("cat", "dog")
    first = torch.from_numpy(np.asarray(items[0][0]).copy()).permute(2, 0, 1) / 255
    assert any(torch.equal(first, image) for image in torch.cat([dataset.train_images, dataset.test_images]))


def test_torch_dataset_of_mixed_sizes_needs_resolution() -> None:
    items = [(pixels(1, 3, 8 + index % 3, 8 + index % 3)[0], index % 2) for index in range(20)]
    with pytest.raises(DatasetError, match=r"mixed size: image 0 of the data set is 8x8, image 1 .* 9x9.*resolution="):
        load_dataset(Items(items))
    assert load_dataset(Items(items), resolution=8).resolution == 8
    gray_or_rgb = [(noise(8 + index % 2, 8, 1 + 2 * (index % 2), seed=index), index % 2) for index in range(20)]
    assert load_dataset(Items(gray_or_rgb), resolution=8).channels == 3


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield pixels(1, 3, 8, 8)[0], 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Stream(), "without a length"),
        (Items([]), "empty"),
        (Items([pixels(1, 3, 8, 8)]), "item 0 of the data set is not a pair"),
        (Items([(pixels(3, 8, 8), 0.5)]), "label 0 of the data set must be an integer class id; got 0.5"),
        (Items([(pixels(3, 8, 8), True)]), "integer class id; got True"),
        (Items([("text", 0)]), "image 0 of the data set must be a tensor"),
        (Items([(pixels(1, 2, 3, 8, 8), 0)]), r"one image \[C, H, W\]"),
        (Items([(torch.zeros(3, 8, 8, dtype=torch.int64), 0)]), "torch.int64"),
        (Items([(pixels(3, 8, 8), 0), (torch.zeros(3, 8, 8, dtype=torch.uint8), 1)]), "some images are uint8"),
        (Items([(pixels(3, 8, 8), 0), (pixels(2, 8, 8), 1)]), "image 1 of the data set has 2, others have 3"),
    ],
    ids=["stream", "empty", "not-pairs", "float-label", "bool-label", "text", "rank", "int64", "dtypes", "channels"],
)
def test_unusable_torch_datasets(source: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(source)


# ---------------------------------------------------------------- resolution


def test_resolution_resizes_the_shorter_side_and_crops_the_centre() -> None:
    ramp = torch.linspace(0, 1, 24).expand(12, 1, 12, 24)  # brightness grows along the width
    dataset = load_dataset((ramp, labels(12, 2)), resolution=6)
    assert dataset.resolution == 6
    row = dataset.train_images[0, 0, 3]
    assert bool((row.diff() > 0).all())
    assert abs(float(row.mean()) - 0.5) < 1e-3  # the centre, not a side
    assert float(row[0]) > 0.2 and float(row[-1]) < 0.8
    assert load_dataset("digits", resolution=16).resolution == 16


def test_resolution_of_uint8_gives_unit_pixels() -> None:
    dataset = load_dataset((np.full((12, 10, 10, 3), 51, np.uint8), labels(12, 2)), resolution=5)
    torch.testing.assert_close(dataset.train_images, torch.full((9, 3, 5, 5), 0.2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("resolution", [0, -8, 8.0, True, "8"])
def test_unusable_resolution(resolution: Any) -> None:
    with pytest.raises(DatasetError, match="positive whole number"):
        load_dataset("digits", resolution=resolution)


# ---------------------------------------------------------------- refusals


def changed(**values: Any) -> dict[str, Any]:
    return {**four(), **values}


def with_pixel(value: float) -> Tensor:
    images = pixels(12, 3, 8, 8)
    images[7, 1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (changed(train_labels=labels(11, 3)), "12 train images but 11 train labels"),
        (changed(train_labels=labels(12, 3) / 2), "label 1 of the training set must be an integer class id; got 0.5"),
        (changed(train_labels=labels(12, 3) > 0), "torch.bool"),
        (changed(train_labels=labels(12, 3)[:, None].expand(12, 2)), r"shape \[N\].*\[12, 2\].*labels.argmax\(1\)"),
        (changed(train_labels=["a"] * 12), "integer class ids"),
        (changed(train_labels=np.array(["a"] * 12)), "label 0 of the test set is 0, .* give names in both"),
        (changed(train_labels=labels(12, 3) - 1), "run from -1 to 2"),
        (changed(train_labels=labels(12, 3) * 10**9), r"the train set has no image of class 1 \(1\), 2 \(2\)"),
        (changed(train_labels=labels(12, 3) * 2), r"the train set has no image of class 1 \(1\)"),
        (changed(test_labels=torch.zeros(6, dtype=torch.int64)), r"test set has no image of class 1 \(1\), 2 \(2\)"),
        (changed(test_labels=labels(6, 4)), r"train set has no image of class 3 \(3\)"),
        (changed(class_names=["a", "b"]), "run from 0 to 2; with 2 classes they are 0 to 1"),
        (four(classes=1), "single class"),
        (changed(train_images=with_pixel(float("nan"))), "train image 7 has NaN or infinite"),
        (changed(train_images=with_pixel(float("inf"))), "train image 7 has NaN or infinite"),
        (changed(test_images=with_pixel(float("-inf"))[6:]), "test image 1 has NaN or infinite"),
        (changed(train_images=pixels(12, 3, 8, 9)), "train images are 8x9.*resolution="),
        (changed(test_images=pixels(6, 3, 9, 9)), "training images are 3x8x8, test images 3x9x9"),
        (changed(test_images=pixels(6, 1, 8, 8)), "training images are 3x8x8, test images 1x8x8"),
        (changed(train_images=pixels(12, 8)), r"\[N, C, H, W\] or \[N, H, W\]; got \[12, 8\]"),
        (changed(train_images=torch.zeros(12, 3, 8, 8, dtype=torch.int64)), "torch.int64; give uint8"),
        (changed(train_images="pixels"), "got str"),
        (changed(train_images=[]), "train_images is empty"),
        (changed(train_images=pixels(0, 3, 8, 8), train_labels=labels(0, 3)), "train set is empty"),
        (changed(test_images=pixels(0, 3, 8, 8), test_labels=labels(0, 3)), "test set is empty"),
        (changed(train_images=pixels(12, 0, 8, 8), test_images=pixels(6, 0, 8, 8)), "train set is empty"),
        (changed(mean=[0.5, 0.5, 0.5]), "both mean and std"),
        (changed(mean=[0.5], std=[1.0]), "each of the 3 channels"),
        (changed(mean=[0.5] * 3, std=[1.0, 0.0, 1.0]), "std positive"),
        (changed(mean=0.5, std=1.0), "one number per channel"),
        (changed(train_lables=labels(12, 3)), "'train_lables' is unknown.*Did you mean 'train_labels'"),
        ({"images": pixels(12, 3, 8, 8)}, "got \\['images'\\]"),
        ((pixels(12, 3, 8, 8), labels(11, 3)), "12 images but 11 labels"),
        ((pixels(0, 3, 8, 8), labels(0, 3)), "the data set is empty"),
        ((pixels(12, 3, 8, 8), labels(12, 3) - 1), "run from -1 to 1"),
        ((pixels(12, 3, 8, 8), labels(12, 3), pixels(6, 3, 8, 8)), "2 parts .* or 4 .*; got 3"),
        (([pixels(1, 3, 8, 8)[0], pixels(1, 3, 8, 9)[0]], [0, 1]), r"images\[0\] is 8x8, images\[1\] is 8x9"),
        (42, "cannot read a data set from a int"),
        (None, "cannot read a data set from a NoneType"),
    ],
)  # fmt: skip
def test_refusals(source: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(source)


def test_a_hand_made_data_set_is_checked_too() -> None:
    dataset = load_dataset(four())
    with pytest.raises(DatasetError, match="must be float32"):
        replace(dataset, train_images=dataset.train_images.double())
    with pytest.raises(DatasetError, match="must be int64"):
        replace(dataset, train_labels=dataset.train_labels.int())
    with pytest.raises(DatasetError, match="test labels must be int64"):
        ImageDataset(**{**vars(dataset), "test_labels": dataset.test_labels[:, None]})


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("CIFAR10", "cifar10"),
        ("cifar-100", "cifar100"),
        ("Tiny", "tinyimagenet"),
        ("tiny-imagenet-200", "tinyimagenet"),
        ("ImageNet", "imagenette"),
        ("Fashion_MNIST", "fashionmnist"),
        *((name, name) for name in NAMES),
    ],
)
def test_names(given: str, name: str) -> None:
    assert canonical_name(given) == name


@pytest.mark.parametrize(
    ("given", "message"),
    [("cifar", "Did you mean 'cifar10'"), ("imagewof", "Did you mean 'imagewoof'"), ("xyzzy", "known are digits, ")],
)
def test_unknown_names(given: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(given)


def test_names_that_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.zeros((4, 8, 8), np.uint8))
    for given, said in (
        ("images.npy", "file of that name is of a kind that is not read: save its arrays .* in a .npz file, or pass"),
        (str(tmp_path / "images.npy"), "file of that name is of a kind that is not read"),
        ("./none", "There is no file or folder of that name"),
    ):
        with pytest.raises(DatasetError, match=said):
            load_dataset(given)
