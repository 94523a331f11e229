"""Error of TESLA's gradient against the exact one, and its cost: the reason to switch, measured.

    python -m benchmarks.fidelity --json benchmarks/results/fidelity-cpu.json
    python -m benchmarks.fidelity --data imagefolder:DIR --images 2000 --json benchmarks/results/fidelity-cifar10.json

Three measurements on one distillation problem: both gradients at the initial images over T and alpha; both along a run
of the exact one; and the accuracy of two runs, one with each, after equal time of the processor, in turns of half
a second so that a busy machine slows both alike. Settings are those of the exact run: nothing is tuned for either.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.registry import Suite
from pad_fast import DSA, ImageDataset, Progress, evaluate, load_dataset, trajectory_matching_loss
from pad_fast.data import Normalization, fit_normalization
from pad_fast.data.distilled import DistilledDataset
from pad_fast.distillation.initialization import Teachers, initial_set
from pad_fast.distillation.iterations import make_mask
from pad_fast.distillation.schedule import draw_iteration
from pad_fast.distillation.state import State
from pad_fast.distillation.trajectory_matching import Loop
from pad_fast.engines import Task, select
from pad_fast.errors import DistillationStopped
from pad_fast.evaluation import AccuracyRow
from pad_fast.evaluation.sets import RANDOM
from pad_fast.models import FlatNetwork
from pad_fast.models.spec import NetworkSpec
from pad_fast.pipeline.configured import needs_order, score_as_configured, train_as_configured
from pad_fast.runtime.rng import derive_seed
from pad_fast.settings.config import Config
from pad_fast.settings.resolve import make_settings, override

SUITE = Suite(
    name="fidelity",
    about="TESLA's gradient beside the exact one",
    quick=(
        *("--steps", "3", "--factors", "1", "--iterations", "1", "--every", "1", "--seconds", "0.2", "--seeds", "1"),
        *("--networks", "1", "--set", "num_experts=1", "train_epochs=20", "score_networks=1", "eval_epochs=4"),
    ),
    full=("--steps", "5", "20", "--factors", "1", "--iterations", "100", "--seconds", "5", "--seeds", "1"),
)

CPU = torch.device("cpu")
INPUTS = ("images", "labels", "lr")
TOLERANCE = 1e-9  # exact against autograd through all steps, float64
SLICE = 0.5  # seconds of the processor a run gets before the other one's turn

# CIFAR-10 at a size that two cores distil in minutes; published settings where size does not matter.
CIFAR: dict[str, Any] = {
    "model": "ConvNetD3W32", "zca": False, "score_networks": 1, "score_epochs": 3, "num_experts": 4, "train_epochs": 12,
    "add_end_epoch": 3, "removal1_epoch": 8, "removal2_epoch": 10, "batch_train": 64, "lr_expert": 0.02,
    "max_start_epoch": 6, "sequential_generation": False, "syn_steps": 20, "lr_init": 0.02, "lr_lr": 1e-5,
    "lr_img": 100.0, "threshold": 1.1, "mask": "none", "eval_epochs": 300,
}  # fmt: skip


class Problem:
    """Data, experts and initial images, made once; everything a run of :class:`Loop` starts from."""

    def __init__(self, data: ImageDataset, config: Config, folder: Path) -> None:
        self.data, self.config = data, config
        quiet = Progress(quiet=True)
        self.normalization = fit_normalization(data, "zca" if config.zca else "mean-std")
        difficulty = None
        if needs_order(config):
            difficulty = score_as_configured(
                config, data, self.normalization, CPU, quiet, networks_dir=folder / "networks"
            )
        self.store = train_as_configured(config, data, self.normalization, difficulty, folder / "experts", CPU, quiet)
        self.spec = NetworkSpec(config.model, data.channels, data.classes, data.resolution)
        self.network = self.spec.build(config.seed, "student")
        task = Task(self.network, CPU, torch.float32)
        self.initial = initial_set(
            config.pix_init,
            [config.ipc] * data.classes,
            self.normalization.apply(data.train_images),
            data,
            Teachers(self.store, select("auto", task), task),
            dsa=config.dsa,
            seed=config.seed,
        )

    def state(self, config: Config) -> State:
        """Iteration 0."""
        return State.start(self.initial.images, self.initial.label_logits, self.initial.labels, config, CPU)

    def loop(self, config: Config) -> Loop:
        """A loop that runs iterations with these settings."""
        return Loop(self.network, self.store, config, CPU)

    def gradients(
        self, state: State, gradient: str, iteration: int, *, steps: int, lr: float
    ) -> tuple[dict[str, Tensor], float]:
        """Gradients of one iteration in float64, and its loss."""
        config = override(self.config, {"syn_steps": steps})
        drawn = draw_iteration(config, iteration, len(self.store), len(state.images))
        expert, epoch = drawn.experts[0], drawn.start_epochs[0]
        leaves = [
            tensor.double().detach().requires_grad_()
            for tensor in (state.images, state.label_logits, torch.tensor(lr, dtype=torch.float64))
        ]
        loss = trajectory_matching_loss(
            FlatNetwork(self.network.module.double()),
            self.store.snapshot(expert, epoch).double(),
            self.store.snapshot(expert, epoch + config.expert_epochs).double(),
            *leaves,
            batches=drawn.batches,
            mask=make_mask(config),
            augment=DSA(config.dsa, mode=config.dsa_mode).seeded(derive_seed(config.seed, "fidelity", iteration)),
            gradient=gradient,
        )
        grads = torch.autograd.grad(loss, leaves)
        self.network.module.float()
        return dict(zip(INPUTS, grads, strict=True)), float(loss.detach())

    def compare(self, state: State, *, steps: int, lr: float, iterations: Sequence[int]) -> dict[str, Any]:
        """TESLA's gradient beside the exact one, medians over some iterations' draws."""
        row: dict[str, Any] = {"steps": steps, "lr": lr, "steps_times_lr": steps * lr}
        errors: dict[str, list[float]] = {}
        for iteration in iterations:
            exact, loss = self.gradients(state, "exact", iteration, steps=steps, lr=lr)
            approximate, _ = self.gradients(state, "tesla", iteration, steps=steps, lr=lr)
            errors.setdefault("loss", []).append(loss)
            for name in INPUTS:
                a, e = approximate[name].flatten(), exact[name].flatten()
                errors.setdefault(f"{name} error", []).append(harness.relative_error(a, e))
                if name != "lr":
                    errors.setdefault(f"{name} cosine", []).append(float(a @ e / (a.norm() * e.norm())))
        return row | {name: statistics.median(values) for name, values in errors.items()}


def gate(problem: Problem) -> float:
    """Error of the exact gradient against autograd through the loop; no number is worth anything without it."""
    state, steps = problem.state(problem.config), 4
    exact, _ = problem.gradients(state, "exact", 0, steps=steps, lr=problem.config.lr_init)
    truth, _ = problem.gradients(state, "unroll", 0, steps=steps, lr=problem.config.lr_init)
    error = max(harness.relative_error(exact[name], truth[name]) for name in INPUTS)
    harness.require(error, TOLERANCE, "the exact gradient")
    return error


def over_steps(problem: Problem, steps: Sequence[int], factors: Sequence[float]) -> list[dict[str, Any]]:
    """At the initial images: T times alpha decides how much the Hessian terms weigh."""
    state, config = problem.state(problem.config), problem.config
    return [
        {"part": "over T and alpha"}
        | problem.compare(state, steps=count, lr=factor * config.lr_init, iterations=range(3))
        for count, factor in itertools.product(steps, factors)
    ]


def over_training(problem: Problem, iterations: int, every: int) -> list[dict[str, Any]]:
    """Along a run of the exact gradient."""
    config, rows = problem.config, []
    state, loop = problem.state(config), problem.loop(config)
    for iteration in range(iterations + 1):
        if iteration % every == 0:
            measured = problem.compare(
                state, steps=config.syn_steps, lr=float(state.lr), iterations=range(iteration, iteration + 3)
            )
            rows.append({"part": "over training", "iteration": iteration} | measured)
        loop.iterate(state)
    return rows


@dataclass
class TimedRun:
    """A run of one gradient, the processor seconds it has used, and why it ended early if it did."""

    loop: Loop
    state: State
    used: float = 0.0
    failure: str | None = None

    def goes_on(self, seconds: float) -> bool:
        """Whether it has time left and has not diverged."""
        return self.failure is None and self.used < seconds


def equal_time(problem: Problem, seconds: float, *, seed: int, networks: int) -> list[dict[str, Any]]:
    """Two runs in turns until each has used `seconds` of the processor; their accuracy."""
    runs = {}
    for gradient in ("exact", "tesla"):
        config = override(problem.config, {"gradient": gradient, "seed": seed})
        runs[gradient] = TimedRun(problem.loop(config), problem.state(config))
    while any(run.goes_on(seconds) for run in runs.values()):
        for run in runs.values():
            start = time.process_time()
            try:
                while run.goes_on(seconds) and time.process_time() - start < SLICE:
                    run.loop.iterate(run.state)
            except DistillationStopped as error:  # a run that diverges is a result
                run.failure = str(error)
            run.used += time.process_time() - start
    rows = []
    for gradient, run in runs.items():
        state = run.state
        reached = accuracy(state, problem.config, problem.normalization, problem.data, seed=seed, networks=networks)
        rows.append(
            {"part": "equal time", "gradient": gradient, "seed": seed, "processor_seconds": run.used,
             "iterations": state.iteration, "skipped": state.skipped, "lr": float(state.lr), "stopped": run.failure,
             "accuracy": reached.mean, "std": reached.std, "networks": networks}
        )  # fmt: skip
    return rows


def accuracy(
    state: State,
    config: Config,
    normalization: Normalization,
    data: ImageDataset,
    *,
    seed: int,
    networks: int,
    lr: float | None = None,
    row: str = "distilled",
) -> AccuracyRow:
    """Fresh networks on what a run has come to, or on a baseline of its size.

    Args:
        lr: what they are trained with; None takes the state's.
        row: "distilled", or the baseline, as its row is called.
    """
    result = DistilledDataset(
        images=state.images, label_logits=state.label_logits, labels=state.labels, lr=float(state.lr),
        whitening=normalization, config=config.describe(), history=[], class_names=data.class_names,
    )  # fmt: skip
    report = evaluate(
        {"distilled": result}, data, models=(config.model,), repeats=networks, epochs=config.eval_epochs,
        batch=config.eval_batch, lr=lr, baselines=("random",) if row == RANDOM else False, seed=seed,
        progress=Progress(quiet=True),
    )  # fmt: skip
    return report.row(row)


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The three tables as markdown."""
    text = ["| T | alpha | T x alpha | images: cosine | error | labels: cosine | error | alpha: error |"]
    text.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        if row["part"] == "over T and alpha":
            text.append(f"| {row['steps']} | {row['lr']:g} | {row['steps_times_lr']:.3g} | {_errors(row)} |")
    text += ["", "| iteration | loss | alpha | images: cosine | error | labels: cosine | error | alpha: error |"]
    text.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        if row["part"] == "over training":
            text.append(f"| {row['iteration']} | {row['loss']:.3f} | {row['lr']:.4g} | {_errors(row)} |")
    text += ["", "| gradient | seed | seconds | iterations | skipped | alpha at the end | accuracy, % |"]
    text.append("|---|---|---|---|---|---|---|")
    for row in rows:
        if row["part"] == "equal time":
            stopped = f" (stopped: {row['stopped']})" if row["stopped"] else ""
            text.append(
                f"| {row['gradient']} | {row['seed']} | {row['processor_seconds']:.0f} | {row['iterations']} | "
                f"{row['skipped']} | {row['lr']:.4g} | {row['accuracy']:.1f} +- {row['std']:.1f}{stopped} |"
            )
    return "\n".join(text)


def _errors(row: dict[str, Any]) -> str:
    return " | ".join(
        f"{row[name]:.3f}" for name in ("images cosine", "images error", "labels cosine", "labels error", "lr error")
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="data set, e.g. imagefolder:DIR (default: the digits)")
    parser.add_argument("--images", type=int, default=2000, help="training images of --data used (default: 2000)")
    parser.add_argument("--ipc", type=int, default=1, help="images per class (default: 1)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40], help="T of the first table")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[0.5, 1, 2], help="times lr_init: alpha of the first table"
    )
    parser.add_argument("--iterations", type=int, default=400, help="of the run that is followed (default: 400)")
    parser.add_argument("--every", type=int, default=100, help="iterations between its measurements (default: 100)")
    parser.add_argument("--seconds", type=float, default=20, help="processor time of each run (default: 20)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="of the pairs of runs")
    parser.add_argument("--networks", type=int, default=5, help="evaluated on each result (default: 5)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings, as in a YAML file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args(argv)

    settings = {"ipc": options.ipc, **(CIFAR if options.data else {}), **parsed(options.set)}
    config = make_settings(overrides=settings).config
    data = load_dataset(options.data or "digits")
    if options.data:
        data = subset(data, options.images // data.classes)
    command = harness.command("benchmarks.fidelity", argv)
    print(harness.heading(command))
    with tempfile.TemporaryDirectory() as folder:
        problem = Problem(data, config, Path(folder))
        error = gate(problem)
        print(f"exact against autograd through 4 steps, float64: {error:.1e}")
        rows = over_steps(problem, options.steps, options.factors)
        rows += over_training(problem, options.iterations, options.every)
        for seed in options.seeds:
            rows += equal_time(problem, options.seconds, seed=seed, networks=options.networks)
    print(show(rows))
    used = {**config.describe(), "dataset": options.data or "digits"}
    harness.write(options.json, "fidelity", command, rows, gate=error, settings=used)


def parsed(items: Sequence[str]) -> dict[str, Any]:
    """Settings out of `NAME=VALUE`, values as in a YAML file."""
    import yaml

    return {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in items)}


def subset(data: ImageDataset, train: int, test: int | None = None) -> ImageDataset:
    """The first `train` training and `test` test images of every class (None: all of them)."""

    def first(labels: Tensor, count: int | None) -> Tensor:
        return torch.cat([(labels == label).nonzero()[:count, 0] for label in range(data.classes)])

    shown, tested = first(data.train_labels, train), first(data.test_labels, test)
    return load_dataset(
        (data.train_images[shown], data.train_labels[shown], data.test_images[tested], data.test_labels[tested])
    )


if __name__ == "__main__":
    main()
