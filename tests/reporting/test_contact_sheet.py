"""The contact sheet: pixels land where they belong, the right number of them, the same way each time."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pad_fast.data.arrays import to_bytes
from pad_fast.errors import InputError
from pad_fast.reporting.contact_sheet import image_grid, png_bytes, single_png


def colours(sheet: Image.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(sheet).reshape(-1, 3).tolist()))


def area(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == np.array(colour)).all(-1).sum())


def flat_images(values: list[list[float]], size: int = 8) -> torch.Tensor:
    """One image per row, of one colour (one or three numbers)."""
    return torch.tensor(values)[:, :, None, None].expand(-1, -1, size, size).clone()


def test_each_image_is_drawn_once_in_its_colour_and_size() -> None:
    pixels = flat_images([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    sheet = image_grid(pixels, torch.tensor([0, 1, 0, 1]), ["a", "b"], cell=64)
    for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]:
        assert area(sheet, colour) == 64 * 64


def test_rows_are_classes_and_columns_keep_the_order() -> None:
    """Class 0 stands above class 1; within a class the images keep their order from left to right."""
    pixels = flat_images([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    array = np.asarray(image_grid(pixels, torch.tensor([1, 0, 0, 1]), ["a", "b"], cell=64))

    def corner(colour: list[int]) -> tuple[int, int]:
        y, x = np.argwhere((array == np.array(colour)).all(-1))[0]
        return int(y), int(x)

    red, green, blue, cyan = (corner(c) for c in ([255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 255, 255]))
    assert red[0] == green[0] < blue[0] == cyan[0]
    assert red[1] == blue[1] < green[1] == cyan[1]


@pytest.mark.parametrize(
    ("size", "cell", "drawn"),
    [(8, 64, 64), (28, 64, 84), (32, 64, 64), (64, 64, 64), (96, 64, 96), (7, 10, 14), (8, None, 128)],
)
def test_small_images_grow_by_a_whole_factor(size: int, cell: int | None, drawn: int) -> None:
    sheet = image_grid(flat_images([[1.0, 0.0, 0.0]], size), torch.tensor([0]), ["x"], cell=cell)
    assert area(sheet, (255, 0, 0)) == drawn * drawn


def test_enlarging_keeps_every_pixel() -> None:
    pixels = torch.rand(1, 3, 5, 5)
    expected = set(map(tuple, (pixels[0] * 255).round().int().flatten(1).T.tolist()))
    assert expected <= colours(image_grid(pixels, torch.tensor([0]), ["x"], cell=20))


def test_grey_images_are_grey() -> None:
    sheet = image_grid(flat_images([[0.4]]), torch.tensor([0]), ["x"], cell=64)
    assert sheet.mode == "RGB"
    assert area(sheet, (102, 102, 102)) == 64 * 64


def test_values_outside_the_range_are_clamped_and_uint8_is_a_byte() -> None:
    pixels = flat_images([[-3.0, 0.0, 7.0]])
    assert area(image_grid(pixels, torch.tensor([0]), ["x"], cell=8), (0, 0, 255)) == 64
    bytes_ = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    assert area(image_grid(bytes_, torch.tensor([0]), ["x"], cell=8), (200, 200, 200)) == 64


def test_stretch_uses_the_whole_range_of_each_image() -> None:
    """Ramps far outside [0, 1] become the same full ramp, each on its own."""
    ramp = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    label, names = torch.tensor([0]), ["x"]
    sheets = [image_grid(images, label, names, cell=8, stretch=True) for images in (ramp * 0.01 + 5, ramp * 100)]
    assert area(sheets[0], (0, 0, 0)) >= 1
    assert sum(area(sheets[0], (v, v, v)) for v in range(100, 156)) >= 10
    difference = np.asarray(sheets[0]).astype(int) - np.asarray(sheets[1]).astype(int)
    assert abs(difference).max() <= 1
    assert image_grid(ramp * 0.01 + 5, label, names, cell=8).tobytes() != sheets[0].tobytes()


def test_stretch_leaves_a_constant_image_alone() -> None:
    pixels, label = flat_images([[0.2]]), torch.tensor([0])
    plain, stretched = (image_grid(pixels, label, ["x"], stretch=flag) for flag in (False, True))
    assert plain.tobytes() == stretched.tobytes()


def test_more_images_than_columns_are_counted_not_drawn() -> None:
    pixels = flat_images([[1.0, 0.0, 0.0]] * 13 + [[0.0, 0.0, 1.0]] * 2)
    labels = torch.tensor([0] * 13 + [1] * 2)
    sheet = image_grid(pixels, labels, ["a", "b"], cell=16, max_columns=5)
    assert area(sheet, (255, 0, 0)) == 5 * 256
    assert area(sheet, (0, 0, 255)) == 2 * 256
    # The note takes room at the right only when there is something to say.
    assert sheet.width > image_grid(pixels[8:], labels[8:], ["a", "b"], cell=16, max_columns=5).width


def test_more_classes_than_allowed_leave_a_line() -> None:
    pixels = flat_images([[1.0, 0.0, 0.0]] * 6)
    names = [f"class {i}" for i in range(6)]
    limited = image_grid(pixels, torch.arange(6), names, cell=16, max_classes=4)
    whole = image_grid(pixels[:4], torch.arange(4), names, cell=16)
    assert area(limited, (255, 0, 0)) == 4 * 256
    assert limited.height > whole.height
    assert limited.width == whole.width


def test_classes_without_images_have_no_row() -> None:
    pixels = flat_images([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    names = ["same"] * 9
    gap = image_grid(pixels, torch.tensor([2, 7]), names)
    assert gap.tobytes() == image_grid(pixels, torch.tensor([0, 1]), names).tobytes()


def test_many_classes_make_a_page_and_not_a_strip() -> None:
    names = [f"class {i}" for i in range(100)]
    for columns in (1, 10):
        pixels = torch.rand(100 * columns, 3, 8, 8)
        sheet = image_grid(pixels, torch.arange(100).repeat_interleave(columns), names)
        assert 0.5 < sheet.width / sheet.height < 2.6
        assert area(sheet, (255, 255, 255)) > 0


def test_long_and_multiline_names_are_cut() -> None:
    pixels = flat_images([[1.0, 0.0, 0.0]])
    long = image_grid(pixels, torch.tensor([0]), ["long name " * 40])
    assert long.width < 400
    assert image_grid(pixels, torch.tensor([0]), ["two\nlines"]).tobytes() == image_grid(
        pixels, torch.tensor([0]), ["two lines"]
    ).tobytes()  # fmt: skip


def test_a_wide_title_fits() -> None:
    pixels, labels = flat_images([[1.0, 0.0, 0.0]]), torch.tensor([0])
    plain = image_grid(pixels, labels, ["x"])
    titled = image_grid(pixels, labels, ["x"], title="a rather long title over a single small image")
    assert titled.width > plain.width
    assert titled.height > plain.height


def test_png_is_deterministic_and_faithful() -> None:
    torch.manual_seed(0)
    pixels, labels = torch.rand(6, 3, 9, 9), torch.tensor([0, 1, 2, 0, 1, 2])
    before = pixels.clone()
    sheet = image_grid(pixels, labels, ["a", "b", "c"], title="t")
    data = png_bytes(sheet)
    assert data == png_bytes(image_grid(pixels, labels, ["a", "b", "c"], title="t"))
    assert Image.open(io.BytesIO(data)).tobytes() == sheet.tobytes()
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    ("pixels", "labels", "options", "message"),
    [
        (torch.rand(3, 8, 8), torch.tensor([0, 1, 0]), {}, "N, C, H, W"),
        (torch.rand(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64), {}, "N, C, H, W"),
        (torch.rand(2, 3, 8, 8), torch.tensor([0, 1, 1]), {}, "one integer label per image"),
        (torch.rand(2, 3, 8, 8), torch.tensor([0.0, 1.0]), {}, "one integer label per image"),
        (torch.rand(2, 3, 8, 8), torch.tensor([0, 2]), {}, "label 2 has no name"),
        (torch.rand(2, 3, 8, 8), torch.tensor([-1, 0]), {}, "label -1 has no name"),
        (torch.full((1, 1, 8, 8), float("nan")), torch.tensor([0]), {}, "NaN or infinite"),
        (torch.ones(1, 1, 8, 8, dtype=torch.int64), torch.tensor([0]), {}, "float or uint8"),
        (torch.rand(1, 1, 8, 8), torch.tensor([0]), {"cell": 0}, "cell must be at least 1"),
        (torch.rand(1, 1, 8, 8), torch.tensor([0]), {"max_columns": 0}, "max_columns must be"),
    ],
)
def test_bad_input_is_named(pixels: torch.Tensor, labels: torch.Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        image_grid(pixels, labels, ["a", "b"], **options)


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
@pytest.mark.parametrize("stretch", [False, True])
def test_other_channels_are_drawn_as_their_mean(channels: int, stretch: bool) -> None:
    pixels = torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4) % 2
    as_bytes = to_bytes(pixels, stretch=stretch)
    mean = as_bytes.double().mean(1, keepdim=True).round().byte()
    drawn = image_grid(pixels, labels, ["a", "b"], stretch=stretch)
    assert drawn.tobytes() == image_grid(mean, labels, ["a", "b"]).tobytes()
    assert single_png(as_bytes[0]) == single_png(mean[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(single_png(as_bytes[0])))), mean[0, 0].numpy())


def test_a_name_of_any_length_is_cut_to_the_label_column():
    def width(name):
        return image_grid(flat_images([[0.5]]), torch.tensor([0]), [name], cell=64).width

    assert width("long " * 20_000) == width("long " * 100) < 64 + 250


def test_images_whose_label_has_moved_are_framed_in_the_gaps() -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    plain = image_grid(images, labels, ["a", "b"], cell=64)
    assert png_bytes(
        image_grid(images, labels, ["a", "b"], cell=64, moved=torch.zeros(len(labels), dtype=torch.bool))
    ) == png_bytes(plain)
    sheet = image_grid(images, labels, ["a", "b"], cell=64, moved=torch.tensor([1, 0, 0, 1, 1, 0]) != labels)
    frame = (214, 96, 0)
    assert area(plain, frame) == 0 and area(sheet, frame) == 2 * (70 * 70 - 64 * 64)
    low, high = plain.size[1] - 20, sheet.size[1] - 20  # a line longer, whose words are below the images
    assert high > low
    same = (np.asarray(plain)[:low, : plain.size[0]] == np.asarray(sheet)[:low, : plain.size[0]]).all(-1)
    framed = (np.asarray(sheet)[:low, : plain.size[0]] == np.array(frame)).all(-1)
    assert (same | framed).all(), "no pixel of an image is covered"
