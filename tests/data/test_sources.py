"""Every kind of source, distilled from, evaluated on and exported, in its own format: the table of docs/data.md."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import pad_fast
from pad_fast.data.distilled import EXPORTS
from pad_fast.data.sources import SOURCES
from pad_fast.data.vision import torchvision_datasets

from ..support.advice.entry import command
from ..support.paths import ROOT
from ..support.settings import SMALL, flags
from ..support.small import MODEL, QUIET, noise

NAMES = ("ant", "bee")
COUNTS = {"train": 16, "test": 8}
TINY = {**SMALL, "model": MODEL, "iterations": 2, "eval_networks": 1, "eval_epochs": 1, "eval_baselines": False}


def images(split: str) -> np.ndarray:
    return noise(COUNTS[split], 8, 8, 3, seed=COUNTS[split])


def ids(split: str) -> np.ndarray:
    return np.arange(COUNTS[split]) % 2


def in_files(tmp: Path) -> Path:
    for split in COUNTS:
        for number, (image, label) in enumerate(zip(images(split), ids(split), strict=True)):
            folder = tmp / "pictures" / split / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    return tmp / "pictures"


def four() -> dict[str, Any]:
    return {
        f"{split}_{kind}": values(split) for split in COUNTS for kind, values in (("images", images), ("labels", ids))
    }


def npz(tmp: Path) -> str:
    np.savez(
        tmp / "pathmnist.npz", **{key: value[:, None] if value.ndim == 1 else value for key, value in four().items()}
    )
    return str(tmp / "pathmnist.npz")


def pictures() -> tuple[Any, ...]:
    """Lists of PIL images, the labels by name."""
    return tuple(
        part
        for split in COUNTS
        for part in ([Image.fromarray(each) for each in images(split)], [NAMES[label] for label in ids(split)])
    )


def tensor_datasets() -> tuple[Dataset[Any], Dataset[Any]]:
    train, test = (
        TensorDataset(torch.from_numpy(images(split)).permute(0, 3, 1, 2) / 255, torch.from_numpy(ids(split)))
        for split in COUNTS
    )
    return train, test


def vision(tmp: Path) -> tuple[Any, Any]:
    reader, root = torchvision_datasets().ImageFolder, in_files(tmp)
    from torchvision import transforms

    train, test = (reader(str(root / split), transform=transforms.ToTensor()) for split in COUNTS)
    return train, test


def medmnist(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    torchvision_datasets()
    package = pytest.importorskip("medmnist", reason="medmnist is not installed")
    monkeypatch.setitem(package.INFO["pathmnist"], "n_samples", COUNTS)
    monkeypatch.setitem(package.INFO["pathmnist"], "label", dict(zip("01", NAMES, strict=True)))
    npz(tmp)
    train, test = (package.PathMNIST(split=split, root=str(tmp)) for split in COUNTS)
    return train, test


def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": [Image.fromarray(each) for each in images(split)], "label": ids(split).tolist()},
                features=features,
            )
            for split in COUNTS
        }
    )


def saved(tmp: Path) -> str:
    hugging_face().save_to_disk(tmp / "saved")
    return f"hf:{tmp / 'saved'}"


def parquet(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    parts = hugging_face()
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp / "cache")
    for split, part in parts.items():
        part.to_parquet(tmp / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    return f"hf:{tmp / 'hub'}"


# As in the first column of docs/data.md. Each holds the same images, in an order of its own.
GIVEN: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    "name": lambda tmp, patch: "digits",
    "imagefolder:PATH": lambda tmp, patch: f"imagefolder:{in_files(tmp)}",
    "path": lambda tmp, patch: in_files(tmp),
    "FILE.npz": lambda tmp, patch: npz(tmp),
    "hf:PATH, saved": lambda tmp, patch: saved(tmp),
    "hf:PATH, parquet": parquet,
    "DatasetDict": lambda tmp, patch: hugging_face(),
    "MedMNIST": medmnist,
    "torchvision": lambda tmp, patch: vision(tmp),
    "torch": lambda tmp, patch: tensor_datasets(),
    "dict": lambda tmp, patch: four(),
    "tuple": lambda tmp, patch: tuple(four().values()),
    "tuple of PIL": lambda tmp, patch: pictures(),
}


@pytest.fixture(params=GIVEN)
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return GIVEN[request.param](tmp_path, monkeypatch)


@pytest.fixture
def somebody_s() -> pad_fast.DistilledDataset:
    """A set that came from elsewhere, for the two classes of 8x8 colour images."""
    draws = torch.Generator().manual_seed(0)
    normalization = pad_fast.data.MeanStd(torch.full((3,), 0.5), torch.full((3,), 0.25))
    return pad_fast.DistilledDataset(
        images=torch.randn(2, 3, 8, 8, generator=draws), label_logits=None, labels=torch.arange(2), lr=0.01,
        whitening=normalization, config={"model": MODEL}, history=[], class_names=NAMES,
    )  # fmt: skip


def test_the_same_images(source: Any, request: pytest.FixtureRequest) -> None:
    spelling = str(source) if isinstance(source, Path) else source
    assert next(each.kind for each in SOURCES if each.takes(spelling)) in request.node.callspec.params["source"]
    data = pad_fast.load_dataset(source)
    if source == "digits":
        return
    for split in COUNTS:
        ours = {image.numpy().tobytes(): int(label) for image, label in zip(
            getattr(data, f"{split}_images"), getattr(data, f"{split}_labels"), strict=True)}  # fmt: skip
        wanted = torch.from_numpy(images(split)).permute(0, 3, 1, 2).contiguous() / 255
        assert ours == {image.numpy().tobytes(): int(label) for image, label in zip(wanted, ids(split), strict=True)}
    assert data.class_names in (NAMES, ("0", "1"))


def test_distil(source: Any, tmp_path: Path) -> None:
    result = pad_fast.distill(source, out=tmp_path / "run", progress=QUIET, **TINY)
    data = pad_fast.load_dataset(source)
    assert result.images.shape[1:] == data.train_images.shape[1:] and result.class_names == data.class_names
    assert len(result.history) == 2 and len(result.evaluation) == 1
    again = pad_fast.distill(source, out=tmp_path / "run", progress=QUIET, **TINY)  # every stage is found again
    assert torch.equal(again.images, result.images)


def test_evaluate(source: Any, somebody_s: pad_fast.DistilledDataset) -> None:
    given = somebody_s
    if source == "digits":
        given = pad_fast.DistilledDataset(
            images=torch.randn(10, 1, 8, 8), label_logits=None, labels=torch.arange(10), lr=0.01,
            whitening=pad_fast.data.MeanStd(torch.tensor([0.3]), torch.tensor([0.3])), config={}, history=[],
            class_names=tuple("0123456789"),
        )  # fmt: skip
    report = pad_fast.evaluate(
        given, source, models=(MODEL,), repeats=1, epochs=1, full_epochs=1, baselines=("random", "full"), progress=QUIET
    )
    assert [row.name for row in report.rows] == ["random real", "DISTILLED", "full data"]


def test_export(source: Any, tmp_path: Path) -> None:
    """What a run leaves in its folder, and every format that it is exported to, is read back."""
    result = pad_fast.distill(source, out=tmp_path / "run", progress=QUIET, **{**TINY, "iterations": 1})
    read = pad_fast.load(tmp_path / "run")
    assert torch.equal(read.images, result.images) and read.class_names == result.class_names
    assert (tmp_path / "run" / "images.png").stat().st_size > 0
    for format in EXPORTS:
        if format == "hf" and importlib.util.find_spec("pyarrow") is None:
            continue
        read = pad_fast.load(result.export(tmp_path / format, format))
        assert torch.equal(read.targets, result.targets) and read.images.shape == result.images.shape, format
        if format != "png":
            assert torch.equal(read.images, result.images), format


@pytest.mark.parametrize("kind", ["imagefolder:PATH", "path", "FILE.npz", "hf:PATH, saved", "hf:PATH, parquet"])
def test_on_the_command_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = str(GIVEN[kind](tmp_path, monkeypatch)), tmp_path / "run"
    words = [word for name, value in TINY.items() if name != "eval_baselines" for word in flags({name: value})]
    command("distill", "--dataset", source, "--out", out, "--no-eval-baselines", "--quiet", *words)
    command("evaluate", out, "--eval-networks", 1, "--eval-epochs", 1, "--no-eval-baselines", "--quiet")
    assert pad_fast.load(out).config["dataset"] == (f"imagefolder:{source}" if kind == "path" else source)


def test_a_path_object_is_recorded_in_words(tmp_path: Path) -> None:
    root = in_files(tmp_path)
    result = pad_fast.distill(root, out=tmp_path / "run", progress=QUIET, **{**TINY, "iterations": 1})
    assert result.config["dataset"] == f"imagefolder:{root}"
    command("evaluate", tmp_path / "run", "--eval-networks", 1, "--eval-epochs", 1, "--no-eval-baselines", "--quiet")


def test_evaluated_at_the_size_that_was_distilled(tmp_path: Path) -> None:
    root = in_files(tmp_path)
    Image.fromarray(noise(10, 12, 3, seed=5)).save(root / "train" / "ant" / "other.png")
    result = pad_fast.distill(root, out=tmp_path / "run", resolution=8, progress=QUIET, **{**TINY, "iterations": 1})
    options: dict[str, Any] = {"models": (MODEL,), "repeats": 1, "epochs": 1, "baselines": False, "progress": QUIET}
    report = pad_fast.evaluate(result, root, **options)
    loaded = pad_fast.load_dataset(root, resolution=8)
    assert report.rows[0].mean == pad_fast.evaluate(result, loaded, **options).rows[0].mean


def test_a_saved_folder_is_found_by_its_path(tmp_path: Path) -> None:
    name = saved(tmp_path)
    for path in (Path(name.removeprefix("hf:")), name.removeprefix("hf:")):
        assert pad_fast.load_dataset(path).name == name


def test_the_table_of_the_document_is_this_one() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    cells = r" \| `test_distil` \| `test_evaluate` \| `test_export` \|$"
    assert re.findall(rf"^\| `([^`]+)` \| .*{cells}", text, re.MULTILINE) == list(GIVEN)
    assert all(any(each.kind in row for row in GIVEN) for each in SOURCES)
