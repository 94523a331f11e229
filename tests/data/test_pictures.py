"""Pictures and class folders as a viewer shows them: depths, EXIF, transparency, links, layouts; said once."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pad_fast
from pad_fast.data.pictures import DEEP, picture_to_tensor
from pad_fast.errors import DatasetError

from ..support.items import Items
from ..support.small import noise

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def folder(root: Path, picture: object = None, splits: tuple[str, ...] = ("train", "test"), ext: str = "png") -> Path:
    """Two classes of three images each; all the same one, if one is given."""
    for split in splits:
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for number in range(3):
                image = Image.fromarray(noise(8, 8, 3, seed=number)) if picture is None else picture
                image.save(root / split / label / f"{number}.{ext}")
    return root


def load(root: Path, **options: object) -> pad_fast.ImageDataset:
    return pad_fast.load_dataset(f"imagefolder:{root}", **options)


@pytest.mark.parametrize("bits", [8, 10, 12, 16, 20, 31])
@pytest.mark.parametrize("resolution", [None, 4])
def test_deep_gray_keeps_its_grays(tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int, resolution: int | None):
    top = 2**bits - 1
    kind, ext = (np.uint16, "png") if bits <= 16 else (np.int32, "tiff")
    data = load(folder(tmp_path, Image.fromarray((RAMP * top).round().astype(kind)), ext=ext), resolution=resolution)
    said = [record.message for record in caplog.records if "-bit" in record.message]
    if resolution is None:
        assert len(said) == 1 and f"values up to {top} and are read as {bits}-bit" in said[0]
        torch.testing.assert_close(data.train_images[0, 0].numpy(), RAMP.astype(np.float32), rtol=0, atol=1e-2)
        assert len(data.train_images[0].unique()) == 64
    else:
        assert len(said) == 1 and data.train_images.shape[-1] == 4 and len(data.train_images[0].unique()) == 16
    assert (
        data.channels == 1
        and float(data.train_images.max()) <= 1
        and torch.equal(data.train_images[0], data.test_images[0])
    )


def test_the_depth_is_that_of_both_splits_together(tmp_path: Path) -> None:
    folder(tmp_path, Image.fromarray((RAMP * 200).astype(np.uint16)), splits=("train",))
    folder(tmp_path, Image.fromarray((RAMP * 4000).astype(np.uint16)), splits=("test",))
    data = load(tmp_path)
    assert float(data.train_images.max()) == pytest.approx(200 / 4095) and float(
        data.test_images.max()
    ) == pytest.approx(4000 / 4095)
    lists = [[Image.open(path) for path in sorted((tmp_path / split).rglob("*.png"))] for split in ("train", "test")]
    labels = [0, 0, 0, 1, 1, 1]
    same = pad_fast.load_dataset((lists[0], labels, lists[1], labels))
    assert torch.equal(same.train_images, data.train_images) and torch.equal(same.test_images, data.test_images)


def test_deep_and_ordinary_files_in_one_set_are_on_one_scale(tmp_path: Path) -> None:
    folder(tmp_path, Image.fromarray((RAMP * 65535).round().astype(np.uint16)))
    Image.fromarray((RAMP * 255).round().astype(np.uint8)).save(tmp_path / "train" / "a" / "0.png")
    images = load(tmp_path).train_images
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1 / 255)


def test_gray_values_without_a_range_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, Image.fromarray((RAMP * 100).astype(np.int32) - 50), ext="tiff")
    with pytest.raises(DatasetError, match=r"cannot decode image .*negative gray values \(down to -50\)"):
        load(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_what_a_viewer_shows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, orientation: int
):
    pixels = noise(8, 8, 3, seed=3)
    upright = Image.fromarray(pixels)
    # How a camera stores the picture for each tag: the inverse of what a viewer does.
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: x.transpose(1, 0, 2)[::-1],
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    }[orientation](pixels)
    folder(tmp_path, upright)
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "train" / "a" / "0.png", exif=tag)
    images = load(tmp_path).train_images
    assert torch.equal(images[0], images[1])
    assert [record.message for record in caplog.records if "EXIF" in record.message] == (
        [] if orientation == 1 else [f"1 of the 12 images of {tmp_path} are turned upright as their EXIF tag says"]
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparent_pixels_hide_their_colours(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., :3] = 77  # hidden in the left half
    pixels[:, 4:, 3] = 255
    image = Image.fromarray(pixels)
    options = {}
    if mode == "LA":
        image = image.convert("LA")
    elif mode in "PL":
        indices = Image.fromarray(np.repeat(np.uint8([0, 1]), 4)[None].repeat(8, 0))
        image = indices if mode == "L" else indices.convert("P")
        if mode == "P":
            image.putpalette([9, 9, 9, 77, 77, 77])
        options["transparency"] = 0
    folder(tmp_path, Image.fromarray(noise(8, 8, 3, seed=1)))
    image.save(tmp_path / "train" / "a" / "0.png", **options)
    seen = load(tmp_path).train_images[0]
    assert bool((seen[..., :4] == 1).all()) and float(seen[..., 4:].max()) == pytest.approx(
        (1 if mode == "L" else 77) / 255
    )
    assert (
        sum("1 of the 12 images" in record.message and "transparent" in record.message for record in caplog.records)
        == 1
    )


def test_opaque_alpha_changes_nothing_and_is_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = noise(8, 8, 4, seed=0)
    pixels[..., 3] = 255
    data = load(folder(tmp_path, Image.fromarray(pixels)))
    assert torch.equal((data.train_images[0] * 255).round().byte(), torch.from_numpy(pixels[..., :3]).permute(2, 0, 1))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_pictures_of_any_mode_have_one_or_three_channels() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "PA"):
        channels = 1 if mode in ("1", "L", "LA") else 3
        assert picture_to_tensor(Image.new(mode, (5, 5))).shape == (channels, 5, 5), mode
    assert picture_to_tensor(Image.new("I;16", (5, 5))).dtype == DEEP


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "I")


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_the_same_picture_in_files_lists_and_data_sets(tmp_path: Path, mode: str) -> None:
    """As the viewer's own conversion shows it; in whatever the pictures come."""
    colours = Image.fromarray(noise(8, 8, 3, seed=3) // 2)
    if mode in ("P", "PA"):
        colours = colours.quantize(64)
    if mode.startswith("I"):
        picture = Image.fromarray((RAMP * 65535).astype(np.uint16 if "16" in mode else np.int32))
        if mode == "I;16B":
            picture = Image.frombytes("I;16B", (8, 8), (RAMP * 65535).astype(">u2").tobytes())
        shown = torch.from_numpy((RAMP * 65535).astype(np.int64) / 65535).float()[None]
    else:
        picture = colours.convert("RGBA").convert(mode) if mode == "RGBa" else colours.convert(mode)
        wanted = np.array(picture.convert("L" if mode in ("1", "L", "LA") else "RGBA").convert(
            "L" if mode in ("1", "L", "LA") else "RGB"))  # fmt: skip
        shown = (
            torch.from_numpy(wanted)[None] if wanted.ndim == 2 else torch.from_numpy(wanted).permute(2, 0, 1)
        ) / 255
    labels = [0, 1] * 6
    listed = pad_fast.load_dataset(([picture] * 12, labels))
    items = pad_fast.load_dataset(Items([(picture, label) for label in labels]))
    for data in (listed, items):
        torch.testing.assert_close(data.train_images[0], shown, rtol=0, atol=1e-6)
        assert len(data.train_images[0].unique()) > (1 if mode == "1" else 20)
    if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"):
        ext = "tif" if mode in ("CMYK", "I") else "png"
        assert torch.equal(load(folder(tmp_path, picture, ext=ext)).train_images[0], listed.train_images[0])


def test_inks_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inks = Image.fromarray(noise(8, 8, 3, seed=3)).convert("CMYK")
    folder(tmp_path, Image.fromarray(noise(8, 8, 3, seed=1)))
    inks.save(tmp_path / "train" / "a" / "0.png", format="JPEG", quality=100)
    seen = load(tmp_path).train_images[0]
    reopened = np.asarray(Image.open(tmp_path / "train" / "a" / "0.png").convert("RGB"))
    assert torch.equal((seen * 255).round().byte(), torch.from_numpy(reopened.copy()).permute(2, 0, 1))
    assert caplog.text.count(f"1 of the 12 images of {tmp_path} are in inks (CMYK)") == 1


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".thumbnails", ".git/objects"])
def test_hidden_folders_hold_no_images(tmp_path: Path, hidden: str) -> None:
    root = folder(tmp_path)
    (root / "train" / "a" / hidden).mkdir(parents=True)
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "a" / hidden / "copy.png")
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "a" / "._0.png")
    assert len(load(root).train_images) == 6


@pytest.mark.parametrize("target", ["..", "../..", ".", "sub", "../../../outside"])
def test_images_behind_links_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str) -> None:
    """Whether they lead up, where they would lead round and round, to the same class, or twice to the same place."""
    root = folder(tmp_path / "set")
    (root / "train" / "a" / "sub").mkdir()
    shutil.move(root / "train" / "a" / "0.png", root / "train" / "a" / "sub" / "0.png")
    shutil.copytree(root / "train" / "a" / "sub", tmp_path / "outside")
    (tmp_path / "outside" / "round").symlink_to(".")
    expected = load(root)
    for name in ("again", "and again"):
        (root / "train" / "a" / name).symlink_to(target, target_is_directory=True)
    data = load(root)
    more = target.endswith("outside")  # whose image is a copy, and counts
    assert len(data.train_images) == len(expected.train_images) + more == 6 + more
    assert data.train_labels.bincount().tolist() == [3 + more, 3]
    left_out = [name for name in ("again", "and again") if f"a/{name} is a link" in caplog.text]
    assert len(left_out) == 2 - more


def test_a_folder_of_classes_with_a_link_to_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "set", splits=(".",))
    expected = load(root)
    (root / "all").symlink_to(".")
    data = load(root)
    assert data.class_names == ("a", "b") and torch.equal(data.train_images, expected.train_images)
    assert "all is a link" in caplog.text
    (root / "c").symlink_to("a")
    with pytest.raises(DatasetError, match="set/c is a link back into the data set"):
        load(root)


@pytest.mark.parametrize("target", ["../b", "../../test/a"])
def test_links_back_into_the_tree_are_refused(tmp_path: Path, target: str) -> None:
    root = folder(tmp_path)
    (root / "train" / "a" / "again").symlink_to(target, target_is_directory=True)
    with pytest.raises(DatasetError, match=r"train/a/again is a link back into the data set.*Remove the link"):
        load(root)
    (root / "train" / "a" / "again").unlink()  # the advice
    assert len(load(root).train_images) == 6


def test_a_class_that_is_a_link_to_another_is_refused_and_links_to_elsewhere_are_followed(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    shutil.move(root / "train" / "b", tmp_path / "elsewhere")
    (root / "train" / "b").symlink_to(tmp_path / "elsewhere")
    assert len(load(root).train_images) == 6
    (root / "train" / "b").unlink()
    (root / "train" / "b").symlink_to("a")
    with pytest.raises(DatasetError, match="link back into the data set"):
        load(root)


@pytest.mark.parametrize(
    "splits", [("train", "valid"), ("train", "validation"), ("train", "val"), ("train", "test", "val")]
)
def test_names_of_the_second_folder(tmp_path: Path, splits: tuple[str, ...]) -> None:
    data = load(folder(tmp_path, splits=splits))
    assert len(data.train_images) == len(data.test_images) == 6


@pytest.mark.parametrize("inner", ["train", "."])
def test_without_test_images_a_fifth_is_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, inner: str
):
    folder(tmp_path / "set", splits=(inner,))
    data = load(tmp_path / "set")
    assert (len(data.train_images), len(data.test_images)) == (4, 2) and data.class_names == ("a", "b")
    assert sum("no test images: a fixed fifth" in record.message for record in caplog.records) == 1
    assert torch.equal(load(tmp_path / "set").train_images, data.train_images)


def test_a_path_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "mine")
    assert len(pad_fast.load_dataset(str(root)).train_images) == len(pad_fast.load_dataset(root).train_images) == 6
    monkeypatch.chdir(tmp_path)
    assert len(pad_fast.load_dataset("mine").train_images) == 6, "no data set has that name"
    (tmp_path / "digits").mkdir()
    assert len(pad_fast.load_dataset("digits").train_images) == 1437, "this one is known"
    with pytest.raises(DatasetError, match="data set 'mnie' is unknown"):
        pad_fast.load_dataset("mnie")
    assert len(pad_fast.load_dataset("imagefolder:mine").train_images) == 6


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("form", ["array", "tensor", "list of arrays", "list of tensors"])
def test_channels_last_with_any_number_of_channels(channels: int, form: str) -> None:
    images = np.random.default_rng(0).random((20, 16, 16, channels), dtype=np.float32)
    given: object = images
    if "tensor" in form:
        given = torch.from_numpy(images)
    if "list" in form:
        given = list(given)  # type: ignore[call-overload]
    data = pad_fast.load_dataset((given, np.arange(20) % 2))
    assert data.train_images.shape[1:] == (channels, 16, 16)
    first = pad_fast.load_dataset((np.moveaxis(images, 3, 1), np.arange(20) % 2))
    assert torch.equal(data.train_images, first.train_images)


def test_the_advice_about_layouts_works() -> None:
    images, labels = np.random.default_rng(0).random((20, 12, 14, 13), dtype=np.float32), np.arange(20) % 2
    with pytest.raises(DatasetError, match=r"14x13 with 12 channels.*Pass resolution=.*images.transpose\(0, 3, 1, 2\)"):
        pad_fast.load_dataset((images, labels))
    assert pad_fast.load_dataset((images, labels), resolution=4).train_images.shape[1:] == (12, 4, 4)
    moved = pad_fast.load_dataset((images.transpose(0, 3, 1, 2), labels), resolution=4)
    assert moved.train_images.shape[1:] == (13, 4, 4)
    permuted = pad_fast.load_dataset((torch.from_numpy(images).permute(0, 3, 1, 2), labels), resolution=4)
    assert torch.equal(permuted.train_images, moved.train_images)


def test_columns_of_labels_and_the_validation_part_of_medmnist(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    y = (np.arange(20) % 2).astype(np.uint8)[:, None]
    np.savez(
        tmp_path / "med.npz",
        train_images=x,
        train_labels=y,
        val_images=x[:4],
        val_labels=y[:4],
        test_images=x,
        test_labels=y,
    )
    with np.load(tmp_path / "med.npz") as file:
        data = pad_fast.load_dataset(file)
    assert data.train_labels.tolist() == (np.arange(20) % 2).tolist() and data.channels == 3
    assert "the 4 validation images of the data set are not used" in caplog.text


@pytest.mark.parametrize("ids", [[-1, 0, 1], [-100, 0, 1], [-3, -2, -1]])
def test_negative_class_ids_are_refused_and_the_advice_works(ids: list[int]) -> None:
    images, labels = torch.rand(30, 1, 8, 8), torch.tensor(ids * 10)
    with pytest.raises(DatasetError, match=r"torch.unique\(labels, return_inverse=True\)\[1\]") as refused:
        pad_fast.load_dataset((images, labels))
    assert ("-100 marks labels to be ignored" in str(refused.value)) == (-100 in ids)
    data = pad_fast.load_dataset((images, torch.unique(labels, return_inverse=True)[1]))
    assert data.classes == 3


def test_a_folder_of_classes_is_split_as_the_same_images_as_tensors_are(tmp_path: Path) -> None:
    draws = np.random.default_rng(3)
    pixels = draws.integers(0, 256, (23, 8, 8), dtype=np.uint8)
    labels = torch.tensor([0] * 11 + [1] * 12)
    for index, (label, each) in enumerate(zip(labels.tolist(), pixels, strict=True)):
        (tmp_path / "ab"[label]).mkdir(exist_ok=True)
        Image.fromarray(each).save(tmp_path / "ab"[label] / f"{index}.png")
    read, given = load(tmp_path), pad_fast.load_dataset((torch.from_numpy(pixels), labels))
    assert (len(read.train_images), len(read.test_images)) == (18, 5)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(read, name), getattr(given, name)), name


def test_files_that_are_no_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path)
    (root / "train" / "a" / "notes.txt").write_text("mine")
    (root / "train" / "a" / "more.heic").write_bytes(b"?")
    with caplog.at_level("INFO", logger="pad_fast"):
        assert len(load(root).train_images) == 6
    assert f"{root}/train/a/more.heic and 1 more left out" in caplog.text
    (root / "train" / "b" / "no.png").write_text("not an image")
    with pytest.raises(DatasetError, match=f"cannot decode image {root}/train/b/no.png: it is none of"):
        load(root)
