"""`pad-fast evaluate` with several sets: a row each, tested as it was normalised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pad_fast import DistilledDataset, load_dataset
from pad_fast.cli.main import main
from pad_fast.data import fit_normalization

from ..support.evaluation import real_images
from ..support.small import MODEL

FEW = ["--eval-networks", "2", "--eval-epochs", "3", "--no-eval-baselines", "--quiet"]


@pytest.fixture(scope="module")
def digits() -> list[DistilledDataset]:
    """Real digits, once whitened by ZCA and once normalised with mean and std."""
    data = load_dataset("digits")
    rows = torch.cat([data.images_of_class(label)[:2] for label in range(data.classes)])
    sets = []
    for kind in ("zca", "mean-std"):
        white = fit_normalization(data, kind)
        sets.append(real_images(data, images=white.apply(data.train_images[rows]), whitening=white))
    return [replace(each, config={**each.config, "dataset": "digits"}) for each in sets]


def rows_of(*arguments: str, out: Path) -> dict[str, list[float]]:
    assert main(["evaluate", *arguments, *FEW, "--out", str(out)]) == 0
    return {row["name"]: row["accuracies"] for row in json.loads(out.read_text())["rows"]}


def test_beside_each_other_as_apart(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, each in zip(("white", "plain"), digits, strict=True):
        each.save(name)
    apart = [
        rows_of(
            name,
            out=tmp_path / "rows.json",
        )
        for name in ("white", "plain")
    ]
    together = rows_of("white", "plain", "--cache-dir", "elsewhere", out=tmp_path / "rows.json")
    assert list(together) == ["white", "plain"]
    assert list(together.values()) == [next(iter(rows.values())) for rows in apart]
    assert together["white"] != together["plain"]
    assert "known already" not in capsys.readouterr().err


def test_what_does_not_go_together_is_refused_before_any_work(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits[0].save("one")
    replace(digits[1], config={**digits[1].config, "dataset": "cifar10"}).save("other")
    replace(digits[1], config={}).save("silent")
    for words, said in (
        (["one", "one"], "a set is named twice among one, one; name each once"),
        (["one", "other"], "one was distilled from digits and other from cifar10; name the data"),
        (["one", "other", "--ddranking", "there"], "--ddranking writes one set; name one PATH with it"),
        (["silent"], "silent does not say which data it was distilled from; name it with --dataset"),
    ):
        assert main(["evaluate", *words, *FEW]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other", "silent"]
    # The ways out.
    assert list(rows_of("one", "silent", out=tmp_path / "rows.json")) == ["one", "silent"]
    assert list(rows_of("one", "other", "--dataset", "digits", out=tmp_path / "rows.json")) == ["one", "other"]
    assert main(["evaluate", "one", *FEW, "--ddranking", "there"]) == 0


def test_how_silent_sets_were_normalised(digits, tmp_path, monkeypatch, capsys):
    """By name and from a file: the same numbers as those of the set that says it."""
    monkeypatch.chdir(tmp_path)
    data, own = ["--dataset", "digits", "--model", MODEL, "--quiet"], {}
    for name, each in zip(("white", "plain"), digits, strict=True):
        replace(each, config={}).save(name)
        each.export(f"silent {name}", "trio")
        (own[name],) = rows_of(name, *data, out=tmp_path / "rows.json").values()
    assert own["white"] != own["plain"]
    digits[0].whitening.save("zca.safetensors")
    for name, words in (
        ("white", ["--zca"]),
        ("white", ["--normalize", "zca.safetensors"]),
        ("plain", ["--mean-std"]),
        ("plain", ["--normalize", "plain"]),
    ):
        (found,) = rows_of(f"silent {name}", *data, *words, out=tmp_path / "rows.json").values()
        assert found == own[name], words
    for words, said in (
        (["white", "--mean-std"], "says itself how it was normalised (zca); leave out whitening= (--whitening, --zca,"),
        (["silent white", "--normalize", "none.pt"], "no normalization at none.pt: there is no such file"),
        (["silent white", "--normalize", "silent plain"], "silent plain is a distilled set that carries no whitening"),
    ):
        assert main(["evaluate", *words, *data, *FEW]) == 2
        assert said in capsys.readouterr().err
    for words in (["--mean-std"], ["--normalize", "plain"], ["--whitening", "zca"]):
        with pytest.raises(SystemExit):
            main(["evaluate", "silent white", "--zca", *words, *data, *FEW])
        assert f"argument {words[0]}: not allowed with argument --zca" in capsys.readouterr().err
