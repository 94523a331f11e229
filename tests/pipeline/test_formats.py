"""Every tensor file of ours says its format, and its reader compares it with the one it reads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pad_fast import Difficulty, DistilledDataset
from pad_fast.data import Normalization, fit_normalization
from pad_fast.data.distilled import load
from pad_fast.distillation.state import State
from pad_fast.errors import StoreError
from pad_fast.evaluation.results import Results
from pad_fast.experts import ExpertStore
from pad_fast.runs.film import read_film, write_frame
from pad_fast.runs.folder import read_run
from pad_fast.runs.preview import read_preview, write_preview
from pad_fast.runtime import files, tensor_files
from pad_fast.scoring.networks import ScoreNetwork
from pad_fast.settings.config import Config

from ..support.small import small_data

CPU = torch.device("cpu")
RESULT = {"trained_on": "something"}
DIFFICULTY = Difficulty(torch.zeros(38), list(small_data().images_by_class()), "el2n")


def state() -> State:
    images, labels = torch.zeros(3, 1, 8, 8), torch.arange(3)
    return State.start(images, torch.eye(3), labels, Config(), CPU)


def distilled() -> DistilledDataset:
    return DistilledDataset(torch.zeros(3, 1, 8, 8), None, torch.arange(3), 0.1, None, {})


def network() -> ScoreNetwork:
    return ScoreNetwork(torch.zeros(5), {}, torch.zeros(4))


@dataclass(frozen=True)
class Kind:
    """A file that is read again only when it is ours, whole, and of this version's format."""

    what: str
    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    way_out: str


KINDS = (
    Kind(
        "checkpoint",
        "checkpoint",
        lambda folder: state().save(folder / "checkpoint", "key"),
        lambda folder: State.load(folder / "checkpoint", "key", CPU),
        "delete it to start afresh",
    ),
    Kind("distilled set", "distilled.safetensors", lambda folder: distilled().save(folder), load, "repeat the run"),
    Kind(
        "difficulty scores",
        "scores.safetensors",
        lambda folder: DIFFICULTY.save(folder / "scores.safetensors"),
        lambda folder: Difficulty.load(folder / "scores.safetensors"),
        "delete it and compute the scores again",
    ),
    Kind(
        "score network",
        "network.safetensors",
        lambda folder: network().save(folder / "network.safetensors", "key"),
        lambda folder: ScoreNetwork.load(folder / "network.safetensors", "key"),
        "delete it to train this network again",
    ),
    Kind(
        "preview",
        "preview.safetensors",
        lambda folder: write_preview(folder, small_data(), fit_normalization(small_data(), "mean-std"), DIFFICULTY),
        read_preview,
        "repeat the run",
    ),
    Kind(
        "film",
        "film.safetensors",
        lambda folder: write_frame(
            folder, 0, distilled().images, distilled().labels, fit_normalization(small_data(), "mean-std"), 1
        ),
        read_film,
        "it is only shown on the page: delete it",
    ),
    Kind(
        "evaluation result",
        "*.safetensors",
        lambda folder: Results(folder).put(RESULT, accuracy=torch.tensor(12.5)),
        lambda folder: Results(folder).get(RESULT),
        "delete it to evaluate this network again",
    ),
)


def of_format(path: Path, name: str | None) -> str:
    """Rewrite a file as one of another format, or as one that says none; returns the format it had."""
    tensors, described = tensor_files.unpack_tensors(path.read_bytes())
    sealed = described.pop("checksum", None) is not None
    before = described.pop("format")
    if name is not None:
        described["format"] = name
    path.write_bytes(tensor_files.pack_tensors(tensors, tensor_files.seal(described) if sealed else described))
    return str(before)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.what for kind in KINDS])
def test_files_of_another_format_are_refused(tmp_path: Path, kind: Kind) -> None:
    kind.write(tmp_path)
    assert kind.read(tmp_path) is not None
    (path,) = tmp_path.glob(kind.file)
    before = of_format(path, "pad_fast thing 99")
    assert before.startswith("pad_fast ")
    assert before.endswith(" 1")
    with pytest.raises(StoreError) as refused:
        kind.read(tmp_path)
    said = str(refused.value)
    assert said.startswith(f"{path} has format 'pad_fast thing 99'; this version reads {before!r} ({kind.what}); ")
    assert kind.way_out in said


@pytest.mark.parametrize("kind", KINDS, ids=[kind.what for kind in KINDS])
@pytest.mark.parametrize("damage", ["short", "empty", "words", "foreign", "list"])
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, kind: Kind, damage: str) -> None:
    from safetensors.torch import save

    kind.write(tmp_path)
    (path,) = tmp_path.glob(kind.file)
    path.write_bytes(
        {
            "short": path.read_bytes()[:-3],
            "empty": b"",
            "words": "größer als nötig, aber kein Tensor".encode("latin-1"),
            "foreign": save({"weight": torch.zeros(2)}),
            "list": save({"weight": torch.zeros(2)}, {"pad_fast": "[1, 2]"}),
        }[damage]
    )
    with pytest.raises(StoreError) as refused:
        kind.read(tmp_path)
    said = str(refused.value)
    assert said.startswith(f"{path} is damaged or no {kind.what} of pad_fast (")
    assert kind.way_out in said


def test_results_without_a_format_are_read(tmp_path: Path) -> None:
    """Those of earlier versions said none."""
    Results(tmp_path).put(RESULT, accuracy=torch.tensor(12.5))
    (path,) = tmp_path.iterdir()
    of_format(path, None)
    found = Results(tmp_path).get(RESULT)
    assert found is not None
    assert float(found["accuracy"]) == 12.5


def test_what_is_no_cache_has_to_say_its_format(tmp_path: Path) -> None:
    DIFFICULTY.save(tmp_path / "scores.safetensors")
    of_format(tmp_path / "scores.safetensors", None)
    with pytest.raises(StoreError, match="says no format; this version reads 'pad_fast difficulty 1'"):
        Difficulty.load(tmp_path / "scores.safetensors")


def test_a_fitted_zca_of_another_format_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = small_data()

    def fit() -> Normalization:
        return fit_normalization(data, "zca", caches=[tmp_path])

    fit()
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    caplog.clear()  # what is said of the data's pixels
    with caplog.at_level(logging.INFO, logger="pad_fast"):
        fit()
        assert not caplog.messages
        of_format(path, "pad_fast thing 99")
        fit()
        (said,) = caplog.messages
        assert "has format 'pad_fast thing 99'" in said
        assert said.endswith("it is computed again")
        assert path.read_bytes() == written
        path.write_bytes(written[:-9])
        fit()
        assert "is damaged" in caplog.messages[1]
        assert path.read_bytes() == written
    of_format(path, None)  # as earlier versions wrote it
    before = path.read_bytes()
    fit()
    assert path.read_bytes() == before


def test_experts_have_the_format_of_their_store(tmp_path: Path) -> None:
    store = ExpertStore.create(tmp_path, parameter_count=3, epochs=1, metadata={})
    store.append(torch.ones(2, 3))
    sealed = files.read_json(tmp_path / "store.json", "expert store")
    plain = {**tensor_files.unseal(sealed), "format": "pad_fast experts 99"}
    files.write_json(tmp_path / "store.json", tensor_files.seal(plain))
    with pytest.raises(StoreError, match=r"store\.json has format 'pad_fast experts 99'; this version reads"):
        ExpertStore.open(tmp_path)


def test_a_report_goes_without_files_of_another_format(tmp_path: Path) -> None:
    """A page is written all the same, and says what it goes without and why."""
    files.write_json(tmp_path / "run.json", {"ipc": 1})
    write_preview(tmp_path, small_data(), fit_normalization(small_data(), "mean-std"), None)
    state().save(tmp_path / "checkpoint", "key")
    assert read_run(tmp_path).distilled is not None
    of_format(tmp_path / "checkpoint", "pad_fast checkpoint 99")
    of_format(tmp_path / "preview.safetensors", "pad_fast preview 99")
    run = read_run(tmp_path)
    assert run.distilled is None
    assert run.preview is None
    assert "checkpoint has format 'pad_fast checkpoint 99'" in " ".join(run.notes)
    assert "preview.safetensors has format 'pad_fast preview 99'" in " ".join(run.notes)
