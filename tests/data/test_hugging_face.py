"""Hugging Face data sets: objects, folders of `save_to_disk`, parquet files, names; columns by their features."""

from __future__ import annotations

import importlib
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pad_fast import Progress, load_dataset
from pad_fast.errors import DatasetError

from ..support.small import noise

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

COUNTS = {"train": 12, "test": 6, "validation": 9}
CLASSES = ["cat", "dog", "emu"]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def pixels(split: str) -> np.ndarray:
    return noise(COUNTS[split], 8, 8, 3, seed=COUNTS[split])


def expected(split: str) -> torch.Tensor:
    return torch.from_numpy(pixels(split)).permute(0, 3, 1, 2) / 255


def dataset(
    split: str = "train",
    *,
    image: Any = None,
    label: Any = None,
    columns: tuple[str, str] = ("image", "label"),
    **more: Any,
) -> Any:
    """Pictures and ClassLabels, as the hub's sets have them; `more` are further columns, as (feature, values)."""
    count = COUNTS[split]
    features = {
        columns[0]: image[0] if image else datasets.Image(),
        columns[1]: label[0] if label else datasets.ClassLabel(names=CLASSES),
        **{name: feature for name, (feature, _) in more.items()},
    }
    content = {
        columns[0]: image[1](pixels(split)) if image else [Image.fromarray(array) for array in pixels(split)],
        columns[1]: label[1](np.arange(count) % 3) if label else (np.arange(count) % 3).tolist(),
        **{name: values for name, (_, values) in more.items()},
    }
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def both(**options: Any) -> Any:
    return datasets.DatasetDict({split: dataset(split, **options) for split in ("train", "test")})


def checked(data: Any, *, names: tuple[str, ...] = ("cat", "dog", "emu")) -> None:
    assert torch.equal(data.train_images, expected("train")) and torch.equal(data.test_images, expected("test"))
    assert data.train_labels.tolist() == [0, 1, 2] * 4 and data.test_labels.tolist() == [0, 1, 2] * 2
    assert data.class_names == names


# ---------------------------------------------------------------- objects


def test_dataset_dict_and_pair(caplog: pytest.LogCaptureFixture) -> None:
    checked(load_dataset(both()))
    assert [record.message for record in caplog.records] == [
        "huggingface: images from 'image', labels from 'label'; trains on 12 images, tests on 6 (test)"
    ]
    checked(load_dataset((dataset("train"), dataset("test"))))


def test_columns_are_sequences() -> None:
    parts = both()
    columns = [parts[split][name] for split in ("train", "test") for name in ("image", "label")]
    checked(load_dataset(tuple(columns)), names=("0", "1", "2"))


def test_a_single_dataset_is_divided(caplog: pytest.LogCaptureFixture) -> None:
    data = load_dataset(dataset())
    assert (len(data.train_images), len(data.test_images)) == (9, 3)
    assert "trains on 12 images, sets a fixed fifth of every class aside" in caplog.text
    assert load_dataset(datasets.DatasetDict({"all": dataset()})).fingerprint == data.fingerprint


@pytest.mark.parametrize("split", ["validation", "valid", "val", "dev"])
def test_validation_where_there_is_no_test(split: str, caplog: pytest.LogCaptureFixture) -> None:
    data = load_dataset(datasets.DatasetDict({"train": dataset(), split: dataset("validation")}))
    assert torch.equal(data.test_images, expected("validation")) and f"tests on 9 ({split})" in caplog.text


def test_validation_beside_test_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    checked(load_dataset(datasets.DatasetDict({**both(), "validation": dataset("validation")})))
    assert "the 9 images of 'validation' of huggingface are not used" in caplog.text


@pytest.mark.parametrize("how", ["-1", "no column"])
def test_test_labels_that_are_held_back(how: str, caplog: pytest.LogCaptureFixture) -> None:
    hidden = dataset("test", label=(datasets.ClassLabel(names=CLASSES), lambda labels: [-1] * len(labels)))
    if how == "no column":
        hidden = hidden.remove_columns("label")
    parts = datasets.DatasetDict({"train": dataset(), "validation": dataset("validation"), "test": hidden})
    assert torch.equal(load_dataset(parts).test_images, expected("validation"))
    assert caplog.text.count("the 6 images of 'test' of huggingface are not used because they have no labels") == 1
    del parts["validation"]
    assert load_dataset(parts).fingerprint == load_dataset(dataset()).fingerprint  # a fifth is set aside


LABELS = {
    "ints": (lambda: datasets.Value("int64"), lambda ids: [int(3 * label) for label in ids], ("0", "3", "6")),
    "strings": (lambda: datasets.Value("string"), lambda ids: [CLASSES[label] for label in ids], ("cat", "dog", "emu")),
    "one-hot": (
        lambda: datasets.Sequence(datasets.Value("float32")),
        lambda ids: np.eye(3, dtype=np.float32)[ids].tolist(),
        ("0", "1", "2"),
    ),
    "one in a list": (
        lambda: datasets.Sequence(datasets.ClassLabel(names=CLASSES)),
        lambda ids: [[int(label)] for label in ids],
        ("cat", "dog", "emu"),
    ),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("name", ["label", "kind"])
def test_labels_by_feature(kind: str, name: str) -> None:
    feature, values, names = LABELS[kind]
    checked(load_dataset(both(label=(feature(), values), columns=("pic", name))), names=names)


IMAGES = {
    "PNG bytes": (lambda: datasets.Image(), lambda arrays: [{"bytes": png(array), "path": None} for array in arrays]),
    "Array3D": (lambda: datasets.Array3D((8, 8, 3), "uint8"), list),
    "float Array3D": (lambda: datasets.Array3D((8, 8, 3), "float32"), lambda arrays: list(np.float32(arrays) / 255)),
    "floats to 255": (lambda: datasets.Array3D((8, 8, 3), "float32"), lambda arrays: list(np.float32(arrays))),
    "channels first": (lambda: datasets.Array3D((3, 8, 8), "uint8"), lambda arrays: list(arrays.transpose(0, 3, 1, 2))),
    "lists": (
        lambda: datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))),
        lambda arrays: arrays.tolist(),
    ),
}


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", IMAGES)
def test_images_by_feature(kind: str) -> None:
    feature, values = IMAGES[kind]
    checked(load_dataset(both(image=(feature(), values), columns=("picture", "class"))))


def test_gray_arrays_without_a_channel_axis() -> None:
    feature = datasets.Array2D((8, 8), "uint8"), lambda arrays: list(arrays[..., 0])
    data = load_dataset(both(image=feature))
    assert torch.equal(data.train_images, expected("train")[:, :1])


def test_pictures_are_what_a_viewer_shows(caplog: pytest.LogCaptureFixture) -> None:
    """EXIF, transparency and 16 bits go through the one function of all sources."""
    array = pixels("train")[0]
    tag = Image.Exif()
    tag[0x0112] = 3
    turned = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array[::-1, ::-1])).save(turned, format="PNG", exif=tag)
    clear = Image.fromarray(np.dstack([array, np.zeros((8, 8), np.uint8)]))

    def stored(arrays: np.ndarray) -> list[Any]:
        pictures: list[Any] = [Image.fromarray(each) for each in arrays]
        pictures[1], pictures[2] = {"bytes": turned.getvalue(), "path": None}, clear
        return pictures

    images = load_dataset((dataset(image=(datasets.Image(), stored)), dataset("test"))).train_images
    assert torch.equal(images[1], images[0]) and bool((images[2] == 1).all())
    assert "1 of the 12 images of huggingface (train) are turned upright" in caplog.text
    assert "1 of the 12 images of huggingface (train) are transparent" in caplog.text


@pytest.mark.parametrize("format", ["torch", "numpy", "arrow", "transform"])
def test_formats_of_the_object_do_not_matter(format: str, caplog: pytest.LogCaptureFixture) -> None:
    def changed(part: Any) -> Any:
        return (
            part.with_transform(lambda rows: {"nothing": rows["label"]})
            if format == "transform"
            else part.with_format(format)
        )

    checked(load_dataset((changed(dataset("train")), changed(dataset("test")))))
    said = "the transform of huggingface (train) is left out: images are read as they are stored"
    assert caplog.text.count(said) == (format == "transform")


def test_the_mode_of_the_feature() -> None:
    gray = lambda arrays: [Image.fromarray(array[..., 0]) for array in arrays]  # noqa: E731
    assert load_dataset(both(image=(datasets.Image(), gray))).channels == 1
    assert load_dataset(both(image=(datasets.Image(mode="RGB"), gray))).channels == 3
    with pytest.raises(DatasetError, match="converted to mode L by their feature.*cast_column"):
        load_dataset(both(image=(datasets.Image(mode="L"), lambda arrays: [Image.fromarray(each) for each in arrays])))
    checked(load_dataset(both().cast_column("image", datasets.Image())))


def test_several_columns(caplog: pytest.LogCaptureFixture) -> None:
    coarse = datasets.ClassLabel(names=["pet", "bird"])
    checked(load_dataset((dataset("train", coarse=(coarse, [0] * 12)), dataset("test", coarse=(coarse, [0] * 6)))))
    assert "huggingface has several columns of labels: 'label' is used, 'coarse' not" in caplog.text
    unclear = dataset(columns=("image", "fine"), coarse=(coarse, [0, 1] * 6))
    with pytest.raises(DatasetError, match=r"several columns of labels among .*fine \(ClassLabel\).*rename_column"):
        load_dataset(unclear)
    assert load_dataset(unclear.rename_column("coarse", "label")).class_names == ("pet", "bird")


def test_refusals() -> None:
    with pytest.raises(DatasetError, match="is a stream"):
        load_dataset(dataset().to_iterable_dataset())
    load_dataset(dataset())
    with pytest.raises(
        DatasetError,
        match=r"no column of images among label \(ClassLabel\); it needs pictures or arrays; .*cast_column",
    ):
        load_dataset(dataset().remove_columns("image"))
    with pytest.raises(
        DatasetError,
        match=r"no column of labels among image \(Image\); it needs a ClassLabel, whole numbers or strings",
    ):
        load_dataset(dataset().remove_columns("label"))
    with pytest.raises(DatasetError, match="no split 'train', but a, b; give the two to use as a pair"):
        load_dataset(datasets.DatasetDict({"a": dataset(), "b": dataset("test")}))
    checked(load_dataset((dataset(), dataset("test"))))
    other = dataset("test", label=(datasets.ClassLabel(names=["dog", "cat", "emu"]), list))
    with pytest.raises(DatasetError, match="different classes in 'label': one label would mean two"):
        load_dataset((dataset(), other))
    with pytest.raises(DatasetError, match="huggingface has no column 'label'; it has image, kind"):
        load_dataset((dataset(), dataset("test", columns=("image", "kind"))))
    checked(load_dataset((dataset(), dataset("test", columns=("image", "kind")).rename_column("kind", "label"))))
    multi = datasets.Sequence(datasets.ClassLabel(names=CLASSES)), lambda ids: [[0, int(i)][: 1 + i % 2] for i in ids]
    with pytest.raises(DatasetError, match="has 2 numbers, others 1: several classes for one image"):
        load_dataset(dataset(label=multi))
    empty = dataset(image=(datasets.Image(), lambda arrays: [None, *(Image.fromarray(each) for each in arrays[1:])]))
    with pytest.raises(DatasetError, match=r"row 0 of huggingface \(train\) is missing; leave such rows out"):
        load_dataset(empty)
    load_dataset((empty.filter(lambda row: row["image"] is not None), dataset("test")))
    broken = dataset(image=(datasets.Image(), lambda arrays: [{"bytes": b"no", "path": None}] * len(arrays)))
    with pytest.raises(DatasetError, match=r"cannot decode image row 0 of huggingface \(train\)"):
        load_dataset(broken)


def raw(image: torch.Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


def test_parquet_that_something_else_wrote(tmp_path: Path) -> None:
    """Bytes, or bytes and path, are pictures although no feature says so; names of files are once they are cast."""
    import pyarrow
    from pyarrow import parquet

    data = [png(array) for array in pixels("train")]
    labels = np.arange(12) % 3
    for name, column in (("bytes", data), ("both", [{"bytes": each, "path": None} for each in data])):
        types = (
            pyarrow.binary()
            if name == "bytes"
            else pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        )
        table = pyarrow.table({"img": pyarrow.array(column, types), "target": labels})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        for source in (f"hf:{tmp_path / name}.parquet", tmp_path / f"{name}.parquet", f"{tmp_path / name}.parquet"):
            loaded = load_dataset(source)
            both = torch.cat([loaded.train_images, loaded.test_images])
            assert sorted(map(raw, both)) == sorted(map(raw, expected("train")))
    named = dataset(image=(datasets.Value("string"), lambda arrays: [str(tmp_path / f"{i}.png") for i in range(12)]))
    with pytest.raises(DatasetError, match=r"no column of images .*cast_column"):
        load_dataset(named)
    for number, each in enumerate(data):
        (tmp_path / f"{number}.png").write_bytes(each)
    checked(load_dataset((named.cast_column("image", datasets.Image()), dataset("test"))))


def test_pictures_that_stay_in_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(12)]
    for path, array in zip(paths, pixels("train"), strict=True):
        Image.fromarray(array).save(path)
    stored = dataset(image=(datasets.Image(), lambda _: [str(path) for path in paths]))
    checked(load_dataset((stored, dataset("test"))))
    stored.save_to_disk(tmp_path / "saved")
    paths[3].unlink()
    assert len(load_dataset(f"hf:{tmp_path / 'saved'}").train_images) == 9  # what the message below advises
    with pytest.raises(DatasetError, match=r"row 3 of huggingface \(train\), which is kept in .*3.png: No such file"):
        load_dataset((stored, dataset("test")))


def test_mixed_sizes_need_a_resolution() -> None:
    def sizes(arrays: np.ndarray) -> list[Any]:
        return [Image.fromarray(array[: 8 - index % 2]) for index, array in enumerate(arrays)]

    with pytest.raises(DatasetError, match=r"row 0 of huggingface \(train\) is 8x8, row 1 .* is 7x8.*resolution="):
        load_dataset(both(image=(datasets.Image(), sizes)))
    assert load_dataset(both(image=(datasets.Image(), sizes)), resolution=4).resolution == 4


# ---------------------------------------------------------------- names and files


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    both().save_to_disk(tmp_path / "two")
    data = load_dataset(f"hf:{tmp_path / 'two'}")
    checked(data)
    assert data.name == f"hf:{tmp_path / 'two'}"
    dataset().save_to_disk(tmp_path / "one")
    assert len(load_dataset(f"hf:{tmp_path / 'one'}").train_images) == 9


def test_parquet(tmp_path: Path) -> None:
    for split, part in both().items():
        part.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    checked(load_dataset(f"hf:{tmp_path}"))  # as the hub keeps it
    alone = load_dataset(f"hf:{tmp_path / 'data' / 'train-00000-of-00001.parquet'}")
    assert len(alone.train_images) == 9


def test_columns_by_name(tmp_path: Path) -> None:
    coarse = datasets.ClassLabel(names=["pet", "bird"])
    saved = dataset(columns=("one", "fine"), coarse=(coarse, [0, 1] * 6), two=(datasets.Image(), [None] * 12))
    saved.save_to_disk(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"several columns of images .*hf:NAME,image=COLUMN"):
        load_dataset(f"hf:{tmp_path / 'set'},label=fine")
    data = load_dataset(f"hf:{tmp_path / 'set'},image=one,label=coarse")
    assert data.class_names == ("pet", "bird")
    with pytest.raises(DatasetError, match="has no column 'colour'; it has one, fine, coarse, two"):
        load_dataset(f"hf:{tmp_path / 'set'},image=one,label=colour")
    with pytest.raises(DatasetError, match="is not understood; write hf:NAME or hf:PATH, and behind it"):
        load_dataset(f"hf:{tmp_path / 'set'},lable=coarse")
    load_dataset(f"hf:{tmp_path / 'set'},label=coarse,image=one")


def test_folders_of_something_else(tmp_path: Path) -> None:
    for index, array in enumerate(pixels("train")):
        folder = tmp_path / CLASSES[index % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / f"{index}.png")
    with pytest.raises(DatasetError, match="neither what save_to_disk writes nor parquet files; .* imagefolder:"):
        load_dataset(f"hf:{tmp_path}")
    load_dataset(f"imagefolder:{tmp_path}")


def test_names_of_the_hub_use_the_network_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = importlib.import_module("huggingface_hub.constants")
    asked = []

    def load(name: str, config: str | None) -> Any:
        asked.append((name, config, datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE))
        return both()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    checked(load_dataset("hf:someone/animals"))
    checked(load_dataset("hf:animals,config=small", download=True))
    assert asked == [("someone/animals", None, True, True), ("animals", "small", False, False)]
    assert datasets.config.HF_HUB_OFFLINE is False and hub.HF_HUB_OFFLINE is False


def test_a_name_that_was_downloaded_before(tmp_path: Path) -> None:
    """As `datasets` keeps it: the Arrow files that it made of a local copy, under the name that the hub has for it."""
    for split, part in both().items():
        part.to_parquet(tmp_path / "animals" / "data" / f"{split}-00000-of-00001.parquet")
    datasets.load_dataset(str(tmp_path / "animals"))
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    (made,) = {path.parent for path in cache.rglob("*-train.arrow")}
    shutil.copytree(made, cache / "someone___animals" / "default" / "0.0.0" / ("a" * 40))
    for path in (cache / "someone___animals").rglob("*.arrow"):
        path.rename(path.with_name(f"animals-{path.stem.rpartition('-')[2]}.arrow"))
    checked(load_dataset("hf:someone/animals"))


def test_a_name_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"hf:someone/nothing cannot be read: .*download=True \(--download\)"):
        load_dataset("hf:someone/nothing")


def test_its_bars_are_shown_with_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset().to_parquet(tmp_path / "a.parquet")
    capfd.readouterr()
    load_dataset(f"hf:{tmp_path / 'a.parquet'}")
    assert capfd.readouterr().err == ""
    load_dataset(f"hf:{tmp_path / 'a.parquet'}", progress=Progress())
    assert "data: hf:" in capfd.readouterr().err


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"cannot be imported .*pip install datasets, or give the images as"):
        load_dataset("hf:mnist")
