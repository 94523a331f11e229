"""Files of published programs: which set is read, what its labels are, what is missing."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pad_fast import load
from pad_fast.data import MeanStd
from pad_fast.errors import StoreError

IMAGES = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 0, 1, 1, 2, 2])


def write(
    folder: Path, suffix: str = "best", *, labels: Tensor = LOGITS, lr: float | None = 0.02, shift: float = 0
) -> Path:
    torch.save(IMAGES + shift, folder / f"images_{suffix}.pt")
    torch.save(labels, folder / f"labels_{suffix}.pt")
    if lr is not None:
        torch.save(torch.tensor(lr, dtype=torch.float64), folder / f"lr_{suffix}.pt")
    return folder


def test_the_best_set_is_read_whatever_lies_beside_it(tmp_path):
    write(tmp_path, "1000", shift=1), write(tmp_path)
    assert torch.equal(load(tmp_path).images, IMAGES)


@pytest.mark.parametrize("suffixes", [("200",), ("0", "200", "1000"), ("final",)])
def test_without_a_best_one_the_latest_is_read_and_named(tmp_path, suffixes, caplog):
    for number, suffix in enumerate(suffixes):
        write(tmp_path, suffix, shift=number)
    with caplog.at_level("INFO", logger="pad_fast"):
        assert torch.equal(load(tmp_path).images, IMAGES + (len(suffixes) - 1))
    assert (f"images_{suffixes[-1]}.pt is read" in caplog.text) == (len(suffixes) > 1)


def test_an_images_file_names_its_set(tmp_path):
    write(tmp_path, "0"), write(tmp_path, "1000", shift=1)
    assert torch.equal(load(tmp_path / "images_0.pt").images, IMAGES)


@pytest.mark.parametrize("suffix", ["best", "1000"])
@pytest.mark.parametrize("part", ["labels", "lr"])
def test_what_is_missing_is_named(tmp_path, suffix, part):
    (write(tmp_path, suffix) / f"{part}_{suffix}.pt").unlink()
    with pytest.raises(StoreError, match=f"holds images_{suffix}.pt but no {part}_{suffix}.pt"):
        load(tmp_path)


def test_a_rate_and_a_whitening_that_are_given_are_taken(tmp_path):
    white = MeanStd(torch.tensor([0.4]), torch.tensor([0.2]))
    read = load(write(tmp_path, lr=None), lr=0.5, whitening=white)
    assert (read.lr, read.whitening) == (0.5, white)
    torch.testing.assert_close(read.pixels(), IMAGES * 0.2 + 0.4)
    assert load(write(tmp_path), lr=0.5).lr == 0.5
    ours = load(load(tmp_path, lr=0.5).save(tmp_path / "ours"), lr=0.25, whitening=white)
    assert (ours.lr, ours.whitening) == (0.25, white)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot_rows_are_hard_labels(tmp_path, dtype):
    write(tmp_path, labels=torch.eye(3, dtype=dtype)[CLASSES])
    with pytest.warns(UserWarning, match="one-hot rows, and are read as hard labels"):
        read = load(tmp_path)
    assert read.label_logits is None and torch.equal(read.labels, CLASSES)


def test_probabilities_keep_their_values(tmp_path):
    given = LOGITS.softmax(-1)
    given[0] = torch.tensor([0.0, 0.25, 0.75])
    write(tmp_path, labels=given)
    with pytest.warns(UserWarning, match="are probabilities"):
        read = load(tmp_path)
    torch.testing.assert_close(torch.stack([target for _, target in read.as_dataset()]), given)


@pytest.mark.parametrize("labels", [LOGITS, CLASSES, LOGITS.abs(), torch.ones(6, 3), CLASSES.int()])
def test_others_are_as_they_are(tmp_path, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = load(write(tmp_path, labels=labels))
    assert torch.equal(read.targets, labels.long() if not labels.is_floating_point() else labels)


@pytest.mark.parametrize("content", [{"a": 1}, [1.0, 2.0]])
def test_files_of_something_else(tmp_path, content):
    write(tmp_path)
    torch.save(content, tmp_path / "labels_best.pt")
    with pytest.raises(StoreError, match="labels_best.pt holds a (dict|list); one tensor"):
        load(tmp_path)
    write(tmp_path), torch.save(content, tmp_path / "lr_best.pt")
    with pytest.raises(StoreError, match="lr_best.pt must hold one number"):
        load(tmp_path)
