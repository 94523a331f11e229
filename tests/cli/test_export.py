"""`pad-fast export`, and evaluating what others saved, from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from pad_fast import DistilledDataset, load, load_dataset
from pad_fast.cli.main import main
from pad_fast.data import fit_normalization
from pad_fast.data.distilled import DISTILLED, EXPORTS

from ..support.evaluation import real_images

FEW = ["--eval-networks", "2", "--eval-epochs", "3", "--no-eval-baselines", "--quiet"]


@pytest.fixture(scope="module")
def digits() -> DistilledDataset:
    data = load_dataset("digits")
    made = real_images(data, whitening=fit_normalization(data, "zca"))
    return replace(made.normalized(made.whitening), config={"dataset": "digits"})


def test_every_format(digits, tmp_path, capsys):
    digits.save(tmp_path / "run")
    for kind in EXPORTS:
        if kind == "hf":
            continue  # the next test
        assert main(["export", str(tmp_path / "run"), "--to", kind, "--out", str(tmp_path / kind)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / kind}{'/distilled.npz' if kind == 'npz' else ''}\n"
        read = load(tmp_path / kind)
        assert torch.equal(read.targets, digits.targets) and read.lr == digits.lr
        if kind != "png":
            assert torch.equal(read.images, digits.images)


def test_parquet(digits, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    digits.save(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    assert torch.equal(load(tmp_path / "hf").images, digits.images)


def test_what_cannot_be_is_refused_in_one_line(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits.save("run"), digits.export("trio", "trio"), digits.export("png", "png")
    torch.save({"mean": [0.5] * 3, "std": [0.2] * 3}, "other.pt")
    for words, said in (
        (["none", "--to", "png"], "no distilled set at none: there is neither distilled.safetensors nor"),
        (["run", "--to", "pngs"], "export format 'pngs' is unknown; use one of png, npz"),
        (["run", "--to", "npz", "--whitening", "zca"], "run says itself how it was normalised (zca); leave out"),
        (["run", "--to", "npz", "--normalize", "run"], "run says itself how it was normalised (zca); leave out"),
        (["trio", "--to", "npz", "--normalize", "other.pt"], "this normalisation was fitted on 3 channels"),
        (["trio", "--to", "png"], "carries no whitening"),
        (["trio", "--to", "png", "--whitening", "zca"], "is fitted to the real data; name them with --dataset"),
        (["png", "--to", "trio"], "trio holds images that networks are trained on, and these are pixels"),
        (["png", "--to", "npz", "--images", "picture"], "images_are='picture' is unknown"),
        (["run", "--to", "png", "--out", "png"], "is there already; name another folder"),
    ):
        given = words if "--out" in words else [*words, "--out", "out"]
        assert main(["export", *given]) == 2
        found = capsys.readouterr().err
        assert said in found and len(found.splitlines()) == 1, found
    assert not Path("out").exists()
    # The ways out, and what they write.
    assert main(["export", "trio", "--to", "png", "--out", "a", "--whitening", "zca", "--dataset", "digits"]) == 0
    assert torch.equal(load("a").images, load("png").images)
    assert main(["export", "png", "--to", "trio", "--out", "b", "--whitening", "zca", "--dataset", "digits"]) == 0
    expected = digits.whitening.apply(load("png").images)
    torch.testing.assert_close(load("b").images, expected)
    # Of two silent sets that were normalised differently, one gets its own before they are compared.
    assert main(["export", "trio", "--to", "npz", "--out", "own.npz", "--zca", "--dataset", "digits"]) == 0
    assert torch.equal(load("own.npz").whitening.transform, digits.whitening.transform)
    assert torch.equal(load("own.npz").images, digits.images)
    # By other names, and from a file, which needs no data.
    assert main(["export", "png", "--to", "trio", "--out", "c", "--zca", "--dataset", "digits"]) == 0
    assert main(["export", "png", "--to", "trio", "--out", "d", "--normalize", "run"]) == 0
    assert torch.equal(load("c").images, load("b").images) and torch.equal(load("d").images, load("b").images)


def test_nothing_is_kept_among_the_folders_of_classes(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits.export("png", "png")
    (Path("png") / "labels.csv").unlink()
    said = ["png", "--lr", "0.05", "--whitening", "zca", "--model", "ConvNetD1W8"]
    assert rows_of(*said) == rows_of(*said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "png", "rows.json"]
    assert load("png", lr=0.05).classes == 10


def rows_of(*arguments: str) -> dict[str, list[float]]:
    assert main(["evaluate", *arguments, *FEW, "--dataset", "digits", "--out", "rows.json"]) == 0
    return {row["name"]: row["accuracies"] for row in json.loads(Path("rows.json").read_text())["rows"]}


def test_others_sets_are_evaluated(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    probabilities = digits.label_logits.softmax(-1)
    arrays = {"labels": probabilities.numpy(), "lr": digits.lr}
    numpy.savez("own.npz", images=digits.images.numpy(), **arrays)
    numpy.savez("pixels.npz", images=(digits.pixels().clamp(0, 1) * 255).round().byte().numpy(), **arrays)
    digits.save("run"), digits.export("png", "png")
    (Path("run") / DISTILLED).rename("one.safetensors")
    said = ["--labels", "probabilities", "--whitening", "zca", "--model", "ConvNetD1W8"]
    rows = rows_of("own.npz", "pixels.npz", "png", *said)
    assert list(rows) == ["own.npz", "pixels.npz", "png"]
    assert Path("cache").is_dir()
    flattened = rows_of("own.npz", *[*said[2:], "--labels", "logits"])
    assert list(flattened.values())[0] != rows["own.npz"], "--labels does not matter here: the test proves nothing"
    shared = ["one.safetensors", "--model", "ConvNetD1W8"]
    (ours,) = rows_of(*shared).values()
    # Probabilities come back from logits with their last bits rounded.
    assert rows["own.npz"] == pytest.approx(ours, abs=0.02)
    assert main(["evaluate", "own.npz", "--labels", "logit", "--dataset", "digits", *FEW]) == 2
    assert "labels_are='logit' is unknown" in capsys.readouterr().err
