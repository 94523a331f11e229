"""Data sets from files: image folders, Tiny-ImageNet, ImageNet subsets, what torchvision reads; made on the spot."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pad_fast.data import load_dataset
from pad_fast.data.natural_order import natural_key
from pad_fast.errors import DatasetError

from ..support.small import noise


def save(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def make_folder(
    root: Path,
    *,
    splits: Iterable[str] = ("train", "test"),
    classes: Iterable[str] = ("cat", "dog"),
    shape: tuple[int, ...] = (6, 6, 3),
    count: int = 3,
    suffix: str = ".png",
) -> dict[str, np.ndarray]:
    """Random images in `{split}/{class}/{index}{suffix}`; returns their pixels by relative path."""
    written: dict[str, np.ndarray] = {}
    for split in splits:
        for name in classes:
            for index in range(count):
                path = f"{split}/{name}/{index}{suffix}"
                written[path] = save(root / path, noise(*shape, seed=len(written)))
    return written


# ---------------------------------------------------------------- image folders


def test_image_folder(tmp_path: Path) -> None:
    # Numeric class folders and file names count; extensions may be upper case; other files are ignored.
    written = make_folder(tmp_path, classes=("10", "9", "1"), count=11, suffix=".PNG")
    (tmp_path / "train" / "9" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "9" / "._3.PNG").write_text("not an image either")
    (tmp_path / "train" / ".cache").mkdir()
    dataset = load_dataset(f"imagefolder:{tmp_path}")
    assert dataset.name == "imagefolder" and dataset.class_names == ("1", "9", "10")
    for split in ("train", "test"):
        order = [f"{split}/{name}/{index}.PNG" for name in dataset.class_names for index in range(11)]
        expected = torch.from_numpy(np.stack([written[path] for path in order])).permute(0, 3, 1, 2) / 255
        assert torch.equal(getattr(dataset, f"{split}_images"), expected)
        assert getattr(dataset, f"{split}_labels").tolist() == [label for label in range(3) for _ in range(11)]
    assert load_dataset(tmp_path).fingerprint == dataset.fingerprint  # a path will do


def test_image_folder_jpeg_val_and_nested_files(tmp_path: Path) -> None:
    make_folder(tmp_path, splits=("train", "val"), suffix=".jpg")
    save(tmp_path / "train" / "dog" / "more" / "deep.jpeg", noise(6, 6, 3, seed=99))
    dataset = load_dataset(f"imagefolder:{tmp_path}")
    assert len(dataset.train_images) == 7 and len(dataset.test_images) == 6


def test_gray_folder_has_one_channel_unless_one_image_is_rgb(tmp_path: Path) -> None:
    make_folder(tmp_path, shape=(6, 6))
    assert load_dataset(f"imagefolder:{tmp_path}").channels == 1
    save(tmp_path / "test" / "dog" / "colour.png", noise(6, 6, 3, seed=50))
    dataset = load_dataset(f"imagefolder:{tmp_path}")
    assert dataset.channels == 3
    assert torch.equal(dataset.train_images[:, 0], dataset.train_images[:, 2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pixel_modes(tmp_path: Path, mode: str) -> None:
    make_folder(tmp_path, suffix=".tif", shape=(6, 6) if mode in ("1", "L", "LA", "I;16") else (6, 6, 3))
    for split in ("train", "test"):
        path = tmp_path / split / "cat" / "0.tif"
        if mode == "I;16":
            Image.fromarray(np.full((6, 6), 0x80FF, np.uint16)).save(path)
        else:
            Image.new("RGB", (6, 6), (255, 255, 255)).convert(mode).save(path)
    dataset = load_dataset(f"imagefolder:{tmp_path}")
    assert dataset.channels == (1 if mode in ("1", "L", "LA", "I;16") else 3)
    expected = 128 / 255 if mode == "I;16" else 1.0
    torch.testing.assert_close(dataset.train_images[0], torch.full_like(dataset.train_images[0], expected))


def test_mixed_sizes_need_resolution(tmp_path: Path) -> None:
    make_folder(tmp_path)
    save(tmp_path / "train" / "dog" / "9.png", noise(9, 12, 3, seed=7))
    with pytest.raises(DatasetError, match=r"0\.png is 6x6, .*9\.png is 9x12\. Pass resolution="):
        load_dataset(f"imagefolder:{tmp_path}")
    dataset = load_dataset(f"imagefolder:{tmp_path}", resolution=4)
    assert dataset.resolution == 4 and len(dataset.train_images) == 7


def test_folder_images_are_resized_like_tensors(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 24).astype(np.uint8)[None, :, None].repeat(12, 0).repeat(3, 2)
    for split in ("train", "test"):
        for name in ("a", "b"):
            save(tmp_path / split / name / "0.png", smooth)
    dataset = load_dataset(f"imagefolder:{tmp_path}", resolution=6)
    tensors = load_dataset((np.stack([smooth] * 10), np.arange(10) % 2), resolution=6)
    torch.testing.assert_close(dataset.train_images[0], tensors.train_images[0], rtol=0, atol=1.5 / 255)


def test_folder_refusals(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(DatasetError, match=message):
            load_dataset(f"imagefolder:{tmp_path / 'set'}")

    root = tmp_path / "set"
    refused("does not exist")
    root.mkdir()
    refused("needs train/<class>/<image file> and test/<class>/.*found no folders")
    make_folder(root, splits=("test",))
    refused("found test")
    shutil.rmtree(root)
    make_folder(root, splits=("train",))
    (root / "test").mkdir()
    refused("test has no class folders")
    make_folder(root, splits=("test",), classes=("cat",))
    refused(r"different classes: only in training \['dog'\], only in test \[\]")
    (root / "test" / "dog").mkdir()
    refused(r"test/dog holds no images")
    save(root / "test" / "dog" / "0.png", noise(6, 6, 3, seed=3))
    load_dataset(f"imagefolder:{root}")
    (root / "train" / "cow").mkdir()
    refused(r"train/cow holds no images")


def test_a_single_class_folder_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("cat",))
    with pytest.raises(DatasetError, match="single class"):
        load_dataset(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "foreign", "float"])
def test_undecodable_files_are_named(tmp_path: Path, damage: str) -> None:
    make_folder(tmp_path, shape=(32, 32, 3))
    path = tmp_path / "test" / "dog" / "1.png"
    data = path.read_bytes()
    if damage == "foreign":  # a format that the extensions do not promise, whatever the file is called
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\n")
    elif damage == "float":
        Image.fromarray(np.zeros((32, 32), np.float32)).save(path, format="TIFF")
    else:
        path.write_bytes({"text": b"hello", "empty": b"", "truncated": data[: len(data) // 2]}[damage])
    with pytest.raises(DatasetError, match=r"cannot decode image .*test/dog/1\.png"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_natural_order() -> None:
    names = ["b10", "b9", "a", "10", "2", "b9c1", "02"]
    assert sorted(names, key=natural_key) == ["02", "2", "10", "a", "b9", "b9c1", "b10"]


# ---------------------------------------------------------------- Tiny-ImageNet


def make_tiny(root: Path, *, flat: bool) -> dict[str, np.ndarray]:
    """Three classes in the official layout, or with one validation folder per class; one gray JPEG as there."""
    written, lines = {}, []
    for position, wnid in enumerate(("n03", "n01", "n02")):
        for index in range(2):
            gray = (position, index) == (1, 1)
            path = root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG"
            save(path, noise(64, 64, seed=9) if gray else noise(64, 64, 3, seed=10 * position + index))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 1 1\n")
        for index in range(2):
            number = 3 * index + position
            folder = root / "val" / ("images" if flat else f"{wnid}/images")
            written[f"{wnid}/{index}"] = save(
                folder / f"val_{number}.JPEG", np.full((64, 64, 3), 20 * number + 5, np.uint8)
            )
            lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    if flat:
        (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "test" / "images").mkdir(parents=True)  # the official test images have no labels and are not read
    return written


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("where", ["inside", "itself", "zip"])
def test_tiny_imagenet(tmp_path: Path, flat: bool, where: str) -> None:
    root = tmp_path / "tiny-imagenet-200"
    written = make_tiny(root, flat=flat)
    data_dir = root if where == "itself" else tmp_path
    if where == "zip":
        data_dir = tmp_path / "zipped"
        data_dir.mkdir()
        with zipfile.ZipFile(data_dir / "tiny-imagenet-200.zip", "w") as archive:
            for path in sorted(tmp_path.glob("tiny-imagenet-200/**/*")):
                archive.write(path, path.relative_to(tmp_path))
    dataset = load_dataset("Tiny", data_dir=data_dir)
    assert dataset.name == "tinyimagenet" and dataset.class_names == ("n01", "n02", "n03")
    assert (dataset.channels, dataset.resolution) == (3, 64)
    assert dataset.mean == (0.485, 0.456, 0.406) and dataset.std == (0.229, 0.224, 0.225)
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 2, 2] and dataset.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    for row, name in enumerate(f"{wnid}/{index}" for wnid in dataset.class_names for index in range(2)):
        level = written[name][0, 0, 0] / 255
        assert float((dataset.test_images[row] - level).abs().max()) < 2 / 255
    assert torch.equal(dataset.train_images[1, 0], dataset.train_images[1, 1])  # the gray one, as RGB


def test_tiny_imagenet_refusals(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Tiny-ImageNet not found: neither .*tiny-imagenet-200\.zip exists"):
        load_dataset("tinyimagenet", data_dir=tmp_path)
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DatasetError, match="as a zip archive"):
        load_dataset("tinyimagenet", data_dir=tmp_path)
    root = tmp_path / "tiny-imagenet-200"
    make_tiny(root, flat=True)
    annotations = root / "val" / "val_annotations.txt"
    text = annotations.read_text()
    annotations.write_text(text.replace("val_4.JPEG\tn01", "val_4.JPEG\tn09"))
    with pytest.raises(DatasetError, match=r"gives val_4\.JPEG the class 'n09'"):
        load_dataset("tinyimagenet", data_dir=tmp_path)
    annotations.write_text(text.replace("\tn01\t", "\tn02\t"))
    with pytest.raises(DatasetError, match="class n01 of .* has no validation images"):
        load_dataset("tinyimagenet", data_dir=tmp_path)
    annotations.unlink()
    with pytest.raises(DatasetError, match=r"cannot read .*val_annotations\.txt"):
        load_dataset("tinyimagenet", data_dir=tmp_path)


# ---------------------------------------------------------------- ImageNet subsets

WOOF = (193, 182, 258, 162, 155, 167, 159, 273, 207, 229)


def make_imagenet(root: Path, classes: Iterable[int], *, filled: Iterable[int]) -> None:
    """Class folders n0000, n0001, ...; the filled ones hold one image whose brightness encodes the class."""
    filled = set(filled)
    for split in ("train", "val"):
        for label in classes:
            folder = root / split / f"n{label:04d}"
            folder.mkdir(parents=True)
            if label in filled:
                save(folder / f"{label}.png", np.full((130, 260, 3), label % 256, np.uint8))


@pytest.mark.parametrize("kind", ["thousand", "ten"])
def test_imagenet_subset(tmp_path: Path, kind: str) -> None:
    make_imagenet(tmp_path / "imagenet", range(1000) if kind == "thousand" else WOOF, filled=WOOF)
    dataset = load_dataset("ImageWoof", data_dir=tmp_path)
    assert dataset.name == "imagewoof" and dataset.resolution == 128
    assert dataset.class_names == tuple(f"n{label:04d}" for label in WOOF)  # the published order
    for images in (dataset.train_images, dataset.test_images):
        assert [round(value * 255) for value in images[:, 0, 0, 0].tolist()] == [label % 256 for label in WOOF]
    assert load_dataset("imagewoof", data_dir=tmp_path, resolution=64).resolution == 64


def test_imagenet_subset_refusals(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="imagefruit not found: .*imagenet/train"):
        load_dataset("imagefruit", data_dir=tmp_path)
    make_imagenet(tmp_path / "seven", range(7), filled=range(7))
    with pytest.raises(DatasetError, match="holds 7 class folders; imagenette needs the 1000 .* exactly its own 10"):
        load_dataset("imagenet", data_dir=tmp_path / "seven")
    make_imagenet(tmp_path / "ten", range(10), filled=range(10))
    for path in (tmp_path / "ten" / "val" / "n0003").iterdir():
        path.unlink()
    (tmp_path / "ten" / "val" / "n0003").rmdir()
    with pytest.raises(DatasetError, match=r"lacks the class folders \['n0003'\].*one folder per class"):
        load_dataset("imagenette", data_dir=tmp_path / "ten")


# ---------------------------------------------------------------- torchvision


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(header + array.tobytes())
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(header + array.tobytes())


@pytest.mark.parametrize("kept", ["both", "compressed", "unpacked"])
@pytest.mark.parametrize(
    ("name", "folder", "mean", "std"),
    [
        ("MNIST", "MNIST/raw", 0.1307, 0.3081),
        ("MNIST", "mnist", 0.1307, 0.3081),
        ("MNIST", ".", 0.1307, 0.3081),
        ("FashionMNIST", "FashionMNIST/raw", 0.2861, 0.3530),
    ],
)
def test_mnist_files(tmp_path: Path, name: str, folder: str, mean: float, std: float, kept: str) -> None:
    images = {part: noise(n, 28, 28, seed=n) for part, n in (("train", 30), ("t10k", 20))}
    for part, array in images.items():
        write_idx(tmp_path / folder / f"{part}-images-idx3-ubyte", array)
        write_idx(tmp_path / folder / f"{part}-labels-idx1-ubyte", np.arange(len(array), dtype=np.uint8) % 10)
    for path in (tmp_path / folder).iterdir():
        if kept != "both" and (path.suffix == ".gz") != (kept == "compressed"):
            path.unlink()
    dataset = load_dataset(name, data_dir=tmp_path)
    assert (dataset.name, dataset.channels, dataset.resolution) == (name.lower(), 1, 28)
    assert dataset.mean == (mean,) and dataset.std == (std,) and len(dataset.class_names) == 10
    from pad_fast.data.vision import torchvision_datasets

    assert dataset.class_names == tuple(getattr(torchvision_datasets(), name).classes)
    assert torch.equal(dataset.train_images[:, 0], torch.from_numpy(images["train"]) / 255)
    assert torch.equal(dataset.test_images[:, 0], torch.from_numpy(images["t10k"]) / 255)
    assert dataset.train_labels.tolist() == [index % 10 for index in range(30)]
    damaged = next(
        path
        for path in (tmp_path / folder).iterdir()
        if "train-images" in path.name and path.suffix != ".gz" or kept == "compressed"
    )
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(DatasetError, match=f"{damaged.name}.*Fetch the file again"):
        load_dataset(name, data_dir=tmp_path)


def test_cifar10_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pad_fast.data.vision import torchvision_datasets

    reader = torchvision_datasets().CIFAR10
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    images = [noise(10, 3, 32, 32, seed=seed) for seed in range(6)]
    batches = [
        write(name, {"data": image.reshape(10, -1), "labels": list(range(10))})
        for name, image in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], images, strict=True)
    ]
    names = [f"kind{index}" for index in range(10)]
    meta, checksum = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(reader, "train_list", batches[:5])
    monkeypatch.setattr(reader, "test_list", batches[5:])
    monkeypatch.setattr(reader, "meta", {"filename": meta, "key": "label_names", "md5": checksum})
    dataset = load_dataset("CIFAR10", data_dir=tmp_path)
    assert dataset.class_names == tuple(names)
    assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2023, 0.1994, 0.2010)
    assert torch.equal(dataset.train_images, torch.from_numpy(np.concatenate(images[:5])) / 255)
    assert torch.equal(dataset.test_images, torch.from_numpy(images[5]) / 255)
    (folder / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match="CIFAR10 cannot be read"):
        load_dataset("CIFAR10", data_dir=tmp_path)


def test_svhn_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat  # type: ignore[import-untyped]

    from pad_fast.data.vision import torchvision_datasets

    reader = torchvision_datasets().SVHN
    images = {split: noise(32, 32, 3, 20, seed=index) for index, split in enumerate(("train", "test"))}
    entries = {}
    for split, array in images.items():
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": array, "y": np.arange(1, 21)[:, None] % 10 + 1})  # digit 0 is stored as 10
        entries[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(reader, "split_list", entries)
    dataset = load_dataset("svhn", data_dir=tmp_path)
    assert dataset.class_names == tuple("0123456789") and dataset.mean == (0.4377, 0.4438, 0.4728)
    assert torch.equal(dataset.train_images, torch.from_numpy(images["train"].transpose(3, 2, 0, 1).copy()) / 255)
    assert dataset.train_labels.tolist() == [(index % 10 + 1) % 10 for index in range(1, 21)]


@pytest.mark.parametrize("name", ["mnist", "fashionmnist", "svhn", "cifar10", "cifar100"])
def test_missing_files_say_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import urllib.request

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used without download=True")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(tmp_path))} \(looked for .*download=True"):
        load_dataset(name, data_dir=tmp_path)
    monkeypatch.setenv("PAD_FAST_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DatasetError, match=r"elsewhere \(looked for"):
        load_dataset(name)


def test_download_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pad_fast.data import named

    asked = []

    class Reader:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            asked.append((root, train, download))
            raise OSError("no route to host")

    monkeypatch.setattr(named, "torchvision_datasets", lambda: type("Module", (), {"CIFAR10": Reader}))
    with pytest.raises(DatasetError, match="no route to host"):
        load_dataset("cifar10", data_dir=tmp_path, download=True)
    assert asked == [(str(tmp_path), True, True)]


def test_import_is_cheap_and_torchvision_loads_after_a_failed_import() -> None:
    """In a fresh interpreter: nothing optional at import, and a failed `import torchvision` does no harm."""
    program = """
import sys
import pad_fast.data
loaded = [name for name in ("torchvision", "sklearn", "PIL", "scipy") if name in sys.modules]
assert not loaded, loaded
try:
    import torchvision
except RuntimeError:
    pass
from pad_fast.data.vision import torchvision_datasets
print(torchvision_datasets().MNIST.__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "MNIST"


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    from pad_fast.runtime.torchvision_import import import_torchvision

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    import_torchvision.cache_clear()
    with pytest.raises(DatasetError, match="pip install torchvision"):
        load_dataset("cifar10")
    import_torchvision.cache_clear()
