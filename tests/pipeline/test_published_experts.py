"""Experts that lie where published programs put them, below the folder that is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pad_fast import ExpertStore
from pad_fast.errors import StoreError
from pad_fast.pipeline.published_experts import open_experts
from pad_fast.settings.config import Config

PLACES = (
    "CIFAR10/ConvNet",
    "CIFAR10_NO_ZCA/ConvNet",
    "CIFAR10_NO_ZCA/ConvNetBN",
    "CIFAR100/ConvNet",
    "Tiny/ConvNetD4",
    "ImageNet/imagenette/128/ConvNetD5",
    "ImageNet/imagenette/64/ConvNetD4",
    "ImageNet/imagewoof/128/ConvNetD5",
)


def buffers(folder: Path) -> Path:
    """A trajectory of two snapshots of two parameters."""
    folder.mkdir(parents=True)
    torch.save([[[torch.full((2, 2), 0.5 * k), torch.ones(2)] for k in range(2)]], folder / "replay_buffer_0.pt")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for place in PLACES:
        buffers(tmp_path / "storage" / place)
    return tmp_path / "storage"


@pytest.mark.parametrize(
    ("dataset", "model", "zca", "resolution", "place"),
    [
        ("CIFAR10", "ConvNet", True, 32, "CIFAR10/ConvNet"),
        ("cifar-10", "ConvNet", False, 32, "CIFAR10_NO_ZCA/ConvNet"),
        ("CIFAR10", "ConvNetBN", False, 32, "CIFAR10_NO_ZCA/ConvNetBN"),
        ("CIFAR100", "ConvNetD3", True, 32, "CIFAR100/ConvNet"),
        ("Tiny", "ConvNetD4", True, 64, "Tiny/ConvNetD4"),
        ("tinyimagenet", "ConvNetD4", False, 64, "Tiny/ConvNetD4"),
        ("imagenette", "ConvNetD5", False, 128, "ImageNet/imagenette/128/ConvNetD5"),
        ("ImageNet", "ConvNetD5", False, 128, "ImageNet/imagenette/128/ConvNetD5"),
        ("imagenette", "ConvNet", False, 64, "ImageNet/imagenette/64/ConvNetD4"),
        ("imagewoof", "ConvNetD5", True, 128, "ImageNet/imagewoof/128/ConvNetD5"),
    ],
)
def test_the_folder_of_data_and_network_is_found(root, dataset, model, zca, resolution, place, caplog):
    config = Config(dataset=dataset, model=model, zca=zca)
    with caplog.at_level("INFO", logger="pad_fast"):
        assert open_experts(root, config, resolution).folder == root / place
    assert f"experts of {dataset} for {model} are read from {root / place}" in caplog.text
    # Whatever folder above it is named, and itself.
    for above in [root.parent, *(root / place).parents[: place.count("/")], root / place]:
        assert open_experts(above, config, resolution).folder == root / place


def test_a_relative_folder(root, monkeypatch):
    monkeypatch.chdir(root / "CIFAR10_NO_ZCA")
    assert open_experts(Path("."), Config(dataset="cifar10", zca=False), 32).folder == Path("ConvNet")


@pytest.mark.parametrize(
    ("dataset", "model", "zca", "resolution", "place"),
    [
        ("CIFAR100", "ConvNet", False, 32, "CIFAR100_NO_ZCA/ConvNet"),
        ("svhn", "ConvNet", False, 32, "svhn/ConvNet"),
        ("imagenette", "ConvNetD6", False, 256, "ImageNet/imagenette/256/ConvNetD6"),
    ],
)
def test_what_was_looked_for_is_named_and_what_there_is(root, dataset, model, zca, resolution, place):
    config = Config(dataset=dataset, model=model, zca=zca)
    said = rf"neither store.json nor replay_buffer_\*.pt is there, and no folder is called {place} below it"
    with pytest.raises(StoreError, match=said) as caught:
        open_experts(root, config, resolution)
    assert all(str(root / each) in str(caught.value) for each in PLACES)
    chosen = root / "CIFAR100" / "ConvNet"
    assert "name one of" in str(caught.value) and open_experts(chosen, config, resolution).folder == chosen
    (root / "empty").mkdir()
    with pytest.raises(StoreError, match="as published programs call theirs$"):
        open_experts(root / "empty", config, resolution)


def test_of_several_none_is_guessed(root):
    config = Config(dataset="cifar10", zca=False)
    buffers(root.parent / "again" / "CIFAR10_NO_ZCA" / "ConvNet")
    with pytest.raises(StoreError, match="several folders are called cifar10_NO_ZCA/ConvNet below it.*name one of"):
        open_experts(root.parent, config, 32)
    assert open_experts(root, config, 32).folder == root / "CIFAR10_NO_ZCA" / "ConvNet"
    with pytest.raises(StoreError, match="several folders"):  # two networks, and neither has the name
        open_experts(root, Config(dataset="cifar10", zca=False, model="ConvNetD3"), 32)


def test_a_store_of_ours_is_read_beside_what_does_not_fit(root):
    ExpertStore.create(root, parameter_count=6, epochs=1, metadata={}).append(torch.ones(2, 6))
    assert open_experts(root, Config(dataset="digits"), 8).folder == root
    assert open_experts(root, Config(dataset="cifar100", zca=True), 32).folder == root / "CIFAR100" / "ConvNet"
