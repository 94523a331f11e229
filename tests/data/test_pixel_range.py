"""Which floating point values are taken for pixels, and on what scale; what is not plain is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pad_fast import load_dataset
from pad_fast.errors import DatasetError

from ..support.small import noise

PIXELS = torch.from_numpy(noise(20, 3, 8, 8, seed=0))
LABELS = torch.arange(20) % 2
TESTED = PIXELS[:10].flip(0) // 2  # darker: no more than 127


def loaded(images: Any, tests: Any) -> Any:
    return load_dataset((images, LABELS, tests, LABELS[:10]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floating_point_pixels_from_0_to_255_are_those_of_uint8(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load_dataset((PIXELS, LABELS))
    data = load_dataset((PIXELS.to(dtype), LABELS))
    assert torch.equal(data.train_images, expected.train_images) and torch.equal(data.test_images, expected.test_images)
    assert [record.message for record in caplog.records] == [
        "images of tensors run from 0 to 255 and are read as 8-bit: 255 is white"
    ]


def test_resizing_does_not_change_the_scale() -> None:
    expected = load_dataset((PIXELS, LABELS), resolution=4)
    data = load_dataset(([image.numpy() for image in PIXELS.float()], LABELS), resolution=4)
    torch.testing.assert_close(data.train_images, expected.train_images, rtol=0, atol=1e-6)


def test_values_in_the_unit_interval_are_kept_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    images = PIXELS.double().numpy() / 255
    data = load_dataset((images, LABELS))
    assert float(data.train_images.max()) == 1 and not caplog.records
    load_dataset((images * (1 + 1e-4) - 1e-4, LABELS))  # what rounding and resampling leave
    assert not caplog.records


def test_uint8_from_0_to_1_is_nearly_black_and_said(caplog: pytest.LogCaptureFixture) -> None:
    data = load_dataset((PIXELS // 128, LABELS))
    assert float(data.train_images.max()) == pytest.approx(1 / 255)
    assert [record.message for record in caplog.records] == [
        "images of tensors are uint8 from 0 to 1, nearly black, as 255 is white; give floating point where 1 is"
    ]
    caplog.clear()
    assert float(load_dataset((PIXELS.float() // 128, LABELS)).train_images.max()) == 1 and not caplog.records


@pytest.mark.parametrize("scale", [lambda x: (x / 255 - 0.5) / 0.25, lambda x: x / 16, lambda x: x * 10.0])
def test_other_ranges_are_kept_and_said(scale: Any, caplog: pytest.LogCaptureFixture) -> None:
    images = scale(PIXELS.float())
    data = loaded(images, images[:10])
    assert torch.equal(data.train_images, images)
    said = [record.message for record in caplog.records]
    assert (
        len(said) == 1
        and f"run from {float(images.min()):.4g} to {float(images.max()):.4g}, not from 0 to 1" in said[0]
    )
    assert "leave Normalize out of a transform" in said[0]


@pytest.mark.parametrize(
    "tests",
    [TESTED.float() / 255, (TESTED.float() - 128) / 64],
    ids=["unit beside 255", "normalised beside 255"],
)
def test_splits_on_different_scales_are_refused(tests: torch.Tensor) -> None:
    with pytest.raises(DatasetError, match=r"the splits of tensors are on different scales: 0 to 255 and .* as uint8"):
        loaded(PIXELS.float(), tests)


def test_normalised_beside_uint8_is_refused_and_the_unit_interval_is_not() -> None:
    with pytest.raises(DatasetError, match="different scales: uint8 and -2 to"):
        loaded(PIXELS, (TESTED.float() - 128) / 64)
    data = loaded(PIXELS, TESTED.float() / 255)
    assert torch.equal(data.test_images, loaded(PIXELS, TESTED).test_images)


def test_both_splits_decide_about_the_scale() -> None:
    same = loaded(PIXELS, TESTED)
    assert float(same.test_images.max()) < 0.5
    for divisor in (1, 255):
        data = loaded(PIXELS.float() / divisor, TESTED.float() / divisor)
        assert torch.equal(data.test_images, same.test_images) and torch.equal(data.train_images, same.train_images)


@pytest.mark.parametrize("images", [PIXELS, PIXELS.float(), PIXELS / 255], ids=["uint8", "floats to 255", "unit"])
def test_statistics_are_on_the_scale_of_the_pixels(images: torch.Tensor) -> None:
    given = {"images": images, "labels": LABELS}
    with pytest.raises(DatasetError, match=r"mean \(120.0, 1.0, 130.0\) is that of pixels from 0 to 255"):
        load_dataset({**given, "mean": [120, 1, 130], "std": [60] * 3})
    assert load_dataset({**given, "mean": [0.5] * 3, "std": [0.2] * 3}).mean == (0.5,) * 3
    own = load_dataset({**given, "images": images.float() * 300, "mean": [120] * 3, "std": [60] * 3})
    assert own.mean == (120.0,) * 3


def test_layouts_of_arrays_are_told_by_the_shape() -> None:
    images = PIXELS.numpy()
    expected = load_dataset((PIXELS, LABELS))
    for given in (images, images.transpose(0, 2, 3, 1), np.asfortranarray(images)):
        assert torch.equal(load_dataset((given, LABELS)).train_images, expected.train_images)
