"""Exports: what each format keeps, that others open it, and that a folder is there whole or not at all."""

from __future__ import annotations

import csv
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from pad_fast import DistilledDataset, load
from pad_fast.data import MeanStd, Pixels, fit_zca
from pad_fast.data.distilled import EXPORTS
from pad_fast.errors import ConfigError, StoreError
from pad_fast.runtime import files

NAMES = ("cat", "dog/wolf", "ç")


def made(*, soft: bool = True, white: str = "zca", channels: int = 3, **changed) -> DistilledDataset:
    """Images in no order of classes, whose pixels leave 0..1."""
    draws = torch.Generator().manual_seed(1)
    real = torch.rand(60, channels, 4, 5, generator=draws)
    whitening = {
        "zca": fit_zca(real),
        "mean-std": MeanStd(torch.rand(channels, generator=draws), torch.rand(channels, generator=draws) + 0.1),
    }[white]
    values = {
        "images": whitening.apply(3 * real[:6] - 1),
        "label_logits": torch.randn(6, 3, generator=draws) if soft else None,
        "labels": torch.tensor([2, 0, 1, 2, 1, 0]),
        "lr": 0.1 / 3,
        "whitening": whitening,
        "config": {"method": "pad", "ipc": 2},
        "class_names": NAMES,
    }
    return DistilledDataset(**{**values, **changed})


def same(one: DistilledDataset, other: DistilledDataset) -> bool:
    logits = one.label_logits, other.label_logits
    return bool(
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and (logits == (None, None) or torch.equal(*logits))
        and one.lr == other.lr
    )


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("white", ["zca", "mean-std"])
def test_npz_loses_nothing(tmp_path, soft, white):
    written = made(soft=soft, white=white)
    path = written.export(tmp_path / "out", "npz")
    assert path == tmp_path / "out" / "distilled.npz"
    for place in (path, path.parent):
        read = load(place)
        assert same(read, written) and read.class_names == NAMES and read.config == written.config
        assert torch.equal(read.pixels(), written.pixels())
    assert load(path, lr=0.5).lr == 0.5
    named = written.export(tmp_path / "other.npz", "npz")
    assert named == tmp_path / "other.npz" and named.read_bytes() == path.read_bytes()
    with numpy.load(path) as arrays:  # without pad_fast
        assert numpy.array_equal(arrays["images"], written.images.numpy()) and arrays["lr"] == written.lr
        assert numpy.array_equal(arrays["labels"], written.labels.numpy())


@pytest.mark.parametrize("damage", ["short", "format", "part"])
def test_damaged_npz(tmp_path, damage):
    path = made().export(tmp_path, "npz")
    with numpy.load(path) as archive:
        arrays = dict(archive)
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        if damage == "part":
            arrays.pop("images")
        else:
            arrays["pad_fast"] = numpy.array(str(arrays["pad_fast"]).replace("distilled 1", "distilled 9"))
        numpy.savez(path, **arrays)
    said = {"short": "damaged or no distilled set", "format": "distilled 9", "part": "no 'images'"}[damage]
    with pytest.raises(StoreError, match=rf"distilled.npz .*{said}"):
        load(path)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_rounds_and_clamps_pixels_and_keeps_the_labels(tmp_path, soft, channels, caplog):
    from PIL import Image

    written = made(soft=soft, channels=channels)
    with caplog.at_level("INFO", logger="pad_fast"):
        folder = written.export(tmp_path / "png", "png")
    assert "lie outside 0 to 1 and are clamped" in caplog.text
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        *("0_cat/1.png", "0_cat/5.png", "1_dog_wolf/2.png", "1_dog_wolf/4.png", "2_ç/0.png", "2_ç/3.png", "labels.csv")
    ]
    expected = (written.pixels().clamp(0, 1) * 255).round().byte()
    assert not torch.allclose(written.pixels().clamp(0, 1), written.pixels()), "nothing was clamped: no test"
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        picture = torch.from_numpy(numpy.array(Image.open(folder / row["file"]))).reshape(4, 5, channels)
        assert torch.equal(picture.permute(2, 0, 1), expected[index])
        assert row["class_name"] == NAMES[int(row["class"])] and float(row["lr"]) == written.lr
    read = load(folder)
    assert torch.equal(read.images, expected / 255) and read.are_pixels and read.lr == written.lr
    assert torch.equal(read.labels, written.labels) and read.class_names == NAMES
    assert torch.equal(read.targets, written.targets) and (read.label_logits is not None) == soft
    white = written.whitening
    assert torch.equal(load(folder, whitening=white).images, white.apply(expected / 255))


def test_png_of_a_set_with_images_of_some_classes(tmp_path):
    written = made(labels=torch.tensor([0, 0, 1, 1, 1, 0]))
    read = load(written.export(tmp_path / "png", "png"))
    assert torch.equal(read.labels, written.labels) and torch.equal(read.targets, written.targets)
    assert read.classes == 3 and read.class_names == ()
    again = load(read.export(tmp_path / "again", "png"))
    assert torch.equal(again.images, read.images) and torch.equal(again.targets, read.targets)


def test_what_png_cannot_hold(tmp_path):
    with pytest.raises(StoreError, match="these images have 2 channels; use npz"):
        made(channels=2).export(tmp_path / "png", "png")
    with pytest.raises(StoreError, match=r"carries no whitening.*pad-fast export --whitening zca --dataset NAME"):
        made(whitening=None).export(tmp_path / "png", "png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["png", "hf"])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, format, monkeypatch):
    if format == "hf":
        pytest.importorskip("pyarrow")
    real, calls = files.write_bytes, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 2:
            raise StoreError("no space left on device")
        return real(path, data)

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(StoreError, match="no space left"):
        made().export(tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    made().export(tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(StoreError, match="is there already; name another folder, or delete it"):
        made().export(tmp_path / "out", format)


def test_trio_and_ddranking_are_read_again(tmp_path):
    written = made()
    read = load(written.export(tmp_path / "trio", "trio"))
    assert torch.equal(read.images, written.images) and torch.equal(read.targets, written.targets)
    assert read.lr == written.lr and read.whitening is None
    hard = made(soft=False)
    assert same(load(hard.export(tmp_path / "hard trio", "trio")), hard)
    read = load(written.export(tmp_path / "dd", "ddranking"))
    order = written.labels.argsort(stable=True)
    assert torch.equal(read.images, written.images[order]) and torch.equal(read.targets, written.targets[order])
    assert read.lr == written.lr and read.whitening is None
    # Of soft labels the file does not say the classes; images lie class after class.
    assert torch.equal(load(hard.export(tmp_path / "hard", "ddranking")).labels, hard.labels[order])


@pytest.mark.parametrize("format", ["hf", "ddranking", "trio"])
def test_pixels_are_not_written_where_normalised_images_belong(tmp_path, format):
    written = made(white="mean-std")
    pixels = replace(written, images=written.pixels(), whitening=Pixels())
    with pytest.raises(StoreError, match=rf"{format} holds images that networks are trained on.*call normalized\("):
        pixels.export(tmp_path / "no", format)
    assert not (tmp_path / "no").exists()
    pixels.save(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["distilled.safetensors"]
    assert load(tmp_path / "run").are_pixels and load(pixels.export(tmp_path / "a.npz", "npz")).are_pixels
    if format != "hf":
        again = load(pixels.normalized(written.whitening).export(tmp_path / "yes", format), whitening=written.whitening)
        torch.testing.assert_close(again.pixels().sort(0).values, written.pixels().sort(0).values)


def test_formats_are_named(tmp_path):
    with pytest.raises(ConfigError, match="export format 'pgn' is unknown; use one of png, .*Did you mean 'png'"):
        made().export(tmp_path, "pgn")
    assert EXPORTS == ("png", "npz", "hf", "ddranking", "trio")


@pytest.mark.parametrize("package", ["pyarrow", "huggingface_hub", "matplotlib"])
def test_missing_packages_are_named(tmp_path, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    calls = {
        "pyarrow": lambda: made().export(tmp_path / "out", "hf"),
        "huggingface_hub": lambda: load("hf:somebody/something"),
        "matplotlib": lambda: made().plot(),
    }
    with pytest.raises(ConfigError, match=f"needs the package {package}.*pip install {package}"):
        calls[package]()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("soft", [True, False])
def test_datasets_opens_the_folder_offline(tmp_path, soft):
    pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    written = made(soft=soft)
    folder = written.export(tmp_path / "set", "hf")
    assert same(load(folder), written) and torch.equal(load(folder).pixels(), written.pixels())
    # A process of its own: the package reads its offline switch when it is imported.
    script = (
        "import sys, torch, numpy, datasets\n"
        "rows = datasets.load_dataset(sys.argv[1], split='train')\n"
        "images = torch.tensor(rows['normalized'][:])\n"
        "pixels = torch.stack([torch.from_numpy(numpy.array(each)) for each in rows['image']])\n"
        "soft = torch.tensor(rows['soft_label'][:]) if 'soft_label' in rows.features else None\n"
        "torch.save((images, pixels, rows['label'][:], soft, rows.features['label'].names), sys.argv[2])\n"
    )
    cache = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    words = [sys.executable, "-c", script, str(folder), str(tmp_path / "read.pt")]
    subprocess.run(words, check=True, env={**os.environ, **cache})
    images, pixels, labels, probabilities, names = torch.load(tmp_path / "read.pt")
    assert torch.equal(images, written.images) and labels == written.labels.tolist() and tuple(names) == NAMES
    assert torch.equal(pixels, (written.pixels().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1))
    assert (probabilities is not None) == soft
    if soft:
        assert torch.equal(probabilities, written.label_logits.softmax(-1))
    assert "0.03333333333333333" in (folder / "README.md").read_text()


def test_images_without_a_picture_go_into_parquet_as_they_are(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for number, each in enumerate((made(channels=2), made(whitening=None))):
        table = parquet.read_table(next(each.export(tmp_path / str(number), "hf").rglob("*.parquet")))
        assert table.column_names == ["label", "soft_label", "normalized"]


def hub_in(root: Path) -> SimpleNamespace:
    """The functions of huggingface_hub that are called, with a folder for the Hub."""

    def create_repo(repo_id, *, repo_type, private, exist_ok):
        assert repo_type == "dataset" and exist_ok
        (root / repo_id / ("private" if private else "public")).mkdir(parents=True, exist_ok=True)

    def upload_folder(*, repo_id, folder_path, repo_type):
        assert repo_type == "dataset" and (root / repo_id).is_dir()
        for file in Path(folder_path).rglob("*.*"):
            files.write_bytes(root / repo_id / file.relative_to(folder_path), file.read_bytes())

    def snapshot_download(repo_id, *, repo_type, revision):
        assert repo_type == "dataset"
        folder = root / repo_id if revision is None else root / f"{repo_id}@{revision}"
        if not folder.is_dir():
            raise OSError(f"404 Client Error.\n\nRepository {repo_id} not found")
        return str(folder)

    return SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder, snapshot_download=snapshot_download)


def test_sets_come_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub_in(tmp_path))
    written = made()
    written.save(tmp_path / "me" / "set")
    made(lr=0.5).export(tmp_path / "me" / "set@v2", "npz")  # whatever format a repository holds
    assert same(load("hf:me/set"), written) and load("hf:me/set@v2").lr == 0.5
    assert load("hf:me/set", lr=0.25).lr == 0.25
    with pytest.raises(StoreError, match=r"cannot fetch hf:me/none from the Hub: 404 Client Error\.$"):
        load("hf:me/none")


@pytest.mark.parametrize("private", [True, False])
def test_sets_go_to_the_hub_and_come_back(tmp_path, monkeypatch, private):
    pytest.importorskip("pyarrow")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub_in(tmp_path))
    written = made()
    written.save_hf("me/set", private=private)
    there = {path.name for path in (tmp_path / "me" / "set").iterdir()}
    assert there == {"README.md", "data", "distilled.safetensors", "private" if private else "public"}
    assert same(load("hf:me/set"), written)
    assert torch.equal(load("hf:me/set").pixels(), written.pixels())


def test_the_hubs_package_takes_what_it_is_given():
    hub = pytest.importorskip("huggingface_hub")
    inspect.signature(hub.create_repo).bind("me/set", repo_type="dataset", private=False, exist_ok=True)
    inspect.signature(hub.upload_folder).bind(repo_id="me/set", folder_path="here", repo_type="dataset")
    inspect.signature(hub.snapshot_download).bind("me/set", repo_type="dataset", revision=None)
