"""A reproduction fits into its hours, survives kills and moves, and says what it was made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pad_fast
from benchmarks import plots, reproduce, reproduce_costs, reproduce_sitting, reproduce_state, reproduce_table
from benchmarks.printed import printed
from benchmarks.reproduce_costs import Costs, expert_seconds, fit, score_seconds
from benchmarks.reproduce_state import STATE, Account
from pad_fast import Progress, load_dataset
from pad_fast.distillation.state import CHECKPOINT, State
from pad_fast.pipeline.cached import distillation_key
from pad_fast.settings.config import Config

# One second each, but for iterations; the plain loop's take five.
COSTS = Costs(score_step=1, expert_step=1, iteration=10, plain_iteration=50, steps=3, error=0.0)
TINY = {
    **{"model": "ConvNetD1W4", "score_networks": 1, "score_epochs": 1, "train_epochs": 6, "add_end_epoch": 1},
    **{"removal1_epoch": 2, "removal2_epoch": 3, "max_start_epoch": 4, "syn_steps": 3, "batch_train": 256},
    **{"eval_epochs": 4, "eval_full_epochs": 1, "validation_networks": 1},
}
SET = ["--set", *(f"{name}={value}" for name, value in TINY.items())]
FEW = ["--networks", "1", "--full-networks", "1", "--device", "cpu", "--data", "."]


def test_the_quick_run_goes_through_every_path(tmp_path, capsys):
    result = tmp_path / "result.json"
    reproduce.main(["--quick", "--json", str(result)])
    text, content = capsys.readouterr().out, json.loads(result.read_text())
    assert [(each["experts"], each["iterations"], each["seed"]) for each in content["sittings"]] == [
        (2, 30, 0),
        (1, 15, 1),
    ]
    assert [point["iteration"] for point in content["curve"]] == [10, 20, 30, 45]
    hours = [point["hours"] for point in content["curve"]]
    assert hours == sorted(hours) and hours[-1] == pytest.approx(
        sum(sum(each["hours"].values()) for each in content["sittings"])
    )
    assert all(len(point["accuracies"]) == 1 and point["loss"] > 0 for point in content["curve"])
    ratio = content["costs"]["times_faster"]
    assert content["curve"][-1]["plain_iteration"] == pytest.approx(45 / ratio)
    assert "3 of 3 experts and 45 of 45 iterations" in text and "2 sittings of 2 and 1 experts" in text
    names = ["PAD, chosen on held-out training images", "PAD, last iterate", "random real", "k-means centres"]
    assert [(row["name"], row["recipe"], row["networks"]) for row in content["rows"]] == [
        *((name, "ours", 2) for name in names),
        *((name, "the reference's", 2) for name in names),
        ("full data", "ours", 1),
    ]
    assert content["changes"]["train_epochs"] == 6 and "train_epochs 6" in text and "dataset" not in content["settings"]
    assert f"training images** (after {content['chosen']}): 3 of 3 experts" in text
    assert "JPEG" in content["data"] and content["printed"] == printed("cifar10-ipc1")
    assert "--data imagefolder:DIR" in content["command"] and "--out FOLDER" in content["command"]
    pictures = plots.draw_reproduction(result, tmp_path)
    assert [path.name for path in pictures] == [
        f"reproduce-cifar10-ipc1-{name}.png" for name in ("iterations", "hours")
    ]


def config(**changes: object) -> Config:
    """Two epochs of experts on up to 100 images at once."""
    named = {"score_networks": 2, "score_epochs": 3, "score_batch": 50, "train_epochs": 2, "batch_train": 30}
    curriculum = {"initial_ratio": 0.5, "add_end_epoch": 0, "removal1_epoch": 0, "removal2_epoch": 1}
    start = {"max_start_epoch": 1, "expert_epochs": 1, "num_experts": 20, "iterations": 100}
    return Config(**{**named, **curriculum, **start, **changes})


def test_costs_of_the_stages_are_counted_in_batches():
    # 2 networks of 3 epochs and the pass that scores, 2 batches each.
    assert score_seconds(COSTS, config(), [60, 40]) == 2 * 4 * 2
    # All 100 images in epoch 0, 54 + 36 of them in epoch 1.
    assert expert_seconds(COSTS, config(), [60, 40]) == 4 + 3


@pytest.mark.parametrize(
    ("seconds", "options", "experts", "iterations"),
    [
        (16 + 280, {}, 20, 14),  # half of the time for experts is all of them
        (16 + 140, {}, 10, 7),
        (16 + 100, {"least_experts": 12}, 12, 1),
        (16 + 140, {"experts": 2}, 2, 12),
        (16 + 140, {"iterations": 3}, 15, 3),  # what iterations leave over is the experts'
        (140, {"scored": True}, 10, 7),
        (16 + 2000, {"done": 90}, 20, 10),  # no more than is published, with the iterations of earlier sittings
        (16 + 2000, {}, 20, 100),
        (16 + 280, {"seen": 15}, 5, 24),  # nor more experts
        (16 + 280, {"seen": 20}, 2, 26),
    ],
)
def test_what_fits_into_some_hours(seconds, options, experts, iterations):
    plan = fit(COSTS, config(), [60, 40], seconds / 3600 + 1e-9, **{"least_experts": 2, **options})
    assert (plan.experts, plan.iterations) == (experts, iterations)
    assert (plan.published_experts, plan.published_iterations) == (20, 100)


def test_too_few_hours_and_nothing_left_are_said():
    with pytest.raises(SystemExit, match=r"no time is left for an iteration; raise --hours"):
        fit(COSTS, config(), [60, 40], 50 / 3600)
    with pytest.raises(SystemExit, match="all 100 iterations are done; --iterations asks for more"):
        fit(COSTS, config(), [60, 40], 1, done=100)
    assert fit(COSTS, config(), [60, 40], 1, done=100, iterations=7).iterations == 7


def test_no_cost_is_reported_when_the_gradients_differ(monkeypatch):
    tiny = Config(**TINY, zca=False)
    data, device = load_dataset("digits"), torch.device("cpu")
    measured = reproduce_costs.measure(data, tiny, device, rounds=1)
    assert measured.steps == 3 and 0 < measured.error < 1e-4
    assert min(measured.score_step, measured.expert_step, measured.iteration, measured.plain_iteration) > 0
    monkeypatch.setattr(
        reproduce_costs, "plain_unroll", lambda module, start, target, images, *rest, **named: (0, (images,))
    )
    with pytest.raises(SystemExit, match="the gradient of an iteration is off"):
        reproduce_costs.measure(data, tiny, device, rounds=1)


def test_iterations_are_timed_on_as_many_steps_as_the_plain_loop_has_memory_for():
    data, device = load_dataset("digits"), torch.device("cpu")
    few = Config(**{**TINY, "syn_steps": 200, "ipc": 2})
    assert reproduce_costs.Iteration(data, few, device).steps == 40  # 20 images a step
    assert reproduce_costs.Iteration(data, replace(few, batch_syn=5), device).steps == 160
    assert reproduce_costs.Iteration(data, replace(few, ipc=100), device).steps == 2


def work(out: Path, *more: str) -> None:
    reproduce.main(["digits-ipc1", *FEW, "--out", str(out), "--experts", "1", *more])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    distilled = pad_fast.load(folder / "run" / "last")
    return {"images": distilled.images, "logits": distilled.label_logits, "lr": torch.tensor(distilled.lr)}


def test_a_killed_run_ends_as_an_undisturbed_one_and_a_state_file_carries_everything(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*arguments, **named):
        raise Killed

    steps = ["--iterations", "6", *SET, "checkpoint_every=2"]
    work(tmp_path / "whole", *steps)
    with monkeypatch.context() as patch:
        patch.setattr(reproduce_state, "write", killed)
        with pytest.raises(Killed):
            work(tmp_path / "killed", *steps)
    assert not (tmp_path / "killed" / STATE).exists()
    work(tmp_path / "killed", *steps)
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    device = torch.device("cpu")
    saved = reproduce_state.read(tmp_path / "whole" / STATE, device)
    assert torch.equal(saved.state.images, whole["images"]) and saved.state.iteration == 6
    assert saved.settings["iterations"] == 400 and not set(saved.settings) & {"dataset", "buffer_path"}
    assert sorted(saved.account.validation) == [2, 4, 6] == [iteration for iteration, _ in saved.account.points]
    rows = (tmp_path / "whole" / "run" / "metrics.jsonl").read_text().splitlines()
    assert saved.rows == [{name: json.loads(row)[name] for name in saved.rows[0]} for row in rows]

    # Elsewhere: a run that has not begun begins there, with the same numbers.
    rest, _ = reproduce_sitting.held_out(Config(**saved.settings), load_dataset("digits"))
    run = Config(**{**saved.settings, "iterations": 9})
    reproduce_state.put(saved, tmp_path / "elsewhere", run, rest)
    begun = State.load(tmp_path / "elsewhere" / CHECKPOINT, distillation_key(run, rest), device)
    kept = State.load(tmp_path / "whole" / "run" / CHECKPOINT, key_in(tmp_path / "whole" / "run"), device)
    assert kept.tensors().keys() == begun.tensors().keys() and (begun.iteration, begun.skipped) == (6, kept.skipped)
    assert all(torch.equal(value, begun.tensors()[name]) for name, value in kept.tensors().items())
    assert float(begun.momentum["images"].abs().max()) > 0
    order = pad_fast.Difficulty.load(tmp_path / "whole" / "scores.safetensors").order
    assert all(torch.equal(mine, other) for mine, other in zip(saved.difficulty().order, order, strict=True))

    begin = ["--begin-from", str(tmp_path / "whole" / STATE), "--iterations", "3"]
    work(tmp_path / "second", *begin)
    again = reproduce_state.read(tmp_path / "second" / STATE, device)
    assert [each["iterations"] for each in again.account.sittings] == [6, 3] and again.state.iteration == 9
    assert again.rows[:6] == saved.rows and again.account.points[:3] == saved.account.points
    experts = [pad_fast.ExpertStore.open(tmp_path / name / "experts") for name in ("whole", "second")]
    assert not torch.equal(experts[0].snapshot(0, 0), experts[1].snapshot(0, 0)), "the same expert again"
    assert not (tmp_path / "second" / "scores.safetensors").exists(), "scored again"

    pool = [word for name in ("whole", "second") for word in ("--experts-of", str(tmp_path / name / "experts"))]
    work(tmp_path / "pooled", *begin[:-1], "12", *pool)
    pooled = pad_fast.ExpertStore.open(tmp_path / "pooled" / "experts")
    own = len(pooled) - sum(map(len, experts))
    assert own == len(experts[1]) > 0 and torch.equal(pooled.snapshot(0, 1), experts[1].snapshot(0, 1))
    copied = [store.snapshot(number, 1) for store in experts for number in range(len(store))]
    assert all(torch.equal(pooled.snapshot(own + place, 1), each) for place, each in enumerate(copied))
    drawn = {row["expert"] for row in reproduce_state.read(tmp_path / "pooled" / STATE, device).rows[6:]}
    assert max(drawn) >= own, "earlier experts were not used"
    with pytest.raises(SystemExit, match="were made with model = 'ConvNetD1W4', but"):
        work(tmp_path / "foreign", *begin, *pool, "--set", "model=ConvNetD1W8")
    with pytest.raises(SystemExit, match=r"whole.experts were made with optimizer = .*'gsam'.* but .*'sgd'"):
        work(tmp_path / "others", *begin, *pool, "--set", "expert_optimizer=sgd")
    with pytest.raises(SystemExit, match=r"begun with --iterations 3, now 4; repeat that command"):
        work(tmp_path / "second", *begin[:-1], "4")
    with pytest.raises(SystemExit, match="made from other images, or with another part of them"):
        work(tmp_path / "third", *begin, "--set", "validation_fraction=0.2")
    with pytest.raises(SystemExit, match="is of digits-ipc1, not digits-ipc10"):
        reproduce.main(["digits-ipc10", *FEW, *begin, "--experts", "1"])


def key_in(run: Path) -> str:
    with reproduce_state.read_checkpoint(run / CHECKPOINT) as (_, described):
        return str(described["key"])


def test_a_run_of_distill_is_tabulated_and_can_be_gone_on_with(tmp_path, capsys):
    run, result = tmp_path / "run", tmp_path / "result.json"
    pad_fast.distill(
        preset="digits-ipc1", out=run, num_experts=1, iterations=20, eval_networks=1, eval_baselines=False,
        device="cpu", progress=Progress(quiet=True), **TINY,
    )  # fmt: skip
    given = ["digits-ipc1", *FEW, "--run", str(run), "--out", str(tmp_path / "out"), *SET, "--json", str(result)]
    reproduce.main(given)
    content = json.loads(result.read_text())
    assert [row["name"] for row in content["rows"]][0] == "PAD" and content["printed"] == []
    assert content["published"] == {"experts": 20, "iterations": 400}
    assert [point["iteration"] for point in content["curve"]] == list(range(1, 21))
    assert {point["accuracies"] for point in content["curve"]} == {None}
    assert set(content["sittings"][0]["hours"]) == {"scores", "experts", "distill"}
    assert "1 of 20 experts and 20 of 400 iterations" in capsys.readouterr().out
    # No accuracy along the way, no picture of it.
    assert plots.draw_reproduction(result, tmp_path) == []
    work(tmp_path / "second", "--begin-from", str(tmp_path / "out" / STATE), "--iterations", "2")
    assert reproduce_state.read(tmp_path / "second" / STATE, torch.device("cpu")).state.iteration == 22
    with pytest.raises(SystemExit, match="name the setting it was made with"):
        reproduce.main(["digits-ipc10", *FEW, "--run", str(run)])


def test_a_run_that_is_not_finished_gives_its_state(tmp_path):
    class Ended(Progress):
        def track(self, items, label, **named):
            for item in super().track(items, label, **named):
                if label == "distill" and item == 12:
                    raise KeyboardInterrupt
                yield item

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pad_fast.distill(
            preset="digits-ipc1", out=run, num_experts=1, iterations=20, checkpoint_every=5, device="cpu",
            progress=Ended(quiet=True), **TINY,
        )  # fmt: skip
    with pytest.raises(SystemExit, match=r"not finished: .*has its state after 10 iterations"):
        reproduce.main(["digits-ipc1", *FEW, "--run", str(run), "--out", str(tmp_path), *SET])
    saved = reproduce_state.read(tmp_path / STATE, torch.device("cpu"))
    assert (saved.state.iteration, len(saved.rows), saved.account.sittings[0]["iterations"]) == (10, 10, 10)
    assert saved.account.sittings[0]["hours"]["distill"] > 0
    assert saved.account.points[-1] == (10, pytest.approx(saved.account.hours, rel=1e-12))


def test_hours_are_those_of_the_work_and_no_others(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(reproduce_state, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    account = Account([{"experts": 1, "iterations": 0, "seed": 0, "hours": {}}], path=tmp_path / "account.json")
    with account.stage("experts"):
        clock.now += 3600
    account.begin("distill")
    clock.now += 1800
    with account.pause():
        clock.now += 99
    account.point(10)
    account.point(10)  # a run that goes on finds its checkpoint noted
    clock.now += 900
    with pytest.raises(ValueError, match="ended"), account.stage("evaluate"):
        clock.now += 77
        raise ValueError("ended")
    assert account.sittings[0]["hours"] == {"experts": 1.0, "distill": 0.5} and account.points == [(10, 1.5)]
    account.save()
    again = Account.of(json.loads((tmp_path / "account.json").read_text()))
    assert again.described() == account.described()


def test_the_evaluation_is_estimated_from_images():
    # 3 classes of 2 images for 10 epochs, 4 iterates with 2 networks and 8 rows of 5; 40 real ones for 3 epochs.
    settings = config(ipc=2, eval_epochs=10, eval_full_epochs=3, validation_networks=2, score_batch=20)
    seconds = reproduce_costs.evaluation_seconds(COSTS, settings, [20, 10, 10], points=4, networks=5, full_networks=2)
    assert seconds == pytest.approx((6 * 10 * (4 * 2 + 8 * 5) + 40 * 3 * 2) / 20)


def test_the_reference_trains_one_epoch_more_and_its_older_programs_on_larger_batches():
    recipe = reproduce_table.reference_recipe(Config(eval_epochs=1000))
    assert recipe == {"epochs": 1001, "batch": 128, "momentum": 0.9, "weight_decay": 5e-4, "dsa_mode": "reference"}
    assert reproduce_table.reference_recipe(Config(method="mtt", soft_labels=False))["batch"] == 256


def test_what_is_printed_is_found_by_setting():
    names = ["PAD", "DATM", "MTT", "TESLA", "random real", "full data"]
    assert [row["name"] for row in printed("cifar10-ipc1")] == names
    assert [row["name"] for row in printed("cifar10-ipc1000")] == ["PAD", "DATM", "random real", "full data"]
    known = {name: printed(name) for name in pad_fast.settings.presets.preset_names()}
    assert {name for name, rows in known.items() if not rows} == {"digits-ipc1", "digits-ipc10"}
    assert {row["mean"] for row in known["tinyimagenet-ipc50"]} == {41.6, 39.7, 28.0, 15.0, 37.6}


def test_linear_axes_lie_between_round_numbers():
    picture = plots.linear({"a": [(0, 41), (7, 48)]}, title="t", x_label="x", y_label="y")
    pixels = np.asarray(picture)
    rows, columns = np.nonzero((pixels == plots._COLOURS[0]).all(-1) & (np.arange(pixels.shape[1]) < 625))
    # From 0 to 8 and from 40 to 48: the right end is an eighth of the width from the edge, the upper one at the top.
    assert columns[rows.argmin()] == pytest.approx(90 + 540 * 7 / 8, abs=8) and rows.min() < 55
    assert columns[rows.argmax()] == pytest.approx(90, abs=8) and rows.max() == pytest.approx(460 - 410 / 8, abs=8)
    assert plots._round_axis(0.0, 0.3).ticks[-1] == pytest.approx(0.3)
    assert plots._round_axis(5.0, 5.0).low <= 5 < plots._round_axis(5.0, 5.0).high
    with pytest.raises(ValueError, match="points"):
        plots.linear({}, title="t", x_label="x", y_label="y")
