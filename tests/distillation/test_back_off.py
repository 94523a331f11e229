"""Runs that go on where others stop: `back_off`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pad_fast import ExpertStore, trajectory_matching_loss
from pad_fast.data import DSA
from pad_fast.distillation import back_off
from pad_fast.distillation.back_off import WINDOW, BackOff, Fault
from pad_fast.distillation.iterations import make_mask
from pad_fast.distillation.metrics import read_history
from pad_fast.distillation.run import run
from pad_fast.distillation.schedule import draw_iteration
from pad_fast.distillation.state import DIVERGED, State, read_checkpoint
from pad_fast.distillation.trajectory_matching import Loop
from pad_fast.errors import DistillationStopped
from pad_fast.models import FlatNetwork
from pad_fast.runtime.progress import Progress
from pad_fast.runtime.rng import derive_seed
from pad_fast.settings.config import Config

from ..support.loops import CPU, rows_of, small_config, small_network, start, walks
from ..support.small import QUIET

FILES = ("checkpoint", "metrics.jsonl")
# Settings that stop a run, and what a run that goes on has made smaller.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "images that explode": ({"lr_img": 1e30}, "lr_img"),
    "images that explode slowly": ({"lr_img": 3e4, "threshold": 1.5}, "lr_img"),
    "labels that explode": ({"lr_y": 1e30}, "lr_y"),
    "a rate that becomes negative": ({"lr_lr": 1e4}, "lr_lr"),
    "a student that diverges": ({"lr_init": 3.0, "threshold": 1.05}, "alpha"),
    "a threshold that nothing passes": ({"threshold": 1e-6, "syn_steps": 1, "lr_init": 1e-3}, "threshold"),
}


@pytest.fixture(scope="module")
def network() -> FlatNetwork:
    return small_network()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, network: FlatNetwork) -> ExpertStore:
    return walks(tmp_path_factory.mktemp("walks") / "experts", network)


def bad_config(name: str, **changes: Any) -> Config:
    return small_config(**{"iterations": 90, "checkpoint_every": 7, **BAD[name][0], **changes})


def whole(
    network: FlatNetwork, store: ExpertStore, config: Config, folder: Path, *, late: int = 0, progress: Progress = QUIET
) -> State:
    folder.mkdir(exist_ok=True)
    state = start(config)
    run(Loop(network, store, config, CPU, late=late), state, folder=folder, key="k", history=[], progress=progress)
    return state


@pytest.mark.parametrize("name", BAD)
def test_what_stops_a_run_is_gone_on_from(network, store, tmp_path, capfd, name):
    """Fewer iterations are lost than are left, and what was to blame is what is made smaller."""
    config = bad_config(name)
    if name != "images that explode slowly":  # which is not noticed: every iteration is above the threshold, for ever
        with pytest.raises(DistillationStopped):
            whole(network, store, config, tmp_path / "stops")
    config = replace(config, back_off=True)
    state = whole(network, store, config, tmp_path / "goes on", progress=Progress())
    said = capfd.readouterr().err
    assert state.iteration == config.iterations == len(rows_of(tmp_path / "goes on"))
    assert state.watch is not None and state.watch.counts[BAD[name][1]] > 0
    assert all(bool(value.isfinite().all()) for value in state.learned().values()) and float(state.lr) > 0
    rows = rows_of(tmp_path / "goes on")
    assert sum(row["skipped"] for row in rows) == state.skipped < config.iterations
    assert sum(row["skipped"] for row in rows[-20:]) < 20, "it stands still"
    counts = [row["back_offs"] for row in rows]
    assert counts == sorted(counts) and counts[-1] == sum(state.watch.counts.values())
    # Once per kind, and once in the end.
    assert said.count("are only counted") == len(state.watch.counts)
    assert said.count(f"distill: back-offs: {counts[-1]}, ") == 1
    for setting, value in state.found.items():
        given = getattr(config, setting)
        assert value == 1 if setting == "threshold" else math.log2(given / value) in range(1, 110)


def test_a_run_that_needs_none_is_bit_for_bit_the_same(network, store, tmp_path):
    config = small_config(iterations=25, threshold=1.5, ema_decay=0.9)
    plain = whole(network, store, config, tmp_path / "plain")
    with_it = whole(network, store, replace(config, back_off=True), tmp_path / "with it")
    for name, value in plain.learned().items():
        assert torch.equal(value, with_it.learned()[name]), name
    assert rows_of(tmp_path / "with it") == [row | {"back_offs": 0} for row in rows_of(tmp_path / "plain")]


def test_without_it_updates_and_files_are_what_they_were(network, store, tmp_path):
    """The update in its old words, on the same gradients: not a bit may differ."""
    config = small_config(iterations=4)
    state = whole(network, store, config, tmp_path / "run")
    expected = start(config)
    momenta = {"images": config.momentum_img, "lr": config.momentum_lr, "labels": config.momentum_y}
    rates = {"images": config.lr_img, "lr": config.lr_lr, "labels": config.lr_y}
    values = {"images": expected.images, "lr": expected.lr, "labels": expected.label_logits}
    for iteration in range(config.iterations):
        drawn = draw_iteration(config, iteration, len(store), len(expected.images))
        leaves = {name: value.to(torch.float32).detach().requires_grad_() for name, value in values.items()}
        loss = trajectory_matching_loss(
            network,
            store.snapshot(drawn.experts[0], drawn.start_epochs[0])[None],
            store.snapshot(drawn.experts[0], drawn.start_epochs[0] + config.expert_epochs)[None],
            leaves["images"],
            leaves["labels"],
            leaves["lr"],
            batches=drawn.batches,
            mask=make_mask(config),
            augment=DSA(config.dsa).seeded(derive_seed(config.seed, "student dsa", iteration, 0)),
        )
        loss.sum().backward()
        for name, value in values.items():
            grad = leaves[name].grad
            assert grad is not None
            expected.momentum[name] = momenta[name] * expected.momentum[name] + grad.to(value.dtype)
            values[name] = value - rates[name] * expected.momentum[name]
    assert torch.equal(state.images, values["images"]) and torch.equal(state.label_logits, values["labels"])
    assert torch.equal(state.lr, values["lr"])
    with read_checkpoint(tmp_path / "run" / "checkpoint") as (tensors, described):
        assert described == {"format": "pad_fast checkpoint 1", "key": "k", "iteration": 4, "skipped": 0}
        names = {"images", "label_logits", "lr", "labels", "momentum.images", "momentum.labels", "momentum.lr"}
        assert set(tensors) == names
    row = rows_of(tmp_path / "run")[-1]
    assert {name for name in row if "." not in name} == {
        "iteration", "loss", "lr", "expert", "start_epoch", "skipped",
    }  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_losses_that_are_looked_at_late_change_nothing(network, store, tmp_path, name):
    """As on a GPU: iterations begun behind one that goes wrong are begun again."""
    config = bad_config(name, back_off=True)
    for late in (0, 6):
        whole(network, store, config, tmp_path / str(late), late=late)
    for file in FILES:
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "6" / file).read_bytes(), file


class Killed(BaseException):
    pass


@pytest.mark.parametrize("changes", [{}, {"lr_img": "auto"}], ids=repr)
@pytest.mark.parametrize("name", ["images that explode slowly", "a student that diverges"])
def test_killed_and_resumed_ends_with_the_same_files(network, store, tmp_path, name, changes):
    config = bad_config(name, back_off=True, iterations=60, **changes)
    whole(network, store, config, tmp_path / "whole")
    for killed in (3, 8, 15, 24, 30, 41, 57):
        folder = tmp_path / str(killed)
        folder.mkdir()

        def kill(row: Any, killed: int = killed) -> None:
            if row["iteration"] == killed:
                raise Killed

        loop = Loop(network, store, config, CPU, late=killed % 3)
        with pytest.raises(Killed):
            run(loop, start(config), folder=folder, key="k", history=[], progress=QUIET, observe=kill)
        state, history = start(config), []
        if killed > config.checkpoint_every:
            state = State.load(folder / "checkpoint", "k", CPU)
            history = read_history(folder / "metrics.jsonl", state.iteration)
            assert 0 < state.iteration <= killed
        run(Loop(network, store, config, CPU), state, folder=folder, key="k", history=history, progress=QUIET)
        for file in FILES:
            assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (file, killed)


def test_it_stops_in_the_end(network, store, tmp_path, monkeypatch):
    monkeypatch.setattr(back_off, "MOST", 1)
    config = bad_config("images that explode slowly", back_off=True)
    for late in (0, 6):
        with pytest.raises(DistillationStopped, match=r"out of proportion.*1 back-offs \(lr_img 1\).*checkpoint"):
            whole(network, store, config, tmp_path / str(late), late=late)
        rows = rows_of(tmp_path / str(late))
        assert rows[-1]["back_offs"] == 1 and 0 < rows[-1]["lr_img"] < config.lr_img
        assert State.load(tmp_path / str(late) / "checkpoint", "k", CPU).iteration == len(rows)
    for file in FILES:
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "6" / file).read_bytes(), file


def judged(losses: list[float], state: State, config: Config, *, skipped: bool = False) -> list[str]:
    """One window with these losses; what is said."""
    said: list[str] = []
    guard = BackOff(config, said.append)
    for loss in losses:
        guard.settled(state, {"loss": loss, "skipped": int(skipped)})
        state.iteration += 1
    assert guard.due(state)
    guard.judge(state)
    return said


def test_a_state_that_got_worse_is_left_for_a_good_one():
    config = small_config(back_off=True, threshold=None)
    state = start(config)
    first = state.images.clone()
    assert judged([0.8] * WINDOW, state, config) == []
    state.images += 0.1
    middle = state.images.clone()
    assert judged([0.9] * WINDOW, state, config) == []  # the window began with the first images
    state.label_logits *= 1.4
    assert torch.equal(state.kept["good"]["images"], first)
    said = judged([2.9] * WINDOW, state, config)
    assert len(said) == 1 and "the matching loss is 2.9, and was 0.8" in said[0] and "labels' step (lr_y)" in said[0]
    assert torch.equal(state.images, first) and torch.equal(state.label_logits, start(config).label_logits)
    assert state.found == {"lr_y": config.lr_y / 2} and not torch.equal(middle, first)
    # Nothing has moved since: a bad window alone blames nobody.
    assert judged([2.9] * WINDOW, state, config) == [] and state.found == {"lr_y": config.lr_y / 2}


@pytest.mark.parametrize(("best", "worst"), [(0.14, 0.73), (0.7, 1.4)])
def test_windows_of_a_sound_run_may_differ_by_what_its_start_epochs_do(best, worst):
    """As on the digits with ten images per class; and as where a student is never near."""
    config = small_config(back_off=True, threshold=1.5)
    state = start(config)
    for loss in (best, worst, worst, best):
        state.images += 0.01
        assert judged([loss] * WINDOW, state, config) == []
    assert state.found == {} and state.watch is not None and state.watch.counts == {}


def test_a_window_half_way_to_no_use_at_all_is_good_enough_to_return_to():
    config = small_config(back_off=True, threshold=1.0)
    for loss, good in ((0.35, True), (0.4, False)):
        state = start(config)
        judged([0.14] * WINDOW, state, config)
        state.images += 0.01
        judged([0.14] * WINDOW, state, config)
        kept = state.kept["good"]["images"].clone()
        judged([loss] * WINDOW, state, config)
        assert torch.equal(state.kept["good"]["images"], kept) != good


def test_rows_without_an_update_blame_what_has_moved_then_alpha_then_the_threshold():
    config = small_config(back_off=True, threshold=0.5)
    state = start(config)
    state.lr *= 3
    assert state.watch is not None
    state.watch.moved = True
    assert judged([2.0] * WINDOW, state, config, skipped=True) == []
    (said,) = judged([2.0] * WINDOW, state, config, skipped=True)
    assert "alpha's step (lr_lr)" in said and float(state.lr) == config.lr_init
    (said,) = judged([2.0] * WINDOW, state, config, skipped=True)
    assert "alpha, the student's learning rate" in said and float(state.lr) == config.lr_init / 2
    (said,) = judged([0.7] * WINDOW, state, config, skipped=True)
    assert "the threshold is raised to 1" in said and state.threshold(config) == 1


def test_alpha_is_halved_where_the_first_loss_is_not_finite():
    config = small_config(back_off=True)
    state = start(config)
    row = BackOff(config, lambda _: None).fault(state, Fault("the loss is nan", {"loss": math.nan, "skipped": 1}))
    assert float(state.lr) == config.lr_init / 2 and row["back_offs"] == state.skipped == state.iteration == 1
    assert state.found == {}


def test_without_a_threshold_a_student_far_away_is_left_alone():
    assert start(small_config(back_off=True)).threshold(small_config(back_off=True)) == DIVERGED
    assert start(small_config()).threshold(small_config()) is None


def test_a_state_to_try_something_on_is_a_copy(network, store):
    config = small_config(back_off=True, ema_decay=0.9)
    state = start(config)
    before = {name: value.clone() for name, value in state.tensors().items()}
    loop, trial = Loop(network, store, config, CPU), state.copy()
    loop.iterate(trial)
    trial.found["lr_img"] = 3.0
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())
    assert state.iteration == 0 and state.found == {} and not torch.equal(trial.images, state.images)
