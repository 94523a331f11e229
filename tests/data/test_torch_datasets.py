"""Torch data sets of other people, with the transforms that they have: torchvision's and MedMNIST's objects."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from pad_fast import load_dataset
from pad_fast.data.vision import torchvision_datasets
from pad_fast.errors import DatasetError

from ..support.items import Items
from ..support.small import noise


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """`{train,test}/{ant,bee}/*.png`, 5 and 3 a class."""
    for split, count in (("train", 5), ("test", 3)):
        for position, label in enumerate(("ant", "bee")):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                seed = 100 * len(split) + 10 * position + number
                Image.fromarray(noise(8, 8, 3, seed=seed)).save(tmp_path / split / label / f"{number}.png")
    return tmp_path


def vision(folder: Path, *steps: Any) -> tuple[Any, Any]:
    """The pair of torchvision's ImageFolders, with a transform of these steps."""
    datasets = torchvision_datasets()
    from torchvision import transforms

    chain = transforms.Compose(list(steps)) if steps else None
    train, test = (datasets.ImageFolder(str(folder / split), transform=chain) for split in ("train", "test"))
    return train, test


def test_torchvision_objects_are_read_as_they_are(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    from_files = load_dataset(pictures)
    plain = load_dataset(vision(pictures))
    assert plain.name == "torch-dataset" and plain.fingerprint == from_files.fingerprint
    assert plain.class_names == ("ant", "bee")
    from torchvision import transforms

    tensors = load_dataset(vision(pictures, transforms.ToTensor()))
    assert tensors.fingerprint == from_files.fingerprint and not caplog.records
    alone = load_dataset(vision(pictures)[0])
    assert (len(alone.train_images), len(alone.test_images)) == (8, 2)


def test_a_resize_in_the_transform_is_the_size(pictures: Path) -> None:
    torchvision_datasets()
    from torchvision import transforms

    data = load_dataset(vision(pictures, transforms.Resize(4), transforms.ToTensor()))
    assert data.resolution == 4


def test_normalize_in_the_transform_is_seen_by_the_range(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    torchvision_datasets()
    from torchvision import transforms

    steps = transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)
    data = load_dataset(vision(pictures, *steps))
    assert torch.equal(data.train_images, (load_dataset(pictures).train_images - 0.5) / 0.25)
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and "run from -2 to 2, not from 0 to 1" in said[0] and "leave Normalize out" in said[0]


def test_random_transforms_are_refused(pictures: Path) -> None:
    torchvision_datasets()
    from torchvision import transforms

    for step in (transforms.RandomHorizontalFlip(), transforms.RandomCrop(8, padding=2)):
        with pytest.raises(DatasetError, match=r"image \d+ of the training set differs from one reading to the next"):
            load_dataset(vision(pictures, step))
    load_dataset(vision(pictures, transforms.ToTensor()))  # what it advises


def test_parts_of_data_sets_keep_the_names(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, test = vision(pictures)
    data = load_dataset((Subset(Subset(train, range(1, 9)), [0, 6, 3]), test))
    assert data.class_names == ("ant", "bee") and data.train_labels.tolist() == [0, 1, 0]


def test_pairs_with_other_classes_are_refused(pictures: Path) -> None:
    (pictures / "test" / "ant").rename(pictures / "test" / "cow")
    with pytest.raises(DatasetError, match=r"only in training \['ant'\], only in test \['cow'\]; one label would mean"):
        load_dataset(vision(pictures))
    (pictures / "test" / "cow").rename(pictures / "test" / "ant")
    load_dataset(vision(pictures))


def test_ids_from_one_as_emnist_has_them() -> None:
    """EMNIST's letters are 1 to 26, and its first name stands for none."""
    items = [(noise(8, 8, seed=index), 1 + index % 3) for index in range(12)]
    assert load_dataset(Items(items, ["N/A", "a", "b", "c"])).class_names == ("a", "b", "c")


def test_labels_of_items_in_any_form() -> None:
    images = [noise(8, 8, seed=index) for index in range(12)]
    for form in (
        lambda label: "cb"[label],
        lambda label: np.array([label], np.uint8),
        lambda label: torch.eye(2)[label],
        lambda label: float(label),
        lambda label: torch.tensor(label, dtype=torch.int16),
    ):
        data = load_dataset(Items([(image, form(index % 2)) for index, image in enumerate(images)]))
        assert data.class_names in (("0", "1"), ("b", "c")) and sorted(data.train_labels.bincount().tolist()) == [4, 5]


def test_a_data_loader_is_refused_with_the_way_out() -> None:
    data = TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 2)
    loader = DataLoader(data, batch_size=4)
    with pytest.raises(DatasetError, match="from a DataLoader; .* Of a DataLoader give its .dataset"):
        load_dataset(loader)
    load_dataset(loader.dataset)


# ---------------------------------------------------------------- MedMNIST


INFO = {"task": "multi-class", "label": {"0": "adipose", "1": "debris", "10": "tumour"}}


class Med(Dataset[Any]):
    """What MedMNIST's objects have, without their package."""

    def __init__(self, count: int, *, task: str = "multi-class", shape: tuple[int, ...] = (8, 8, 3)) -> None:
        self.imgs, self.labels = noise(count, *shape, seed=count), np.uint8(np.arange(count) % 3)[:, None]
        self.info = {**INFO, "task": task}

    def __len__(self) -> int:
        return len(self.imgs)

    def __getitem__(self, index: int) -> Any:
        image = (
            Image.fromarray(self.imgs[index]) if self.imgs.ndim < 5 and self.imgs.shape[-1] == 3 else self.imgs[index]
        )
        return image, self.labels[index].astype(int)


def test_medmnist_objects() -> None:
    train, test = Med(12), Med(9)
    data = load_dataset((train, test))
    assert data.class_names == ("adipose", "debris", "tumour")
    assert torch.equal(data.train_images, torch.from_numpy(train.imgs).permute(0, 3, 1, 2) / 255)
    assert data.test_labels.tolist() == [0, 1, 2] * 3
    assert len(load_dataset(train).train_images) == 9
    with pytest.raises(DatasetError, match=r"Med has several findings for an image \(multi-label\)"):
        load_dataset(Med(12, task="multi-label, binary-class"))
    with pytest.raises(DatasetError, match=r"Med holds volumes \[8, 8, 8\]; networks here take images"):
        load_dataset(Med(12, shape=(8, 8, 8)))


@pytest.mark.parametrize("flag", ["PathMNIST", "PneumoniaMNIST", "RetinaMNIST", "ChestMNIST", "OrganMNIST3D"])
def test_medmnist_s_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    torchvision_datasets()
    medmnist = pytest.importorskip("medmnist", reason="medmnist is not installed")
    reader = getattr(medmnist, flag)
    info = medmnist.INFO[reader.flag]
    counts = {"train": 40, "val": 20, "test": 30}
    monkeypatch.setitem(info, "n_samples", counts)
    classes = len(info["label"])
    shape = (28, 28, 28) if "3D" in flag else (28, 28) if info["n_channels"] == 1 else (28, 28, 3)
    content: dict[str, Any] = {}
    for split, count in counts.items():
        content[f"{split}_images"] = noise(count, *shape, seed=count)
        labels = np.arange(count)[:, None] % classes
        content[f"{split}_labels"] = np.uint8(np.eye(14)[labels[:, 0]] if flag == "ChestMNIST" else labels)
    np.savez(tmp_path / f"{reader.flag}.npz", **content)
    train, test = (reader(split=split, root=str(tmp_path)) for split in ("train", "test"))
    if flag in ("ChestMNIST", "OrganMNIST3D"):
        with pytest.raises(DatasetError, match="multi-label" if flag == "ChestMNIST" else "volumes"):
            load_dataset((train, test))
        return
    data = load_dataset((train, test))
    assert data.class_names == tuple(info["label"].values()) and data.channels == info["n_channels"]
    from_file = load_dataset(tmp_path / f"{reader.flag}.npz")
    assert data.fingerprint == from_file.fingerprint
    if data.channels == 1:
        assert load_dataset(reader(split="train", root=str(tmp_path), as_rgb=True)).channels == 3


def test_what_only_looks_like_medmnist() -> None:
    with pytest.raises(DatasetError, match="cannot read a data set from a SimpleNamespace"):
        load_dataset(SimpleNamespace(imgs=[], labels=[], info=3))
