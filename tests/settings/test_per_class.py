"""Numbers of synthetic images of some classes' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pad_fast
from pad_fast.cli.main import main
from pad_fast.errors import ConfigError
from pad_fast.settings.per_class import canonical, counts_of
from pad_fast.settings.resolve import make_settings

from ..support.settings import SMALL, flags
from ..support.small import QUIET, small_data


def test_one_text_whatever_it_was_given_as(tmp_path: Path) -> None:
    (tmp_path / "numbers.yaml").write_text("dog: 2\ncat: 5\n")
    (tmp_path / "numbers.json").write_text('{"dog": 2, "cat": 5}')
    expected = '{"cat": 5, "dog": 2}'
    for given in (
        {"dog": 2, "cat": 5},
        "{dog: 2, cat: 5}",
        expected,
        tmp_path / "numbers.yaml",
        tmp_path / "numbers.json",
    ):
        assert canonical(given) == expected
    assert canonical({0: 3}) == canonical("{0: 3}") == '{"0": 3}'
    assert canonical(None) is None
    assert counts_of(expected, 1, ["ant", "cat", "dog"]) == [1, 5, 2] and counts_of(None, 4, ["a", "b"]) == [4, 4]


@pytest.mark.parametrize(
    "given", ["{cat: 0}", "{cat: 2.5}", "{cat: true}", "{cat}", "{cat: [", "nowhere.yaml", {}, "[1]"]
)
def test_what_are_no_numbers_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="ipc_per_class.*; give a mapping of class names to whole numbers"):
        make_settings(overrides={"ipc_per_class": given})


def test_a_class_that_there_is_not() -> None:
    with pytest.raises(
        ConfigError, match="names 'catt', which is no class of these data; they have ant, cat. Did you mean 'cat'"
    ):
        counts_of('{"catt": 2}', 1, ["ant", "cat"])


def test_from_end_to_end(tmp_path: Path) -> None:
    settings = {**SMALL, "iterations": 3, "eval_networks": 1}
    found = pad_fast.distill(small_data(), ipc={"1": 11, "2": 3}, out=tmp_path / "run", progress=QUIET, **settings)
    assert found.labels.bincount().tolist() == [1, 11, 3]
    assert found.label_logits is not None and found.label_logits.shape == (15, 3)
    kept = pad_fast.load(tmp_path / "run")
    assert torch.equal(kept.labels, found.labels) and kept.config["ipc_per_class"] == '{"1": 11, "2": 3}'
    again = pad_fast.distill(
        small_data(), config=tmp_path / "run" / "config.yaml", out=tmp_path / "run", resume=True, progress=QUIET
    )
    assert torch.equal(again.images, found.images)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 to 11" in page
    with pytest.raises(ConfigError, match="ipc_per_class names '7', which is no class"):
        pad_fast.distill(small_data(), ipc={"7": 2}, out=tmp_path / "other", progress=QUIET, **settings)
    assert not (tmp_path / "other" / "cache").exists()


def test_methods_without_experts_want_equal_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every class has the same number of images; leave it out"):
        pad_fast.distill(small_data(), method="dm", ipc={"1": 2}, out=tmp_path / "run", progress=QUIET)


def test_a_file_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "numbers.yaml").write_text("3: 4\n")
    out = tmp_path / "run"
    words = ["--ipc-per-class", str(tmp_path / "numbers.yaml"), "--no-eval-baselines", "--quiet"]
    assert main(["distill", "--out", str(out), *words, *flags({**SMALL, "iterations": 1, "eval_networks": 1})]) == 0
    (tmp_path / "numbers.yaml").unlink()
    assert pad_fast.load(out).labels.bincount().tolist() == [1, 1, 1, 4, 1, 1, 1, 1, 1, 1]
