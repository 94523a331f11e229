"""The same data under another name: stages are found again, runs go on, and nothing is trained twice."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pad_fast import Config, distill, load_dataset, resume
from pad_fast.cli.main import main
from pad_fast.cli.parser import parse
from pad_fast.data.sources import absolute, needs_folder
from pad_fast.errors import ConfigError, DatasetError
from pad_fast.pipeline.checks import as_recorded, with_places
from pad_fast.pipeline.distill import _label
from pad_fast.pipeline.sweep import sweep
from pad_fast.runs.folder import read_description

from ..support.settings import SMALL
from ..support.small import QUIET

TINY = {
    **SMALL,
    "iterations": 2,
    "checkpoint_every": 1,
    "eval_networks": 1,
    "eval_epochs": 1,
    "eval_baselines": False,
    "progress": QUIET,
}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A data set in `data`, a copy of it, one that differs in a pixel, and the folder they lie in."""
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "ab":
            for number in range(6):
                path = tmp_path / "data" / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draws.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    shutil.copytree(tmp_path / "data", tmp_path / "scratch")
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    Image.new("L", (8, 8)).save(tmp_path / "other" / "train" / "a" / "0.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spellings(folder: Path) -> list[str]:
    return ["imagefolder:./data/", f"imagefolder:{folder / 'data'}", f"imagefolder:{folder}/scratch", "./data"]


def files_of(folder: Path) -> dict[str, bytes]:
    kept = ("cache/scores", "cache/experts", "distilled", "checkpoint", "config", "run.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and str(p.relative_to(folder)).startswith(kept)}  # fmt: skip


@pytest.mark.parametrize("which", range(4))
def test_a_run_goes_on_under_another_spelling(pictures, which, monkeypatch):
    distill("imagefolder:data", out="run", **TINY)
    before = files_of(pictures / "run")
    other = spellings(pictures)[which]
    distill(other, out="run", **TINY)
    assert files_of(pictures / "run") == before
    monkeypatch.setattr("pad_fast.pipeline.pipeline.train_as_configured", _refuse_to_train)
    continued = distill(other, out="run", resume=True, **{**TINY, "iterations": 4})
    assert (
        len(continued.history) == 4 and read_description(pictures / "run")["dataset"] == f"imagefolder:{pictures}/data"
    )


def _refuse_to_train(config, data, normalization, difficulty, out, device, progress):
    from pad_fast.experts import ExpertStore

    assert ExpertStore.complete(out, config.num_experts), "experts were to be trained again"
    return ExpertStore.open(out)


def test_other_data_under_the_same_name_are_refused(pictures):
    distill("imagefolder:data", out="run", **TINY)
    shutil.rmtree("data"), shutil.move("other", "data")
    with pytest.raises(ConfigError, match="dataset_fingerprint"):
        distill("imagefolder:data", out="run", **TINY)


def test_an_explicit_resolution_that_changes_nothing(pictures):
    distill("imagefolder:data", out="run", **TINY)
    before = files_of(pictures / "run")
    distill("imagefolder:data", out="run", resolution=8, **TINY)
    assert files_of(pictures / "run") == before


def test_a_sweep_is_completed_under_another_spelling(pictures):
    given = {key: value for key, value in TINY.items() if key != "eval_baselines"}
    sweep("imagefolder:data", out="sweep", prune=["none"], **given)
    before = files_of(pictures / "sweep")
    result = sweep(f"imagefolder:{pictures}/scratch", out="sweep", prune=["none", "hardest:0.2"], **given)
    assert result is not None and result.table().count("hardest") == 1
    after = files_of(pictures / "sweep")
    assert {name: after[name] for name in before} == before


def test_relative_paths_are_resolved_when_a_run_starts(pictures, monkeypatch):
    """Its data are found again from anywhere, under every spelling of a path, and so are experts and order."""
    for number, spelled in enumerate(["imagefolder:data", "data", "./data/", Path("data")]):
        distill(spelled, out=f"run{number}", **TINY)
        assert read_description(pictures / f"run{number}")["dataset"] == f"imagefolder:{pictures}/data"
    store, order = (next((pictures / "run0" / "cache").glob(f"{kind}-*")) for kind in ("experts", "scores"))
    given = {"buffer_path": str(store.relative_to(pictures)), "order_file": str(order.relative_to(pictures))}
    distill("imagefolder:data", out="given", **{**TINY, **given})
    described = read_description(pictures / "given")
    assert {name: described[name] for name in given} == {"buffer_path": str(store), "order_file": str(order)}
    before = files_of(pictures / "given")
    monkeypatch.chdir("/")
    words = ["evaluate", str(pictures / "run0"), "--eval-networks", "1", "--eval-epochs", "1", "--no-eval-baselines"]
    assert main([*words, "--quiet"]) == 0
    assert len(resume(pictures / "given", progress=False)) == 2 and files_of(pictures / "given") == before


def test_a_run_that_recorded_relative_paths_goes_on(pictures):
    """As those of earlier versions did: their stages are found by these words."""
    distill("imagefolder:data", out="run", **TINY)
    store = next((pictures / "run" / "cache").glob("experts-*")).relative_to(pictures)
    distill("imagefolder:data", out="given", buffer_path=str(store), **TINY)
    path = pictures / "given" / "run.json"
    path.write_text(path.read_text().replace(str(pictures / store), str(store)))
    config = with_places(Config(buffer_path=str(store)))
    assert config.buffer_path == str(pictures / store)
    data = load_dataset("imagefolder:data")
    assert as_recorded(config, data, pictures / "given").buffer_path == str(store)
    assert as_recorded(Config(buffer_path="/elsewhere"), data, pictures / "given").buffer_path == "/elsewhere"


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("imagefolder:data", "imagefolder:{here}/data"),
        ("ImageFolder:./data", "imagefolder:{here}/data"),
        ("./data", "imagefolder:{here}/data"),
        ("data", "imagefolder:{here}/data"),
        ("set.npz", "{here}/set.npz"),
        ("hf:data,label=fine", "hf:{here}/data,label=fine"),
        ("hf:mnist", "hf:mnist"),
        ("hf:", "hf:"),
        ("mnist", "mnist"),
        ("tensors", "tensors"),
    ],
)
def test_absolute(spelled, meant, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "cifar10").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute(spelled) == meant.format(here=tmp_path)
    assert absolute("cifar10") == "cifar10", "a name that is known is that data set's"
    assert needs_folder("cifar10") and not needs_folder("digits") and needs_folder(spelled) == (spelled == "mnist")


def test_a_set_whose_data_were_named_from_elsewhere_says_so(pictures, monkeypatch):
    """As runs of earlier versions named relative paths."""
    result = distill("imagefolder:data", out="run", **TINY)
    replace(result, config={**result.config, "dataset": "imagefolder:data"}).save("run")
    monkeypatch.chdir("/")
    words = ["evaluate", str(pictures / "run"), "--eval-networks", "1", "--eval-epochs", "1", "--no-eval-baselines"]
    options = parse([*words, "--quiet"])
    with pytest.raises(DatasetError, match="'imagefolder:data', as it was named then and there; name .* --dataset"):
        options.command.run(options)
    options = parse([*words, "--quiet", "--dataset", f"imagefolder:{pictures}/scratch"])
    options.command.run(options)


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        ("digits", "digits"),
        ("CIFAR-10", "cifar-10"),
        ("imagefolder:/a/My Data", "my-data"),
        ("imagefolder:/a/My Data/", "my-data"),
        ("/a/b///", "b"),
        ("imagefolder:data", "imagefolder-data"),
        ("imagefolder:data/", "imagefolder-data"),
        ("imagefolder:.", "{here}"),
        ("./", "{here}"),
        ("imagefolder:sub/..", "{here}"),
        ("imagefolder:/", "data"),
        ("/", "data"),
    ],
)
def test_runs_of_different_data_get_different_folders(dataset, label, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert _label(dataset) == label.format(here="here")
    assert os.sep not in _label(dataset)
