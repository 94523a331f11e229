"""Distilled sets that others keep in files of their own: layouts, pixels or not, what labels are, what is missing."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from pad_fast import load
from pad_fast.data import MeanStd, Pixels
from pad_fast.errors import ConfigError, DatasetError, StoreError

DRAWS = torch.Generator().manual_seed(0)
BYTES = torch.randint(256, (6, 3, 4, 5), generator=DRAWS, dtype=torch.uint8)
NORMALISED = torch.randn(6, 3, 4, 5, generator=DRAWS)
LOGITS = 2 * torch.randn(6, 3, generator=DRAWS)
CLASSES = torch.tensor([2, 0, 1, 1, 2, 0])
WHITE = MeanStd(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]))

KINDS = (
    "npz",
    "npz in a folder",
    "npy",
    "npy in a folder",
    "pt beside",
    "pt in a folder",
    "dict",
    "tuple",
    "list of arrays",
)


def write(folder: Path, kind: str, images: torch.Tensor, labels: torch.Tensor, lr: float | None = 0.02) -> Path:
    """A set as others write it; what to load."""
    parts = {"images": images, "labels": labels} | ({} if lr is None else {"lr": torch.tensor(lr, dtype=torch.float64)})
    arrays = {name: part.numpy() for name, part in parts.items()}
    if kind.startswith("npz"):
        path = folder / ("distilled.npz" if "folder" in kind else "some.npz")
        numpy.savez(path, **arrays)
    elif kind.startswith("npy") or kind in ("pt beside", "pt in a folder"):
        for name, array in arrays.items():
            if kind.startswith("pt"):
                torch.save(parts[name], folder / f"{name}.pt")
            else:
                numpy.save(folder / f"{name}.npy", array)
        path = folder / ("images.pt" if kind.startswith("pt") else "images.npy")
    else:
        path = folder / "set.pt"
        torch.save({"dict": parts, "tuple": tuple(parts.values()), "list of arrays": list(arrays.values())}[kind], path)
    return folder if "folder" in kind else path


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [False, True])
def test_pixels_in_either_layout(tmp_path, kind, last):
    read = load(write(tmp_path, kind, BYTES.permute(0, 2, 3, 1).contiguous() if last else BYTES, CLASSES))
    assert torch.equal(read.images, BYTES / 255) and read.images.dtype == torch.float32 and read.are_pixels
    assert torch.equal(read.labels, CLASSES) and read.label_logits is None and read.lr == 0.02
    assert torch.equal(read.pixels(), read.images)


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_images_and_logits_are_as_they_are(tmp_path, kind):
    path = write(tmp_path, kind, NORMALISED.double(), LOGITS, lr=None)
    read = load(path, lr=0.5, whitening=WHITE)
    assert torch.equal(read.images, NORMALISED) and torch.equal(read.label_logits, LOGITS)
    assert torch.equal(read.labels, LOGITS.argmax(1)) and (read.lr, read.whitening) == (0.5, WHITE)
    assert load(path, lr=0.5).whitening is None
    with pytest.raises(StoreError, match=r"says no learning rate .*; pass it as lr= \(--lr\)"):
        load(path)


@pytest.mark.parametrize("images", [BYTES / 255, BYTES.float(), BYTES.double() / 255, (BYTES / 255).half()])
def test_floating_pixels_are_recognised_by_their_range(tmp_path, images, caplog):
    path = write(tmp_path, "npz", images, CLASSES)
    with caplog.at_level("INFO", logger="pad_fast"):
        read = load(path)
    assert read.are_pixels and "are read as pixels" in caplog.text
    torch.testing.assert_close(read.images, BYTES / 255, atol=1e-3 if images.dtype == torch.half else 1e-7, rtol=0)
    as_they_are = load(path, images_are="normalized")
    assert torch.equal(as_they_are.images, images.float()) and as_they_are.whitening is None
    white = load(path, whitening=WHITE)
    assert torch.equal(white.images, WHITE.apply(read.images)) and white.whitening is WHITE


@pytest.mark.parametrize(("scale", "shown"), [(1, "-0.5 to 1.5"), (255, "-127.5 to 382.5")])
def test_pixels_that_leave_their_range_are_pixels_where_that_is_said(tmp_path, scale, shown):
    wide = (2 * (BYTES / 255) - 0.5) * scale
    path = write(tmp_path, "dict", wide, CLASSES)
    assert load(path).whitening is None, shown
    read = load(path, images_are="pixels")
    assert read.are_pixels
    torch.testing.assert_close(read.images, wide / scale)


@pytest.mark.parametrize(("images", "shown"), [(3 * (BYTES / 255), "0 to 3"), (2.0 * BYTES, "0 to 510")])
def test_ranges_that_may_be_either_are_refused(tmp_path, images, shown):
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0, images.max()
    path = write(tmp_path, "tuple", images, CLASSES)
    with pytest.raises(StoreError, match=r"lie in 0 to .*pass images_are='pixels' or images_are='normalized' \(--im"):
        load(path)
    assert load(path, images_are="pixels").are_pixels and not load(path, images_are="normalized").are_pixels


def test_pixels_of_published_programs_names_are_not_guessed(tmp_path):
    for part, value in {"images": BYTES / 255, "labels": CLASSES, "lr": torch.tensor(0.1)}.items():
        torch.save(value, tmp_path / f"{part}_best.pt")
    assert load(tmp_path).whitening is None
    assert load(tmp_path, images_are="pixels").are_pixels
    torch.save(BYTES, tmp_path / "images_best.pt")
    assert torch.equal(load(tmp_path).pixels(), BYTES / 255)


@pytest.mark.parametrize("kind", ["npz", "dict", "trio"])
def test_labels_are_what_is_said(tmp_path, kind):
    def path(labels):
        if kind != "trio":
            return write(tmp_path, kind, NORMALISED, labels)
        for part, value in {"images": NORMALISED, "labels": labels, "lr": torch.tensor(0.1)}.items():
            torch.save(value, tmp_path / f"{part}_best.pt")
        return tmp_path

    probabilities = LOGITS.softmax(-1)
    onehot = torch.eye(3)[CLASSES]
    said = load(path(probabilities), labels_are="probabilities")  # and no warning
    torch.testing.assert_close(said.as_dataset().tensors[1], probabilities)
    assert torch.equal(load(path(probabilities), labels_are="logits").label_logits, probabilities)
    with pytest.warns(UserWarning, match="are probabilities, and are read as such") as warned:
        assert torch.equal(load(path(probabilities)).label_logits, said.label_logits)
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match="one-hot rows, and are read as hard labels"):
        assert torch.equal(load(path(onehot)).targets, CLASSES)
    torch.testing.assert_close(load(path(onehot), labels_are="probabilities").as_dataset().tensors[1], onehot)
    assert torch.equal(load(path(onehot), labels_are="logits").label_logits, onehot)
    for labels_are in ("logits", "probabilities"):  # of soft labels only
        assert torch.equal(load(path(CLASSES.int()), labels_are=labels_are).targets, CLASSES)
    assert torch.equal(load(path(CLASSES[:, None])).targets, CLASSES)
    with pytest.warns(UserWarning, match="one-hot"):
        assert torch.equal(load(path(onehot.long())).targets, CLASSES)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LOGITS[None], r"float32 \[1, 6, 3\]; expected integer classes \[N\]"),
        (CLASSES.float(), r"float32 \[6\]; expected"),
        (CLASSES[:, None].float(), r"float32 \[6, 1\]"),
        (CLASSES.view(3, 2), r"int64 \[3, 2\]"),
        (torch.ones(6, 3, dtype=torch.int64), r"int64 \[6, 3\]"),
        (CLASSES > 0, r"bool \[6\]"),
        (CLASSES[:5], r"expected int64 \[6\]"),
        (LOGITS[:5], r"expected int64 \[6\]"),
    ],
)
def test_labels_of_other_shapes_are_refused(tmp_path, labels, said):
    with pytest.raises(StoreError, match=said):
        load(write(tmp_path, "npz", NORMALISED, labels))


def test_what_is_said_must_be_possible(tmp_path):
    path = write(tmp_path, "npz", NORMALISED, LOGITS)
    with pytest.raises(
        StoreError, match=r"labels_are='probabilities', but .*some.npz begin at -.* add up to .*'logits'"
    ):
        load(path, labels_are="probabilities")
    with pytest.raises(ConfigError, match="labels_are='logit' is unknown; use one of .*Did you mean 'logits'"):
        load(path, labels_are="logit")
    with pytest.raises(ConfigError, match="images_are='normalised' is unknown; use one of .*Did you mean 'normalized'"):
        load(path, images_are="normalised")
    with pytest.raises(StoreError, match="are uint8; expected uint8 pixels"):
        load(write(tmp_path, "npz", BYTES, CLASSES), images_are="normalized")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (BYTES.long(), "are int64; expected uint8 pixels"),
        (BYTES[0, 0], r"shape \[4, 5\]; expected \[N, C, H, W\]"),
        (BYTES[:0], "shape .0, 3, 4, 5"),
        (torch.full((6, 3, 4, 5), torch.nan), "lie in nan to nan"),
        (torch.where(torch.arange(5) == 2, torch.inf, NORMALISED), "NaN or infinite"),
    ],
)
def test_images_of_other_kinds_are_refused(tmp_path, images, said):
    with pytest.raises(StoreError, match=said):
        load(write(tmp_path, "dict", images, CLASSES[: len(images)]))


def test_gray_images_without_an_axis_for_it(tmp_path):
    assert torch.equal(load(write(tmp_path, "npy", BYTES[:, 0], CLASSES)).images, BYTES[:, :1] / 255)


@pytest.mark.parametrize("experiments", [1, 3])
def test_results_of_gradient_matching_programs(tmp_path, experiments, caplog):
    data = [[NORMALISED + number, CLASSES] for number in range(experiments)]
    accuracies = {"ConvNet": [numpy.float64(0.25), numpy.float64(0.5)]}
    torch.save({"data": data, "accs_all_exps": accuracies}, tmp_path / "res_DC_CIFAR10_ConvNet_2ipc.pt")
    with caplog.at_level("INFO", logger="pad_fast"):
        read = load(tmp_path / "res_DC_CIFAR10_ConvNet_2ipc.pt", lr=0.01)
    assert torch.equal(read.images, NORMALISED + (experiments - 1)) and torch.equal(read.targets, CLASSES)
    assert ("the last is read" in caplog.text) == (experiments > 1)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"image": 1, "labels": CLASSES}, "set.pt holds image, labels; expected images and labels"),
        ({}, "set.pt holds nothing; expected"),
        ((NORMALISED,), r"holds a tuple of 1; expected \(images, labels\[, lr\]\)"),
        (3, "holds a int; expected images"),
        ({"images": "words", "labels": CLASSES}, "images of .*set.pt are no array of numbers"),
        ({"images": NORMALISED, "labels": CLASSES, "lr": torch.ones(2)}, r"lr of .* must be one number"),
        (NORMALISED, "set.pt is not called as the images of a set are; .*or put labels.pt beside this one"),
    ],
)
def test_files_of_something_else(tmp_path, value, said):
    torch.save(value, tmp_path / "set.pt")
    with pytest.raises(StoreError, match=said):
        load(tmp_path / "set.pt")


def test_parts_side_by_side(tmp_path):
    path = write(tmp_path, "npy", NORMALISED, LOGITS)
    (tmp_path / "labels.npy").rename(tmp_path / "elsewhere.npy")
    with pytest.raises(StoreError, match="images.npy holds images, and there is no labels.npy beside it.*put it there"):
        load(path)
    numpy.save(tmp_path / "labels.npy", CLASSES.numpy())
    assert torch.equal(load(path).labels, CLASSES)
    (tmp_path / "labels.npy").write_bytes(b"")
    with pytest.raises(StoreError, match="labels.npy is damaged"):
        load(path)
    torch.save(NORMALISED, tmp_path / "mine.pt"), torch.save(CLASSES, tmp_path / "labels.pt")
    assert torch.equal(load(tmp_path / "mine.pt", lr=0.1).images, NORMALISED)
    with pytest.raises(StoreError, match="labels.pt is not called as the images"):
        load(tmp_path / "labels.pt", lr=0.1)
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(StoreError, match="a file that is none of .safetensors, .npz, .npy, .pt"):
        load(tmp_path / "notes.txt")


def pictures(folder: Path, names=("ant", "bee 2", "bee 10")) -> Path:
    """Two images of each class; the class of an image is what its folder says."""
    for index, image in enumerate(BYTES.permute(0, 2, 3, 1)):
        place = folder / names[index // 2] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place)
    return folder


def table(folder: Path, columns: dict[str, list[object]]) -> Path:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *columns])
        writer.writerows(zip(reversed(paths), *columns.values(), strict=True))
    return folder


def test_a_folder_of_pictures_for_each_class(tmp_path):
    read = load(pictures(tmp_path), lr=0.1)
    assert torch.equal(read.images, BYTES / 255) and read.are_pixels and read.class_names == ("ant", "bee 2", "bee 10")
    assert read.labels.tolist() == [0, 0, 1, 1, 2, 2] and read.label_logits is None
    with pytest.raises(StoreError, match="says no learning rate"):
        load(tmp_path)
    (tmp_path / "ant" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"cannot decode image .*0.png"):
        load(tmp_path, lr=0.1)


@pytest.mark.parametrize("with_table", [True, False])
def test_pictures_of_more_than_8_bits(tmp_path, with_table, caplog):
    values = torch.randint(2**16, (4, 5, 5), generator=DRAWS)
    values[0, 0, 0] = 2**16 - 1
    for index, image in enumerate(values):
        (tmp_path / str(index // 2)).mkdir(exist_ok=True)
        Image.fromarray(image.numpy().astype(numpy.uint16)).save(tmp_path / str(index // 2) / f"{index}.png")
    if with_table:
        table(tmp_path, {"class": [1, 1, 0, 0]})
        values = values.flip(0)
    read = load(tmp_path, lr=0.1)
    assert read.are_pixels and "are read as 16-bit: 65535 is white" in caplog.text
    torch.testing.assert_close(read.images, (values[:, None].double() / 65535).float(), rtol=0, atol=0)


def test_a_table_of_others_says_labels_in_its_own_order(tmp_path):
    pictures(tmp_path, ("a", "b", "c"))
    flipped = BYTES.flip(0) / 255
    hard = load(table(tmp_path, {"class": [2, 0, 1, 1, 0, 2], "lr": ["0.25"] * 6}))
    assert torch.equal(hard.images, flipped) and hard.labels.tolist() == [2, 0, 1, 1, 0, 2] and hard.lr == 0.25
    probabilities = LOGITS.softmax(-1)
    named = {f"probability_{label}": probabilities[:, label].tolist() for label in (2, 0, 1)}  # columns in any order
    soft = load(table(tmp_path, {"class": [0, 0, 1, 1, 2, 2], **named}), lr=0.1)
    torch.testing.assert_close(soft.as_dataset().tensors[1], probabilities)
    assert soft.labels.tolist() == [0, 0, 1, 1, 2, 2]
    logits = {f"logit_{label}": LOGITS[:, label].tolist() for label in range(3)}
    assert torch.equal(load(table(tmp_path, logits), lr=0.1).label_logits, LOGITS)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"name": ["a"] * 6}, "6 rows of file, name; expected file, and class or logit_0"),
        ({"logit_0": [1] * 6, "probability_1": [0] * 6}, "expected file, and class"),
        ({"logit_0": [1] * 6, "logit_2": [0] * 6}, "expected file, and class"),
        ({"class": ["ant"] * 6}, "labels.csv is damaged .*invalid literal"),
        ({"class": [0] * 6, "lr": [0.1] * 5 + [0.2]}, r"lr of .*labels.csv must be one number .*pass it as lr="),
    ],
)
def test_tables_that_make_no_sense(tmp_path, columns, said):
    folder = table(pictures(tmp_path), columns)
    with pytest.raises(StoreError, match=said):
        load(folder)
    if "lr" in columns:
        assert load(folder, lr=0.3).lr == 0.3
    (folder / "labels.csv").write_text("file,class\n")
    with pytest.raises(StoreError, match="0 rows of file, class"):
        load(folder)


def test_a_folder_above_runs_is_no_set_of_their_pictures(tmp_path):
    numpy.savez(tmp_path / "some.npz", images=NORMALISED.numpy(), labels=CLASSES.numpy(), lr=0.1)
    load(tmp_path / "some.npz").save(tmp_path / "runs" / "one")
    Image.new("RGB", (8, 8)).save(tmp_path / "runs" / "one" / "images.png")
    with pytest.raises(StoreError, match="sets lie further down, name one of .*one"):
        load(tmp_path / "runs")
    numpy.savez(tmp_path / "runs" / "distilled.npz", images=NORMALISED.numpy(), labels=CLASSES.numpy(), lr=0.2)
    assert load(tmp_path / "runs").lr == 0.2
    pictures(tmp_path / "data" / "train")
    with pytest.raises(StoreError, match="no distilled set at .*data: there is neither"):
        load(tmp_path / "data", lr=0.1)
    with pytest.raises(StoreError, match="there is no such file$"):
        load(tmp_path / "no.npz")


def test_a_whitening_that_is_none():
    assert Pixels().apply(NORMALISED) is NORMALISED is Pixels().invert(NORMALISED) and Pixels() == Pixels()
