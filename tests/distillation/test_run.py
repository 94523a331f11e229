"""The distillation loop against a plain one written with torch.optim and autograd through every step."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pad_fast import ExpertStore, trajectory_matching_loss
from pad_fast.data import DSA
from pad_fast.distillation import trajectory_matching
from pad_fast.distillation.iterations import make_mask
from pad_fast.distillation.metrics import MetricsLog, read_history, read_metrics
from pad_fast.distillation.run import run
from pad_fast.distillation.schedule import draw_iteration
from pad_fast.distillation.skipping import PATIENCE
from pad_fast.distillation.state import State
from pad_fast.distillation.trajectory_matching import Loop
from pad_fast.errors import DistillationStopped, InputError, StoreError
from pad_fast.experts.snapshots import Snapshots
from pad_fast.models import FlatNetwork
from pad_fast.runtime.progress import Progress
from pad_fast.runtime.rng import derive_seed
from pad_fast.settings.config import Config

from ..support.comparison import relative_error
from ..support.loops import CPU, rows_of, small_config, small_network, start, walks

QUIET = Progress(quiet=True)


@pytest.fixture
def network() -> FlatNetwork:
    return small_network()


@pytest.fixture
def store(tmp_path: Path, network: FlatNetwork) -> ExpertStore:
    return walks(tmp_path / "experts", network)


def plain_loop(network: FlatNetwork, store: ExpertStore, config: Config) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """The published loop in its own words: torch.optim, autograd through all steps, nothing of ours but the draws."""
    state = start(config)
    images, logits = state.images.requires_grad_(), state.label_logits.requires_grad_()
    lr = torch.tensor(config.lr_init, dtype=torch.float64, requires_grad=True)
    optimizers = [
        torch.optim.SGD([images], lr=config.lr_img, momentum=config.momentum_img),
        torch.optim.SGD([lr], lr=config.lr_lr, momentum=config.momentum_lr),
    ]
    if config.soft_labels:
        optimizers.append(torch.optim.SGD([logits], lr=config.lr_y, momentum=config.momentum_y))
    first = int(config.mask_ratio * network.parameter_count)
    losses = []
    for iteration in range(config.iterations):
        drawn = draw_iteration(config, iteration, len(store), len(images))
        dsa = DSA(config.dsa).seeded(derive_seed(config.seed, "student dsa", iteration, 0))
        (expert,), (first_epoch,) = drawn.experts, drawn.start_epochs
        begin = store.snapshot(expert, first_epoch)
        target = store.snapshot(expert, first_epoch + config.expert_epochs)
        theta = begin.clone().requires_grad_()
        for step, batch in enumerate(drawn.batches):
            out = network(theta, dsa(images[batch], step))
            targets = logits[batch].softmax(-1) if config.soft_labels else state.labels[batch]
            (g,) = torch.autograd.grad(functional.cross_entropy(out, targets), theta, create_graph=True)
            theta = theta - lr.float() * g
        loss = (theta - target)[first:].square().sum() / (begin - target)[first:].square().sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return images.detach(), logits.detach(), lr.detach(), losses


@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
def test_iterations_equal_the_plain_loop(network, store, soft):
    config = small_config(soft_labels=soft)
    images, logits, lr, losses = plain_loop(network, store, config)
    state, loop = start(config), Loop(network, store, config, CPU)
    rows = [loop.iterate(state) for _ in range(config.iterations)]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    before = start(config)
    # Compared as updates: next to the images themselves any gradient would look right.
    assert relative_error(state.images - before.images, images - before.images) < 1e-4
    assert float(state.lr - config.lr_init) == pytest.approx(float(lr - config.lr_init), rel=1e-4)
    if soft:
        assert relative_error(state.label_logits - before.label_logits, logits - before.label_logits) < 1e-4
    else:
        assert torch.equal(state.label_logits, before.label_logits)


def test_exact_and_unrolled_gradients_distil_the_same_images(network, store):
    results = []
    for gradient in ("exact", "unroll"):
        config = small_config(gradient=gradient)
        state, loop = start(config), Loop(network, store, config, CPU)
        for _ in range(config.iterations):
            loop.iterate(state)
        results.append(state.images - start(config).images)
    assert relative_error(results[0], results[1]) < 1e-4


@pytest.mark.parametrize("mask", ["depth", "loss"])
def test_trajectories_are_averaged_on_the_same_batches(network, store, mask):
    config = small_config(iterations=1, trajectories=3, lr_img=1e4, lr_lr=0.0, mask=mask)
    together = start(config)
    row = Loop(network, store, config, CPU).iterate(together)
    drawn = draw_iteration(config, 0, 2, 9)
    assert set(drawn.experts) == {0, 1} and len(set(drawn.start_epochs)) > 1
    # One at a time, as separate losses.
    grads, losses = [], []
    for expert, first_epoch in zip(drawn.experts, drawn.start_epochs, strict=True):
        images = start(config).images.requires_grad_()
        loss = trajectory_matching_loss(
            network,
            store.snapshot(expert, first_epoch),
            store.snapshot(expert, first_epoch + config.expert_epochs),
            images,
            start(config).label_logits,
            config.lr_init,
            batches=drawn.batches,
            mask=make_mask(config),
            augment=DSA(config.dsa).seeded(derive_seed(config.seed, "student dsa", 0, 0)),
            gradient="unroll",
        )
        grads.append(torch.autograd.grad(loss, images)[0])
        losses.append(float(loss.detach()))
    assert max(losses) - min(losses) > 1e-3, "the same trajectory three times"
    assert row["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert relative_error((start(config).images - together.images) / 1e4, sum(grads) / 3) < 1e-4


def test_trajectories_are_one_call(network, store, monkeypatch):
    """One launch sequence for all of them is what fills a GPU."""
    shapes = []
    original = trajectory_matching.trajectory_matching_loss

    def record(network, theta_start, *rest, **options):
        shapes.append(list(theta_start.shape))
        return original(network, theta_start, *rest, **options)

    monkeypatch.setattr(trajectory_matching, "trajectory_matching_loss", record)
    for trajectories in (1, 3):
        config = small_config(trajectories=trajectories)
        Loop(network, store, config, CPU).iterate(start(config))
    assert shapes == [[1, network.parameter_count], [3, network.parameter_count]]


def test_moving_average_of_the_images(network, store):
    config = small_config(ema_decay=0.8)
    state, loop = start(config), Loop(network, store, config, CPU)
    expected = state.images.clone()
    for _ in range(3):
        loop.iterate(state)
        expected = 0.8 * expected + 0.2 * state.images
    assert state.average is not None
    assert torch.allclose(state.average, expected, atol=1e-6)
    assert not torch.allclose(state.average, state.images)


def test_above_the_threshold_nothing_changes(network, store):
    config = small_config(threshold=1e-6)
    state, loop = start(config), Loop(network, store, config, CPU)
    row = loop.iterate(state)
    assert row["skipped"] == 1 and state.skipped == 1 and state.iteration == 1
    assert torch.equal(state.images, start(config).images) and float(state.lr) == config.lr_init


def test_fifty_skips_stop_the_run_with_advice(network, store, tmp_path):
    config = small_config(threshold=1e-6, iterations=80, syn_steps=1)
    with pytest.raises(DistillationStopped, match=r"start it at the experts'.*checkpoint"):
        run(Loop(network, store, config, CPU), start(config), folder=tmp_path, key="k", history=[], progress=QUIET)
    assert State.load(tmp_path / "checkpoint", "k", CPU).iteration == PATIENCE
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == PATIENCE


def test_a_few_updates_among_the_skips_let_the_run_continue(network, store, tmp_path):
    config = small_config(iterations=PATIENCE + 2, syn_steps=1)
    losses = [Loop(network, store, config, CPU).iterate(start(config))["loss"]]
    config = replace(config, threshold=losses[0] * 1.0001)
    state = start(config)
    run(Loop(network, store, config, CPU), state, folder=tmp_path, key="k", history=[], progress=QUIET)
    assert state.iteration == PATIENCE + 2


def test_nan_stops_the_run_and_keeps_the_last_good_state(network, store, tmp_path):
    config = small_config(lr_img=1e30, threshold=None)
    with pytest.raises(DistillationStopped, match="Lower lr_img"):
        run(Loop(network, store, config, CPU), start(config), folder=tmp_path, key="k", history=[], progress=QUIET)
    state = State.load(tmp_path / "checkpoint", "k", CPU)
    assert 1 <= state.iteration < config.iterations
    assert bool(state.images.isfinite().all())


@pytest.mark.parametrize("unseen", [False, True], ids=["cpu", "as on a gpu"])
@pytest.mark.parametrize("back_off", [False, True])
def test_an_expert_that_stands_still_is_named_and_no_rate_is_blamed(network, tmp_path, monkeypatch, unseen, back_off):
    if unseen:  # the loss does not look at values there
        monkeypatch.setattr("pad_fast.matching.loss._require_moved", lambda *given: None)
    store = ExpertStore.create(tmp_path / "still", parameter_count=network.parameter_count, epochs=5, metadata={})
    store.append(network.initial().expand(6, -1))
    loop = Loop(network, store, small_config(back_off=back_off), CPU)
    with pytest.raises(StoreError, match=r"expert_00000\.safetensors holds the same weights after \d and \d epochs"):
        run(loop, start(loop.config), folder=tmp_path, key="k", history=[], progress=QUIET)


def test_learning_rate_must_stay_positive(network, store):
    config = small_config(lr_lr=1e6)
    state, loop = start(config), Loop(network, store, config, CPU)
    with pytest.raises(DistillationStopped, match="must stay positive"):
        for _ in range(20):
            loop.iterate(state)
    assert float(state.lr) > 0


def test_checkpoint_round_trip_and_continuation(network, store, tmp_path):
    config = small_config(ema_decay=0.9)
    whole = start(config)
    run(Loop(network, store, config, CPU), whole, folder=tmp_path / "whole", key="k", history=[], progress=QUIET)
    part = start(config)
    loop = Loop(network, store, config, CPU)
    (tmp_path / "part").mkdir()
    history = [loop.iterate(part) for _ in range(3)]
    with MetricsLog(tmp_path / "part" / "metrics.jsonl", history):
        part.save(tmp_path / "part" / "checkpoint", "k")
    resumed = State.load(tmp_path / "part" / "checkpoint", "k", CPU)
    history = read_history(tmp_path / "part" / "metrics.jsonl", resumed.iteration)
    run(loop, resumed, folder=tmp_path / "part", key="k", history=history, progress=QUIET)
    for name in ("checkpoint", "metrics.jsonl"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    "changes", [{}, {"threshold": 1.01, "ema_decay": 0.7}, {"soft_labels": False, "trajectories": 2}], ids=repr
)
def test_losses_that_are_looked_at_late_change_nothing(network, store, tmp_path, changes):
    """As on a GPU: the next iterations are begun before the loss of one is known."""
    config = small_config(iterations=11, checkpoint_every=7, **changes)
    for late in (0, 3):
        folder = tmp_path / str(late)
        folder.mkdir()
        loop = Loop(network, store, config, CPU, late=late)
        run(loop, start(config), folder=folder, key="k", history=[], progress=QUIET)
    for name in ("checkpoint", "metrics.jsonl"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name
    skipped = [row["skipped"] for row in rows_of(tmp_path / "0")]
    assert (0 < sum(skipped) < 11) == ("threshold" in changes), skipped


@pytest.mark.parametrize("changes", [{"lr_img": 1e30}, {"lr_lr": 1e4}, {"threshold": 1e-6, "syn_steps": 1}], ids=repr)
def test_a_run_that_is_stopped_late_stops_at_the_same_state(network, store, tmp_path, changes):
    config = small_config(iterations=80, checkpoint_every=100, **changes)
    messages = []
    for late in (0, 6):
        folder = tmp_path / str(late)
        folder.mkdir()
        with pytest.raises(DistillationStopped) as stopped:
            loop = Loop(network, store, config, CPU, late=late)
            run(loop, start(config), folder=folder, key="k", history=[], progress=QUIET)
        messages.append(str(stopped.value).replace(str(folder), ""))
    assert messages[0] == messages[1]
    for name in ("checkpoint", "metrics.jsonl"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "6" / name).read_bytes(), name


def test_snapshots_used_last_stay_on_the_device(store, monkeypatch):
    copied = []
    monkeypatch.setattr(Snapshots, "_copy", lambda self, snapshot: copied.append(1) or snapshot.clone())
    monkeypatch.setattr(Snapshots, "_buffer", lambda self: torch.empty(self.store.parameter_count))  # not pinned
    snapshots = Snapshots(store, torch.device("cuda"), limit=3 * 4 * store.parameter_count)
    for expert, epoch in ((0, 1), (0, 2), (1, 1), (0, 1), (1, 4), (0, 1), (0, 2)):
        assert torch.equal(snapshots.get(expert, epoch), store.snapshot(expert, epoch))
    assert len(copied) == 5
    assert torch.equal(Snapshots(store, CPU).get(1, 3), store.snapshot(1, 3))


def test_foreign_and_truncated_checkpoints(network, store, tmp_path):
    config = small_config()
    path = tmp_path / "checkpoint"
    start(config).save(path, "one")
    with pytest.raises(StoreError, match="other settings"):
        State.load(path, "two", CPU)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="damaged or no checkpoint of pad_fast .*delete it"):
        State.load(path, "one", CPU)
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(StoreError, match="damaged or no checkpoint of pad_fast .*delete it"):
        State.load(path, "one", CPU)
    with pytest.raises(StoreError, match="cannot read checkpoint"):
        State.load(tmp_path / "nothing", "one", CPU)


def test_a_log_cut_off_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n{"iter')
    assert read_history(path, 2) == [{"iteration": 0}, {"iteration": 1}]
    with pytest.raises(StoreError, match="has 2 rows"):
        read_history(path, 3)


def test_one_reader_serves_a_report_and_a_run_that_goes_on(tmp_path):
    path, notes = tmp_path / "metrics.jsonl", []
    path.write_text('{"iteration": 0, "loss": NaN}\n{"iteration": 1, "loss": null}\n{"iteration": 2}\n{"iter')
    rows = read_metrics(path, notes)
    assert [row["iteration"] for row in rows] == [0, 1, 2] and not notes, "a row being written is no damage"
    assert all(math.isnan(row["loss"]) for row in rows[:2])
    assert '"iteration": 2}' in json.dumps(read_history(path, 3)), "a log that goes on keeps its numbers as they are"
    for damage in ("[1]", "words", '{"iteration": "x"}', '{"iteration": [1]}'):
        path.write_text('{"iteration": 0}\n' + damage + '\n{"iteration": 2}\n')
        notes.clear()
        assert read_metrics(path, notes) == ({"iteration": 0},)
        assert notes == ["metrics.jsonl: line 2 is damaged; it and what follows are not shown"]
        with pytest.raises(StoreError, match=r"has 1 rows, but the checkpoint was taken after 2"):
            read_history(path, 2)
    assert read_metrics(tmp_path / "nothing", notes) == ()


def test_metrics_rows(network, store, tmp_path):
    config = small_config()
    run(Loop(network, store, config, CPU), start(config), folder=tmp_path, key="k", history=[], progress=QUIET)
    rows = rows_of(tmp_path)
    assert [row["iteration"] for row in rows] == list(range(6))
    assert all(0 <= row["start_epoch"] < 3 and math.isfinite(row["loss"]) and row["lr"] > 0 for row in rows)


def test_a_mask_that_leaves_nothing_is_an_error_before_any_work(network, store):
    with pytest.raises(InputError, match="leaves nothing"):
        Loop(network, store, small_config(mask="layers", mask_ratio=3), CPU)


def test_masks_by_name():
    assert repr(make_mask(small_config(mask="none"))) == "ParameterMask.none()"
    assert repr(make_mask(small_config(mask="loss", mask_ratio=0.25))) == "ParameterMask.loss(0.25)"
    assert repr(make_mask(small_config(mask="layers", mask_ratio=1))) == "ParameterMask.layers(1)"
