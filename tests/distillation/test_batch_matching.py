"""The loop of gradient and distribution matching, and `distill(method="dc" | "dsa" | "dm")` from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import pad_fast
from pad_fast import DSA, Config, Curriculum, DistilledDataset
from pad_fast.data import fit_normalization
from pad_fast.distillation.batch_matching import BatchLoop, RealPool, initial_images, loops_of, require_alone
from pad_fast.distillation.state import State
from pad_fast.errors import ConfigError, DatasetError, DistillationStopped, InputError
from pad_fast.experts import prune
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import derive_seed, generator
from pad_fast.settings.choices import BATCH_METHODS
from pad_fast.settings.resolve import make_settings
from pad_fast.training.trainer import shuffled_batches

from ..support.comparison import relative_error
from ..support.settings import flags
from ..support.small import QUIET, SIZES, small_data

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "model": "ConvNetD2W8",
    "iterations": 8,
    "checkpoint_every": 2,
    "batch_real": 9,
    "score_networks": 1,
    "score_epochs": 1,
    "train_epochs": 4,
    "add_end_epoch": 1,
    "removal1_epoch": 2,
    "removal2_epoch": 3,
    "eval_networks": 1,
    "eval_epochs": 4,
    "eval_full_epochs": 1,
}


def distill(out: Path, dataset: Any = "digits", **changes: Any) -> DistilledDataset:
    return pad_fast.distill(dataset, out=out, progress=changes.pop("progress", QUIET), **{**SMALL, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    timed = ("timing.json", "report.html")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in timed)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def config_of(method: str, **changes: Any) -> Config:
    given = {"method": method, "model": "ConvNetD2W8", "iterations": 10, "ipc": 2, **changes}
    return make_settings(overrides=given).config


class Small:
    """A loop on three classes of 8x8 images, and everything it was made of."""

    def __init__(self, config: Config, curriculum: Curriculum | None = None) -> None:
        data = small_data()
        self.images = fit_normalization(data, "mean-std").apply(data.train_images)
        self.order = data.images_by_class()
        self.spec = NetworkSpec(config.model, 1, data.classes, 8)
        shown = prune(self.order, config.prune)
        real = RealPool(self.images, shown, data.class_names, curriculum or Curriculum.none())
        initial = initial_images(config, real)
        self.state = State.start(initial.images, initial.label_logits, initial.labels, config, CPU)
        self.loop = BatchLoop(self.spec.build(config.seed, "student"), self.spec, real, config, CPU)

    def iterate(self) -> dict[str, float]:
        return self.loop.settle(self.state, self.loop.begin(self.state))


def plain_iteration(small: Small, config: Config, iteration: int, momentum: Tensor) -> tuple[Tensor, float]:
    """An iteration of DC or DSA on a module, with autograd through everything."""
    loop, images = small.loop, small.state.images.clone()
    module = small.spec.build(config.seed, "network", iteration).module
    dsa = config.dsa if config.match_dsa else "none"
    siamese, single = DSA(dsa, siamese=True), DSA(dsa)
    parameters, losses = list(module.parameters()), []
    for update in range(loop.outer):
        for epoch in range(loop.inner if update else 0):
            if epoch == 0:
                draws = generator(config.seed, "network batches", iteration, update)
                augment = single.seeded(derive_seed(config.seed, "network dsa", iteration, update))
            (batch,) = shuffled_batches(torch.arange(len(images)), len(images), draws)
            loss = functional.cross_entropy(module(augment(images[batch], epoch)), small.state.labels[batch])
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.data.sub_(config.lr_init * gradient)
        leaf = images.clone().requires_grad_()
        total = leaf.new_zeros(())
        for label, rows in enumerate(loop._rows(iteration, update)):
            draw = generator(config.seed, "siamese dsa", iteration, update, label)
            drawn = siamese.draw(1, images.shape[1:], generator=draw)
            given = functional.cross_entropy(
                module(siamese.apply(small.images[rows], drawn)), torch.full((len(rows),), label)
            )
            mine = siamese.apply(leaf[small.state.labels == label], drawn)
            made = functional.cross_entropy(module(mine), torch.full((len(mine),), label))
            pairs = zip(
                torch.autograd.grad(given, parameters),
                torch.autograd.grad(made, parameters, create_graph=True),
                strict=True,
            )
            for a, b in pairs:
                if a.dim() > 1:
                    total = total + (1 - functional.cosine_similarity(a.flatten(1), b.flatten(1))).sum()
        momentum.mul_(config.momentum_img).add_(torch.autograd.grad(total, leaf)[0])
        images -= config.lr_img * momentum
        losses.append(float(total.detach()))
    return images, sum(losses) / len(losses)


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_iterations_of_gradient_matching_are_the_papers(method: str) -> None:
    # Small steps, so that no ReLU's switching in float32 is a difference.
    config = config_of(method, batch_real=7, outer_loop=3, inner_loop=2, lr_img=0.05, lr_init=0.03, momentum_img=0.7)
    small, twin = Small(config), Small(config)
    momentum = torch.zeros_like(twin.state.images)
    for iteration in range(2):
        before = small.state.images.clone()
        row = small.iterate()
        images, loss = plain_iteration(twin, config, iteration, momentum)
        assert relative_error(small.state.images - before, images - before) < 1e-3
        assert row == {"iteration": iteration, "loss": pytest.approx(loss, rel=1e-4)}
        twin.state.images.copy_(images)
    assert torch.equal(small.state.label_logits, twin.state.label_logits)
    assert float(small.state.lr) == 0.03


def test_real_batches_are_different_images_of_what_is_left_after_pruning() -> None:
    config = config_of("dm", batch_real=6, prune="hardest:0.4", curriculum=True, train_epochs=5)
    stages = Curriculum(0.5, 1, 2, 3, 0.2, 0.4)
    small = Small(config, stages)
    seen: dict[int, set[int]] = {}
    for iteration in range(10):
        for label, rows in enumerate(small.loop._rows(iteration, 0)):
            kept = len(small.order[label]) - int(0.4 * SIZES[label])
            start, stop = stages.span(iteration // 2, kept)
            allowed = small.order[label][start:stop].tolist()
            assert set(rows.tolist()) <= set(allowed)
            assert len(set(rows.tolist())) == len(rows) == min(6, stop - start)
            if label == 2:
                seen.setdefault(iteration, set()).update(rows.tolist())
    assert len(set(map(frozenset, seen.values()))) > 5


def test_first_images_are_not_taken_from_what_was_pruned() -> None:
    config = config_of("dm", ipc=4)
    small = Small(config)
    shown = [indices[:5] for indices in small.order]
    real = RealPool(small.images, shown, ("a", "b", "c"), Curriculum.none())
    chosen = initial_images(config, real)
    for label, indices in enumerate(shown):
        mine = chosen.images[chosen.labels == label].flatten(1)
        distances = torch.cdist(mine.double(), small.images[indices].flatten(1).double())
        assert float(distances.min(1).values.max()) < 1e-5 and len(set(distances.argmin(1).tolist())) == 4
    noise = initial_images(replace(config, pix_init="noise"), real)
    assert noise.images.shape == chosen.images.shape and abs(float(noise.images.std()) - 1) < 0.1


def test_a_bad_number_stops_and_leaves_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Small(config_of("dm", batch_real=7))
    small.iterate()
    before = {"images": small.state.images.clone(), "momentum": small.state.momentum["images"].clone()}
    monkeypatch.setattr(small.loop, "images", torch.full_like(small.images, torch.inf))
    late = small.loop.begin(small.state)
    later = small.loop.begin(small.state)  # as on a GPU, where the first one's outcome is not known yet
    with pytest.raises(DistillationStopped, match=r"in iteration 1.*Lower lr_img \(10\)"):
        small.loop.settle(small.state, late)
    assert torch.equal(small.state.images, before["images"])
    assert torch.equal(small.state.momentum["images"], before["momentum"])
    assert small.state.iteration == 1 and later.iteration == 2


@pytest.mark.parametrize(("method", "rate"), [("dm", 1e38), ("dsa", 1e6)])
def test_images_that_explode_are_gone_on_from(tmp_path: Path, method: str, rate: float) -> None:
    settings = {"method": method, "lr_img": rate, "iterations": 30, "outer_loop": None if method == "dm" else 3}
    if method == "dm":
        with pytest.raises(DistillationStopped):
            distill(tmp_path / "stops", **settings)
    result = distill(tmp_path / "goes on", back_off=True, **settings)
    last = result.history[-1]
    assert last["iteration"] == 29 and last["back_offs"] > 0 and 0 < last["lr_img"] < rate
    assert "skipped" not in last and "lr" not in last
    first = distill(tmp_path / "first", **{**settings, "lr_img": 1e-9, "iterations": 1}).images
    moved = float((result.images - first).norm() / first.norm())
    assert 1e-3 < moved < 20, "neither where it began nor far away"


@pytest.mark.parametrize("method", ["dm", "dsa"])
def test_a_run_that_needs_no_back_off_has_none(tmp_path: Path, method: str) -> None:
    settings = {"method": method, "iterations": 45, "outer_loop": None if method == "dm" else 2}
    plain, careful = distill(tmp_path / "plain", **settings), distill(tmp_path / "careful", back_off=True, **settings)
    assert {row["back_offs"] for row in careful.history} == {0} and torch.equal(plain.images, careful.images)


def test_loops_are_published_or_interpolated_with_a_notice() -> None:
    for ipc, expected in {1: (1, 1), 10: (10, 50), 20: (20, 25), 50: (50, 10)}.items():
        assert loops_of(config_of("dc", ipc=ipc)) == (*expected, None)
    outer, inner, note = loops_of(config_of("dsa", ipc=5))
    assert (outer, inner) == (5, 23) and note is not None and "interpolated between IPC 1 and 10: 5 updates" in note
    outer, inner, note = loops_of(config_of("dsa", ipc=80))
    assert (outer, inner) == (50, 10) and note is not None and "those of IPC 50" in note
    assert loops_of(config_of("dsa", ipc=5, outer_loop=4, inner_loop=3)) == (4, 3, None)
    assert loops_of(config_of("dm", ipc=5)) == (1, 0, None)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("dc", {"mask": "loss", "mask_ratio": 0.5}, "mask is 'loss'.*method dc has none; use depth, layers or none"),
        ("dm", {"gradient": "tesla"}, "gradient is 'tesla'.*no training run is unrolled"),
        ("dm", {"buffer_path": "somewhere"}, "buffer_path is 'somewhere'.*no experts"),
        ("dsa", {"pix_init": "samples_predicted_correctly"}, "no experts that could predict; use real or noise"),
        ("dsa", {"soft_labels": True}, "soft_labels is True.*not learned"),
        ("dm", {"threshold": 1.0}, "threshold is 1.0.*no iteration is skipped.*none"),
        ("dm", {"trajectories": 2}, "trajectories is 2"),
        ("dm", {"ema_decay": 0.9}, "ema_decay"),
        ("dm", {"inner_loop": 3}, "inner_loop is 3, but method dm does not train its networks"),
        ("dc", {"outer_loop": 0}, "outer_loop is 0; it must be positive"),
    ],
)
def test_settings_without_meaning_are_refused(method: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(method, **changes)


def test_several_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_fast.runtime.distributed.group", lambda: SimpleNamespace(size=3))
    with pytest.raises(ConfigError, match="method dm runs in one process, and there are 3 ranks.*pad-fast sweep"):
        require_alone(config_of("dm"))


def test_a_class_with_fewer_images_begins_with_copies(tmp_path: Path) -> None:
    config = config_of("dm", ipc=14)
    small = Small(config)
    real = RealPool(small.images, small.order, ("a", "b", "c"), Curriculum.none())
    chosen = initial_images(config, real)
    assert chosen.images.shape[0] == 42 and len(chosen.images.flatten(1).unique(dim=0)) == 42
    assert [note.split(" has")[0] for note in chosen.notes] == ["class 0 (a)", "class 1 (b)"]
    found = distill(tmp_path / "run", small_data(), method="dm", model="ConvNetD1W8", ipc=14)
    assert found.labels.bincount().tolist() == [14, 14, 14]


def test_masks_and_pruning_that_leave_nothing_are_errors_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves out all 2 blocks"):
        distill(tmp_path / "a", method="dm", mask="depth", mask_ratio=0.6)
    with pytest.raises(InputError, match="leaves no weights"):
        distill(tmp_path / "b", method="dc", mask="depth", mask_ratio=0.999)
    with pytest.raises(DatasetError, match="leaves 2 images of a class, fewer than ipc 3"):
        distill(tmp_path / "c", small_data(), method="dm", model="ConvNetD1W8", ipc=3, prune="hardest:0.8")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("method", BATCH_METHODS)
def test_from_end_to_end(tmp_path: Path, method: str) -> None:
    out = tmp_path / "run"
    result = distill(out, method=method, ipc=2, lr_img=3.0, outer_loop=None if method == "dm" else 2)
    assert list(result.images.shape) == [20, 1, 8, 8] and result.label_logits is None
    assert result.labels.tolist() == [label for label in range(10) for _ in range(2)] and result.lr == 0.01
    names = [row.name for row in result.evaluation]
    assert {"random real", method.upper(), "full data"} <= set(names)
    assert len(result.history) == 8 and set(result.history[0]) == {"iteration", "loss"}
    losses = [row["loss"] for row in result.history]
    assert sum(losses[:3]) > sum(losses[-3:]) > 0
    page = (out / "report.html").read_text()
    assert f"{method.upper()} on digits" in page and "Student's learning rate" not in page
    assert [path.name for path in out.glob("cache/*")] == ["evaluation"]  # nothing was scored, no expert trained
    stored = torch.load(out / "labels_best.pt", weights_only=True)
    assert torch.equal(stored, result.labels)
    config = make_settings(config=str(out / "config.yaml")).config
    assert config == Config(**result.config)


def test_same_seed_same_files_and_a_finished_run_is_reused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"method": "dm", "prune": "hardest:0.2", "mask": "depth", "mask_ratio": 0.0}
    first = distill(tmp_path / "a", **settings)
    distill(tmp_path / "b", **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not torch.equal(distill(tmp_path / "c", **{**settings, "seed": 1}).images, first.images)
    assert not torch.equal(distill(tmp_path / "d", **{**settings, "mask": "none"}).images, first.images)
    distill(tmp_path / "a", **settings, progress=pad_fast.Progress())
    said = capfd.readouterr().err
    assert "distill: reusing" in said and "scores: reusing" in said


@pytest.mark.parametrize("method", ["dsa", "dm"])
def test_killed_and_resumed_ends_with_the_same_files(tmp_path: Path, method: str) -> None:
    settings = {**SMALL, "method": method, "prune": "easiest:0.1", "iterations": 40, "ipc": 2}
    distill(tmp_path / "undisturbed", **settings)
    command = [sys.executable, "-m", "pad_fast.cli", "distill", "--out", str(tmp_path / "killed"), "--quiet"]
    process = subprocess.Popen([*command, *flags(settings)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (tmp_path / "killed" / "checkpoint").exists() and len(log.read_text().splitlines()) > 6:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL
    distill(tmp_path / "killed", resume=True, **settings)
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(40))


def test_a_finished_run_goes_on_unless_a_curriculum_was_stretched_over_it(tmp_path: Path) -> None:
    distill(tmp_path / "short", method="dm", iterations=4)
    longer = distill(tmp_path / "short", method="dm", iterations=8, resume=True)
    assert torch.equal(longer.images, distill(tmp_path / "long", method="dm", iterations=8).images)
    distill(tmp_path / "staged", method="dm", iterations=4, curriculum=True)
    with pytest.raises(ConfigError, match="other settings.*iterations"):
        distill(tmp_path / "staged", method="dm", iterations=8, curriculum=True, resume=True)


def test_an_order_table_gives_the_stages(tmp_path: Path) -> None:
    data = pad_fast.load_dataset("digits")
    order = [members.flip(0) for members in data.images_by_class()]
    shortest = min(map(len, order))
    torch.save(torch.stack([indices[:shortest] for indices in order]), tmp_path / "order.pt")
    plain = distill(tmp_path / "plain", method="dm", curriculum=False)
    with pytest.raises(InputError):  # a table that leaves images out does not fit the data
        distill(tmp_path / "x", method="dm", curriculum=True, order_file=str(tmp_path / "order.pt"))
    difficulty = pad_fast.score(data, networks=1, epochs=1, model="ConvNetD1W8", progress=QUIET)
    difficulty.save(tmp_path / "order.safetensors")
    staged = distill(tmp_path / "y", method="dm", curriculum=True, order_file=str(tmp_path / "order.safetensors"))
    assert relative_error(staged.images, plain.images) > 1e-3
