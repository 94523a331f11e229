"""The search for the images' learning rate: `lr_img="auto"`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import pad_fast
from pad_fast import ExpertStore, Progress
from pad_fast.distillation import rate_search
from pad_fast.distillation.rate_search import STEPS, choose, find_rate, is_due, prepare
from pad_fast.distillation.run import run
from pad_fast.distillation.state import State
from pad_fast.distillation.trajectory_matching import Loop
from pad_fast.errors import ConfigError, DistillationStopped
from pad_fast.models import FlatNetwork

from ..support.loops import CPU, rows_of, small_config, small_network, start, walks
from ..support.settings import SMALL
from ..support.small import QUIET


@pytest.fixture(scope="module")
def network() -> FlatNetwork:
    return small_network()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, network: FlatNetwork) -> ExpertStore:
    return walks(tmp_path_factory.mktemp("walks") / "experts", network)


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({1.0: 0.9, 10.0: 0.8, 100.0: 0.7, 1000.0: math.inf}, 100.0),
        ({1.0: 0.9, 10.0: 0.703, 100.0: 0.7, 1000.0: 0.8}, 10.0),
        ({1.0: math.inf, 10.0: math.inf}, 1.0),
    ],
)
def test_the_smallest_rate_that_is_as_good_as_the_best(losses, chosen):
    assert choose(losses) == chosen


def test_every_candidate_sees_the_same_draws_and_the_state_stays(network, store, monkeypatch):
    config = small_config(lr_img="auto")
    state = start(config)
    prepare(state, config)
    loop = Loop(network, store, config, CPU)
    loop.iterate(state)
    assert is_due(state) and torch.equal(state.images, start(config).images), "it has no rate yet"
    before = {name: value.clone() for name, value in state.tensors().items()}
    tried: dict[float, list[tuple[float, float]]] = {}
    settle = loop.settle

    def note(trial: State, pending: Any) -> dict[str, float]:
        row = settle(trial, pending)
        tried.setdefault(trial.found["lr_img"], []).append((row["iteration"], row["start_epoch"]))
        return row

    monkeypatch.setattr(loop, "settle", note)
    said: list[str] = []
    find_rate(loop, state, said.append)
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())
    assert state.iteration == 1 and not is_due(state)
    whole = [draws for draws in tried.values() if len(draws) == STEPS]
    assert len(tried) == 4 and len(whole) > 1 and all(draws == whole[0] for draws in whole)
    rates = sorted(tried)
    assert state.found["lr_img"] in rates
    assert all(math.log10(rate) == pytest.approx(round(math.log10(rate))) for rate in rates)
    # The largest takes the images about as far as they are large.
    step = rates[-1] * float(before["momentum.images"].norm()) / float(before["images"].norm())
    assert 10**-0.5 <= step <= 10**0.5
    assert len(said) == 1 and f"lr_img is {state.found['lr_img']:g}" in said[0]


def test_the_rate_is_found_once_whenever_it_is_looked_at(network, store, tmp_path):
    config = small_config(lr_img="auto", iterations=12)
    for late in (0, 5):
        folder = tmp_path / str(late)
        folder.mkdir()
        state = start(config)
        run(Loop(network, store, config, CPU, late=late), state, folder=folder, key="k", history=[], progress=QUIET)
    for name in ("checkpoint", "metrics.jsonl"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "5" / name).read_bytes(), name
    rows = rows_of(tmp_path / "0")
    assert [row["lr_img"] for row in rows] == [0.0, *[state.found["lr_img"]] * 11]
    assert State.load(tmp_path / "0" / "checkpoint", "k", CPU).found == state.found
    # From there on it is the run with that rate.
    fixed = replace(config, lr_img=state.found["lr_img"])
    twin, loop = start(fixed), Loop(network, store, fixed, CPU)
    twin.found["lr_img"] = 0.0
    loop.iterate(twin)
    twin.found.clear()
    for _ in range(11):
        loop.iterate(twin)
    assert torch.equal(twin.images, state.images) and torch.equal(twin.lr, state.lr)


def test_a_run_without_updates_stops_with_the_usual_advice(network, store, tmp_path):
    config = small_config(lr_img="auto", threshold=1e-6, syn_steps=1, iterations=80)
    with pytest.raises(DistillationStopped, match="all of the first 50 iterations were skipped"):
        run(Loop(network, store, config, CPU), start(config), folder=tmp_path, key="k", history=[], progress=QUIET)


def test_a_loop_of_its_own_needs_a_number(network, store):
    config = small_config(lr_img="auto")
    with pytest.raises(ConfigError, match="lr_img is 'auto', and no search has found its value yet"):
        Loop(network, store, config, CPU).iterate(start(config))


@pytest.mark.parametrize("method", ["pad", "dm", "dc"])
def test_from_end_to_end(tmp_path, capfd, method):
    other = {} if method == "pad" else {"threshold": None}
    settings = {**SMALL, **other, "method": method, "lr_img": "auto", "eval_baselines": False}
    result = pad_fast.distill(out=tmp_path / "run", **settings, progress=Progress())
    assert capfd.readouterr().err.count("distill: lr_img is ") == 1
    assert result.config["lr_img"] == "auto" and pad_fast.load(tmp_path / "run").config["lr_img"] == "auto"
    found = {row["lr_img"] for row in result.history[1:]}
    assert len(found) == 1 and min(found) > 0
    # The same settings are the same run, and go on from its rate without another search.
    again = pad_fast.distill(config=tmp_path / "run" / "config.yaml", out=tmp_path / "run", progress=Progress())
    said = capfd.readouterr().err
    assert "distill: reusing" in said and "lr_img is" not in said and torch.equal(again.images, result.images)
    more = {**settings, "iterations": SMALL["iterations"] + 3}
    longer = pad_fast.distill(out=tmp_path / "run", **more, resume=True, progress=QUIET)
    assert {row["lr_img"] for row in longer.history[1:]} == found
    with pytest.raises(ConfigError, match="lr_img: 'auto', now 3"):
        pad_fast.distill(out=tmp_path / "run", **{**more, "lr_img": 3.0}, progress=QUIET)


def test_the_search_takes_a_few_dozen_iterations():
    assert len(rate_search.POWERS) * STEPS <= 48
