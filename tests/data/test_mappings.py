"""Arrays in `.npz` files and dicts: MedMNIST's layout, Keras', and plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pad_fast import load_dataset
from pad_fast.errors import DatasetError

from ..support.small import noise

IDS = np.arange(20) % 3


def medmnist(channels: int = 3, rows: int = 20) -> dict[str, np.ndarray]:
    """As in the files of MedMNIST: gray images without a channel axis, labels uint8 [N, 1], three splits."""
    shape = (8, 8) if channels == 1 else (8, 8, channels)
    return {
        f"{split}_{kind}": noise(count, *shape, seed=count) if kind == "images" else np.uint8(IDS[:count])[:, None]
        for split, count in (("train", rows), ("val", 6), ("test", 9))
        for kind in ("images", "labels")
    }


def keras() -> dict[str, np.ndarray]:
    """As in Keras' mnist.npz."""
    content = medmnist(channels=1)
    return {
        f"{letter}_{split}": content[f"{split}_{kind}"] if letter == "x" else content[f"{split}_{kind}"][:, 0]
        for split in ("train", "test")
        for letter, kind in (("x", "images"), ("y", "labels"))
    }


def unit(array: np.ndarray) -> torch.Tensor:
    images = torch.from_numpy(array).float() / 255
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_medmnist_files(tmp_path: Path, channels: int, caplog: pytest.LogCaptureFixture) -> None:
    content = medmnist(channels)
    np.savez_compressed(tmp_path / "pathmnist.npz", **content)
    for source in (str(tmp_path / "pathmnist.npz"), tmp_path / "pathmnist.npz"):
        data = load_dataset(source)
        assert data.name == "pathmnist" and data.channels == channels
        assert torch.equal(data.train_images, unit(content["train_images"]))
        assert torch.equal(data.test_images, unit(content["test_images"]))
        assert data.train_labels.tolist() == IDS.tolist() and data.test_labels.tolist() == IDS[:9].tolist()
    assert caplog.text.count("the 6 validation images of the data set are not used") == 2


def test_validation_images_serve_where_there_are_no_test_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {key: value for key, value in medmnist().items() if not key.startswith("test")}
    np.savez(tmp_path / "set.npz", **content)
    data = load_dataset(tmp_path / "set.npz")
    assert torch.equal(data.test_images, unit(content["val_images"]))
    assert "set has no test images: its 6 validation images are tested on" in caplog.text


def test_keras_files(tmp_path: Path) -> None:
    content = keras()
    np.savez(tmp_path / "mnist.npz", **content)
    data = load_dataset(str(tmp_path / "mnist.npz"))
    assert torch.equal(data.train_images, unit(content["x_train"]))
    assert torch.equal(data.test_images, unit(content["x_test"])) and data.test_labels.tolist() == IDS[:9].tolist()
    shouted = load_dataset({key.replace("x_", "X_"): value for key, value in content.items()})
    assert shouted.fingerprint == data.fingerprint
    same = load_dataset({key: value.astype(np.float32) for key, value in content.items()})  # as scripts pass them on
    assert torch.equal(same.train_images, data.train_images)


def test_plain_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = np.array(["ant", "bee", "cow"])
    images = noise(20, 8, 8, seed=1)
    np.savez(tmp_path / "plain.npz", images=images, labels=names[IDS], name="insects", mean=[0.4], std=[0.2])
    data = load_dataset(tmp_path / "plain.npz")
    assert data.name == "insects" and data.class_names == ("ant", "bee", "cow") and data.mean == (0.4,)
    assert len(data.train_images) == 16 and len(data.test_images) == 4
    monkeypatch.chdir(tmp_path)
    assert load_dataset("plain.NPZ" if Path("plain.NPZ").exists() else "plain.npz").fingerprint == data.fingerprint


def test_multi_label_files_are_refused(tmp_path: Path) -> None:
    content = medmnist(1)
    rows = np.zeros((20, 14), np.uint8)  # as in chestmnist.npz
    rows[np.arange(20), IDS], rows[:5, 9] = 1, 1
    np.savez(tmp_path / "chestmnist.npz", **{**content, "train_labels": rows})
    with pytest.raises(DatasetError, match="label 0 of the training set has 2 classes at once"):
        load_dataset(tmp_path / "chestmnist.npz")


def test_volumes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "volumes.npz", images=noise(20, 8, 8, 8, 1, seed=0), labels=IDS)
    with pytest.raises(DatasetError, match=r"images must be \[N, C, H, W\] or \[N, H, W\]; got \[20, 8, 8, 8, 1\]"):
        load_dataset(tmp_path / "volumes.npz")


def refused(path: Path, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        load_dataset(path)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    refused(path, "set.npz does not exist")
    path.write_bytes(b"")
    refused(path, "cannot read .*set.npz as a NumPy archive")
    np.savez(path, images=noise(20, 8, 8, seed=1), labels=IDS)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "cannot read .*set.npz as a NumPy archive")
    with path.open("wb") as file:
        np.save(file, IDS)
    refused(path, "cannot read .*set.npz as a NumPy archive")
    np.savez(path, images=noise(20, 8, 8, seed=1), labels=np.array(["a", 1] * 10, dtype=object))
    refused(path, "holds Python objects, which are not loaded")
    np.savez(path, noise(20, 8, 8, seed=1), IDS)
    refused(path, "key 'arr_0' is unknown; known are train_images")
    np.savez(path, x_train=noise(20, 8, 8, seed=1))
    refused(path, r"needs train_images, .* \(or x_train, y_train, x_test, y_test\), or images and labels; got")


@pytest.mark.parametrize("missing", ["train_labels", "train_images", "test_images", "test_labels"])
def test_half_a_split(missing: str) -> None:
    content: dict[str, Any] = {key: value for key, value in medmnist().items() if not key.startswith("val")}
    del content[missing]
    with pytest.raises(DatasetError, match="needs train_images"):
        load_dataset(content)


def test_a_training_set_alone_is_divided() -> None:
    content = medmnist()
    data = load_dataset({key: content[key] for key in ("train_images", "train_labels")})
    assert (len(data.train_images), len(data.test_images)) == (16, 4)
