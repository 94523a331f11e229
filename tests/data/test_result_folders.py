"""Folders that published programs leave behind: loaded, evaluated from Python and from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pad_fast import DistilledDataset, evaluate, load, load_dataset
from pad_fast.cli import main
from pad_fast.data import fit_normalization
from pad_fast.errors import DatasetError, StoreError

from ..support.result_folders import FAMILIES, RATE, WITH_RATE, write_results
from ..support.small import MODEL, QUIET

CLASSES = torch.arange(10)
LOGITS = 4 * torch.eye(10) + 0.3 * torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
# What a family's labels are, and those that its sets have once they are read.
LABELS = {
    "mtt": (CLASSES, CLASSES),
    "ftd": (CLASSES, CLASSES),
    "tesla": (CLASSES, CLASSES),
    "tesla, teacher's": (LOGITS.softmax(-1), LOGITS.log_softmax(-1)),
    "datm": (LOGITS, LOGITS),
    "pad": (LOGITS, LOGITS),
}
SETTINGS: dict[str, Any] = {"models": (MODEL,), "repeats": 1, "epochs": 3, "baselines": False, "progress": QUIET}


def digits(kind: str) -> tuple[Tensor, Tensor]:
    """One image of each class, normalised, and its pixels."""
    data = load_dataset("digits")
    pixels = data.train_images[torch.cat([data.images_of_class(label)[:1] for label in range(10)])]
    return fit_normalization(data, kind).apply(pixels), pixels


def left_by(root: Path, labels: str, kind: str = "mean-std") -> tuple[Path, Tensor, dict[str, float]]:
    """A folder, the images of its best set, and the learning rate if that has to be given."""
    family = labels.partition(",")[0]
    images, pixels = digits(kind)
    folder = write_results(root, family, images, LABELS[labels][0], pixels=pixels if kind == "zca" else None)
    return folder, images, {} if family in WITH_RATE else {"lr": RATE}


@pytest.mark.filterwarnings("ignore:the labels of .* are probabilities")
@pytest.mark.parametrize("kind", ["mean-std", "zca"])
@pytest.mark.parametrize("labels", LABELS)
def test_a_familys_folder_is_loaded_and_evaluated(tmp_path, labels, kind, capsys):
    folder, images, rate = left_by(tmp_path, labels, kind)
    read = load(folder, **rate)
    targets = LABELS[labels][1]
    assert torch.equal(read.images, images) and not read.images.requires_grad
    assert read.lr == RATE and read.targets.dtype == targets.dtype and not read.targets.requires_grad
    torch.testing.assert_close(read.targets, targets)
    assert torch.equal(read.labels, CLASSES)
    soft = targets.is_floating_point()
    direct = DistilledDataset(
        images, targets if soft else None, CLASSES, RATE, fit_normalization(load_dataset("digits"), kind), {}
    )
    (expected,) = evaluate(direct, load_dataset("digits"), **SETTINGS).rows
    (found,) = evaluate(read, load_dataset("digits"), whitening=kind, **SETTINGS).rows
    # A softmax of logarithms is not the probabilities to the last bit.
    assert found.accuracies == pytest.approx(expected.accuracies, abs=0.01 if "teacher" in labels else 0)
    assert found.accuracies[0] > 0.15

    words = ["evaluate", str(folder), "--dataset", "digits", "--model", MODEL, "--no-eval-baselines", "--quiet"]
    words += ["--eval-networks", "1", "--eval-epochs", "3", "--out", str(tmp_path / "rows.json")]
    words += ["--zca"] if kind == "zca" else ["--whitening", "mean-std"]
    words += ["--lr", str(RATE)] if rate else []
    assert main(words) == 0, capsys.readouterr().err
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["accuracies"] == list(found.accuracies)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_iterate_is_named_by_its_file(tmp_path, family):
    folder, images, rate = left_by(tmp_path, family)
    prefix = "ema_" if family == "ftd" else ""
    assert torch.equal(load(folder / f"{prefix}images_0.pt", **rate).images, images + 1)
    assert torch.equal(load(folder / f"{prefix}images_10.pt", **rate).images, images)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITH_RATE])
def test_a_rate_that_was_not_saved_is_asked_for(tmp_path, family):
    folder, _, rate = left_by(tmp_path, family)
    name = "ema_images_best.pt but no ema_lr_best.pt" if family == "ftd" else "images_best.pt but no lr_best.pt"
    with pytest.raises(StoreError, match=rf"holds {name}.*MTT, FTD and TESLA .* save none: pass it as lr= \(--lr\)"):
        load(folder)
    assert load(folder, **rate).lr == RATE


def test_averaged_images_and_plain_ones_in_one_folder(tmp_path, caplog):
    averaged, images, rate = left_by(tmp_path, "ftd")
    plain = tmp_path / "logged_files" / "CIFAR10" / "calm-sun-7"
    assert torch.equal(load(plain, **rate).images, images + 0.5)
    with caplog.at_level("INFO", logger="pad_fast"):
        load(averaged, **rate)
    assert "is read" not in caplog.text  # one kind alone
    shutil.copytree(plain, averaged, dirs_exist_ok=True)
    with caplog.at_level("INFO", logger="pad_fast"):
        assert torch.equal(load(averaged, **rate).images, images)
    assert "holds 6 distilled sets; ema_images_best.pt is read, images averaged over iterations" in caplog.text
    assert torch.equal(load(averaged / "images_best.pt", **rate).images, images + 0.5)
    (averaged / "ema_images_best.pt").unlink()
    assert torch.equal(load(averaged, **rate).images, images)
    (averaged / "ema_images_10.pt").unlink()
    assert torch.equal(load(averaged, **rate).images, images + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_no_set(tmp_path, family):
    folder, _, rate = left_by(tmp_path, family, "zca")
    with pytest.raises(StoreError, match=r"images_zca_10.pt holds pixels.* in images_10.pt or ema_images_10.pt: name"):
        load(folder / "images_zca_10.pt", **rate)
    for file in folder.glob("*images_*.pt"):
        if "zca" not in file.name:
            file.unlink()
    with pytest.raises(StoreError, match=r"no distilled set at .*; images_zca_0.pt, images_zca_10.pt are pixels"):
        load(folder, **rate)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_looked_for_is_named_and_what_lies_below(tmp_path, family, capsys):
    folder, *_ = left_by(tmp_path, family)
    named = "images_best.pt, images_N.pt, ema_images_best.pt and ema_images_N.pt .*sets lie further down, name one of "
    for above in (tmp_path, folder.parent):
        with pytest.raises(StoreError, match=rf"neither distilled.safetensors nor {named}.*{folder}"):
            load(above)
    assert main(["evaluate", str(folder.parent), "--dataset", "digits"]) == 2
    assert str(folder) in capsys.readouterr().err
    with pytest.raises(StoreError, match=r"no such file; name one of those beside it: (ema_)?images_best.pt"):
        load(folder / "images_500.pt")
    with pytest.raises(StoreError, match="labels_best.pt is not called as the images of a set are; name the images' "):
        load(folder / f"{'ema_' if family == 'ftd' else ''}labels_best.pt")


def test_of_many_only_a_few_are_named(tmp_path):
    for number in range(8):
        write_results(tmp_path / str(number), "mtt", *(torch.zeros(1, 1, 2, 2), torch.zeros(1).long()))
    with pytest.raises(StoreError, match="and 3 more$"):
        load(tmp_path)


def test_canvases_are_loaded_and_not_evaluated(tmp_path):
    folder = write_results(tmp_path, "mtt", torch.zeros(10, 1, 24, 24), CLASSES)
    canvases = load(folder, lr=RATE)
    said = r"\[1, 24, 24\], but digits has \[1, 8, 8\].*\. Canvases of MTT's texture mode"
    with pytest.raises(DatasetError, match=said):
        evaluate(canvases, load_dataset("digits"), whitening="mean-std", **SETTINGS)
    other = load(write_results(tmp_path / "other", "mtt", torch.zeros(10, 1, 12, 12), CLASSES), lr=RATE)
    with pytest.raises(DatasetError, match="evaluate on the data it came from$"):
        evaluate(other, load_dataset("digits"), whitening="mean-std", **SETTINGS)
