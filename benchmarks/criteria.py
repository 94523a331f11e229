"""Accuracy of each criterion in the same time (random real images, DM, DC, DSA, PAD), and what PAD's filters add.

    export OMP_NUM_THREADS=1
    python -m benchmarks.criteria --json benchmarks/results/criteria-digits.json
    python -m benchmarks.criteria --data imagefolder:DIR --json benchmarks/results/criteria-cifar10.json

The budget is time of the processor, so that waiting on a busy machine does not count; with one thread it is also the
time of an undisturbed run. Everything a method needs is in it: for PAD the scores and the experts too. Because experts
serve every number of images per class, PAD is also measured when only its iterations count ("given" experts).

* `search`, with seed 0: each method has the same number of candidates; on the digits the first is its preset.
  Each gets `--search-seconds` (experts given). Sets without a learning rate of their own are evaluated at two.
* `compare`, with `--seeds`: every method with the candidate and the learning rate that were best in `search`.
* `filters`, with `--seeds`: the same once more, with one filter at a time; only iterations count.

A part takes what an earlier one left in `--json`, so that they can be run one by one, and a killed run be repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.fidelity import CIFAR, Problem, accuracy, parsed, subset
from benchmarks.registry import Suite
from pad_fast import ImageDataset, Progress, load_dataset
from pad_fast.data import Normalization, fit_normalization
from pad_fast.distillation.batch_matching import BatchLoop, RealPool, initial_images
from pad_fast.distillation.iterations import Iterations
from pad_fast.distillation.state import State
from pad_fast.errors import DistillationStopped
from pad_fast.evaluation.sets import RANDOM
from pad_fast.evaluation.table import mean_std
from pad_fast.experts.curriculum import curriculum_of, prune
from pad_fast.models.spec import NetworkSpec
from pad_fast.pipeline.configured import needs_order, order_of, score_as_configured
from pad_fast.pipeline.sweep import Cell, parse_axis
from pad_fast.settings.choices import PRUNES
from pad_fast.settings.config import Config
from pad_fast.settings.resolve import make_settings

SUITE = Suite(
    name="criteria",
    about="criteria after equal time",
    quick=(
        *("--seconds", "0.1", "--search-seconds", "0.05", "--candidates", "1", "--seeds", "1", "--networks", "1"),
        *("--search-networks", "1", "--filtered", "dm", "--mask", "depth:0", "--prune", "hardest:0.2", "--set"),
        *("num_experts=1", "train_epochs=20", "score_networks=1", "score_epochs=1", "eval_epochs=4"),
    ),
    full=None,  # an hour
)

CPU = torch.device("cpu")
COMPARED = ("random", "dm", "dc", "dsa", "pad")
KEY = ("part", "ipc", "method", "seed", "changes", "filter", "budget", "experts", "rate")  # tells one row from another
RATES = (0.01, 0.03)  # for networks on sets without a learning rate of their own; PAD's is learned

# What the search tries, as changes of the preset: as many for each method.
DIGITS: dict[str, list[dict[str, Any]]] = {
    "random": [{}],
    "dm": [{}, {"lr_img": 3.0}, {"lr_img": 30.0}],
    "dc": [{}, {"lr_img": 0.3}, {"lr_img": 3.0}],
    "dsa": [{}, {"lr_img": 0.3}, {"lr_img": 3.0}],
    "pad": [{}, {"lr_img": 30.0}, {"syn_steps": 40}],
}
CIFAR10: dict[str, list[dict[str, Any]]] = {
    "random": [{}],
    "dm": [{"lr_img": 10.0}, {"lr_img": 1.0}, {"lr_img": 30.0}],
    "dc": [{"lr_img": 1.0}, {"lr_img": 0.1}, {"lr_img": 10.0}],
    "dsa": [{"lr_img": 1.0}, {"lr_img": 0.1}, {"lr_img": 10.0}],
    "pad": [{}, {"lr_img": 1000.0}, {"syn_steps": 40}],
}


def settings(method: str, *, data: str, ipc: int, seed: int, changes: dict[str, Any]) -> Config:
    """A method's preset with some changes; random images are evaluated as DM's are."""
    method = "dm" if method == "random" else method
    base: dict[str, Any] = {}
    if data != "digits":
        base = {**CIFAR, "train_epochs": 10} if method == "pad" else {"model": CIFAR["model"]}
        base["eval_epochs"] = CIFAR["eval_epochs"]
    overrides = {**base, **changes, "seed": seed}
    return make_settings(dataset=data, ipc=ipc, method=method, overrides=overrides).config


@dataclass(eq=False)
class Run:
    """One method at work.

    Attributes:
        preparation: seconds of the processor before the first iteration; `seconds`: of the iterations.
        stopped: why there are no more, where something went wrong.
    """

    config: Config
    normalization: Normalization
    loop: Iterations
    state: State
    preparation: float
    seconds: float = 0.0
    stopped: str | None = None

    def advance(self, until: float) -> None:
        """Iterate until that many seconds were spent on it; a run that diverges is a result."""
        while self.seconds < until and self.stopped is None:
            start = time.process_time()
            try:
                self.loop.settle(self.state, self.loop.begin(self.state))
            except DistillationStopped as error:
                self.stopped = str(error)
            self.seconds += time.process_time() - start


class Study:
    """The data, the experts that were made so far, and the rows."""

    def __init__(self, data: ImageDataset, options: argparse.Namespace, command: str, folder: Path) -> None:
        self.data, self.options, self.command, self.folder = data, options, command, folder
        self.paid: dict[Path, float] = {}  # seconds of the processor for the experts in a folder
        self.rows: list[dict[str, Any]] = []

    def config(self, method: str, seed: int, changes: dict[str, Any]) -> Config:
        """The settings of one run; `--set` has the last word."""
        options = self.options
        name = "digits" if options.data is None else options.data
        return settings(method, data=name, ipc=options.ipc, seed=seed, changes={**changes, **options.set})

    def start(self, config: Config) -> Run:
        """Everything before the first iteration."""
        before = time.process_time()
        if config.uses_experts:
            # The same experts for all settings that only change what is done with them.
            described = json.dumps(config.describe("data", "scores", "experts"))
            folder = self.folder / hashlib.sha256(described.encode()).hexdigest()[:12]
            problem = Problem(self.data, config, folder)
            preparation = self.paid.setdefault(folder, time.process_time() - before)
            return Run(config, problem.normalization, problem.loop(config), problem.state(config), preparation)
        normalization = fit_normalization(self.data, "mean-std")
        difficulty = None
        if needs_order(config):
            with tempfile.TemporaryDirectory() as networks:
                difficulty = score_as_configured(
                    config, self.data, normalization, CPU, Progress(quiet=True), networks_dir=Path(networks)
                )
        shown = prune(order_of(self.data, difficulty), config.prune)
        real = RealPool(
            normalization.apply(self.data.train_images), shown, self.data.class_names, curriculum_of(config)
        )
        initial = initial_images(config, real)
        state = State.start(initial.images, initial.label_logits, initial.labels, config, CPU)
        spec = NetworkSpec(config.model, self.data.channels, self.data.classes, self.data.resolution)
        loop = BatchLoop(spec.build(config.seed, "student"), spec, real, config, CPU)
        return Run(config, normalization, loop, state, time.process_time() - before)

    def record(self, run: Run, row: dict[str, Any], *, networks: int, rates: Sequence[float | None]) -> None:
        """Evaluate what a run has come to, and keep that at once."""
        for rate in rates:
            reached = accuracy(
                run.state, run.config, run.normalization, self.data, seed=run.config.seed, networks=networks, lr=rate,
                row=RANDOM if row["method"] == "random" else "distilled",
            )  # fmt: skip
            self.rows.append(
                {**row, "ipc": run.config.ipc, "seed": run.config.seed, "rate": rate, "mean": reached.mean,
                 "preparation_seconds": run.preparation, "iteration_seconds": run.seconds, "lr": float(run.state.lr),
                 "iterations": run.state.iteration, "stopped": run.stopped, "accuracies": list(reached.accuracies),
                 "command": self.command}
            )  # fmt: skip
            print(line(self.rows[-1]), flush=True)
        options = self.options
        kept = harness.merged(options.json, self.rows, KEY)
        described = {"data": options.data, "images_per_class": [options.images, options.test_images]}
        harness.write(options.json, "criteria", self.command, kept, **(described if options.data else {}))

    def search(self, method: str, candidates: Sequence[dict[str, Any]]) -> None:
        """Every candidate for the same time."""
        for changes in candidates:
            run = self.start(self.config(method, 0, changes))
            if method != "random":
                run.advance(self.options.search_seconds)
            row = {"part": "search", "method": method, "changes": words(changes), "budget": self.options.search_seconds}
            self.record(run, row, networks=self.options.search_networks, rates=_rates(method))

    def chosen(self, method: str) -> tuple[dict[str, Any], float | None]:
        """The best candidate and learning rate of the search; without one, the preset."""
        kept = [
            row
            for row in harness.merged(self.options.json, self.rows, KEY)
            if (row["part"], row["method"], row["ipc"]) == ("search", method, self.options.ipc)
        ]
        if not kept:
            return {}, _rates(method)[0]
        best = max(kept, key=lambda row: row["mean"])
        return parsed(best["changes"].split()), best["rate"]

    def compare(self, method: str, seed: int) -> None:
        """One method at every budget, as points of one run."""
        changes, rate = self.chosen(method)
        run = self.start(self.config(method, seed, changes))
        row = {"part": "compare", "method": method, "changes": words(changes)}
        if method == "random":
            self.record(run, {**row, "budget": 0.0}, networks=self.options.networks, rates=[rate])
            return
        points = [(seconds - run.preparation, seconds, "counted") for seconds in self.options.seconds]
        if run.config.uses_experts:
            points += [(seconds, seconds, "given") for seconds in self.options.seconds]
        for until, budget, experts in sorted(points):
            if until > 0:  # else there is no iteration to show
                run.advance(until)
                full = {**row, "budget": budget, "experts": experts}
                self.record(run, full, networks=self.options.networks, rates=[rate])

    def filter(self, method: str, cell: Cell) -> None:
        """One method with one filter for the first of the budgets."""
        changes, rate = self.chosen(method)
        run = self.start(cell.config(self.config(method, cell.seed, changes)))
        run.advance(self.options.seconds[0])
        name = cell.name.rpartition("_seed")[0]
        row = {"part": "filters", "method": method, "changes": words(changes), "filter": name}
        row["budget"] = self.options.seconds[0]
        self.record(run, row, networks=self.options.networks, rates=[rate])


def _rates(method: str) -> Sequence[float | None]:
    return (None,) if method == "pad" else RATES


def words(changes: dict[str, Any]) -> str:
    """Settings as they can be typed, and :func:`parsed`."""
    return " ".join(f"{name}={value}" for name, value in changes.items())


def line(row: dict[str, Any]) -> str:
    """One measurement as text."""
    what = row.get("filter") or row["changes"] or "preset"
    spent = f"{row['preparation_seconds']:.0f} + {row['iteration_seconds']:.0f} s, {row['iterations']} iterations"
    return (
        f"{row['part']:<8} {row['method']:<7} IPC {row['ipc']} seed {row['seed']} {what}, rate {row['rate']}, "
        f"{row.get('experts', '')} {spent}: {row['mean']:.1f}"
    )


NAMES = {"random": "random real", "dm": "DM", "dc": "DC", "dsa": "DSA", "pad": "PAD"}


def _pooled(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over the networks of all seeds, and the mean of each seed."""
    mean, std = mean_std([accuracy for row in rows for accuracy in row["accuracies"]])
    seeds = ", ".join(f"{row['mean']:.1f}" for row in sorted(rows, key=lambda row: row["seed"]))
    return f"{mean:.1f} ± {std:.1f}" + (f" ({seeds})" if len(rows) > 1 else "")


def _span(values: Sequence[float]) -> str:
    """Summary over the seeds."""
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _groups(rows: Sequence[dict[str, Any]], part: str, keys: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Rows that only differ in the seed, in the order in which such groups first come."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return list(found.values())


def compared(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table of `compare`: header and cells."""
    header = ["IPC", "budget, s", "criterion", "of these before the first iteration", "iterations", "accuracy, %"]
    groups = _groups(rows, "compare", ("ipc", "budget", "method", "experts"))
    groups.sort(key=lambda group: (group[0]["ipc"], group[0]["budget"], COMPARED.index(group[0]["method"])))
    cells = []
    for group in groups:
        first = group[0]
        name, spent = NAMES[first["method"]], _span([row["preparation_seconds"] for row in group])
        if first.get("experts") == "given":
            name, spent = f"{name}, experts given", "not counted"
        counts = _span([row["iterations"] for row in group])
        cells.append([str(first["ipc"]), f"{first['budget']:g}", name, spent, counts, _pooled(group)])
    return header, cells


def filtered(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table of `filters`, each beside the same method without one."""
    header = ["IPC", "criterion", "pruned", "masked", "iterations", "accuracy, %", "against none"]
    cells = []
    plain: dict[tuple[Any, ...], float] = {}
    for group in _groups(rows, "filters", ("ipc", "method", "filter")):
        first = group[0]
        mean = mean_std([accuracy for row in group for accuracy in row["accuracies"]])[0]
        pruned, masked = (" ".join(text.split("-")[1:]) for text in first["filter"].split("_"))
        against = plain.setdefault((first["ipc"], first["method"]), mean)
        counts = _span([row["iterations"] for row in group])
        name = NAMES[first["method"]]
        cells.append([str(first["ipc"]), name, pruned, masked, counts, _pooled(group), f"{mean - against:+.1f}"])
    return header, cells


def searched(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table of `search`; the best of each method, which `compare` takes, is bold."""
    header = ["IPC", "criterion", "changes of the preset", "networks' learning rate", "iterations", "accuracy, %"]
    cells = []
    for group in _groups(rows, "search", ("ipc", "method")):
        best = max(group, key=lambda row: row["mean"])
        for row in group:
            rate = "learned" if row["rate"] is None else f"{row['rate']:g}"
            reached = f"**{_pooled([row])}**" if row is best else _pooled([row])
            name = NAMES[row["method"]]
            cells.append([str(row["ipc"]), name, row["changes"] or "none", rate, str(row["iterations"]), reached])
    return header, cells


TABLES = {"search": searched, "compare": compared, "filters": filtered}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.criteria", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="data set, e.g. imagefolder:DIR (default: the digits)")
    parser.add_argument("--images", type=int, default=500, help="training images per class of --data (default: 500)")
    parser.add_argument("--test-images", type=int, default=300, help="test images per class of it (default: 300)")
    parser.add_argument("--ipc", type=int, default=1, help="images per class (default: 1)")
    parser.add_argument("--parts", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument(
        "--methods", nargs="+", choices=COMPARED, default=COMPARED, help="what is searched and compared"
    )
    parser.add_argument("--filtered", nargs="+", choices=COMPARED[1:], default=["dm", "dc"], help="what gets filters")
    parser.add_argument("--candidates", type=int, help="the search tries the first so many of each method's")
    parser.add_argument("--search-seconds", type=float, default=20, help="of a candidate's iterations (default: 20)")
    parser.add_argument("--search-networks", type=int, default=3, help="evaluated on each of them (default: 3)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[30, 60], help="budgets (default: 30 60)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of the comparison (default: 1 2)")
    parser.add_argument("--networks", type=int, default=5, help="evaluated on each result (default: 5)")
    parser.add_argument("--mask", nargs="*", default=["depth:0,0.25,0.5"], help="as in pad-fast sweep")
    parser.add_argument("--prune", nargs="*", default=["hardest:0.1,0.2", "easiest:0.1"], help="as in pad-fast sweep")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings (the quick run's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args(argv)
    options.set = parsed(options.set)
    data = load_dataset(options.data or "digits")
    if options.data:
        data = subset(data, options.images, options.test_images)
    command = harness.command("benchmarks.criteria", argv)
    print(harness.heading(command))
    candidates = CIFAR10 if options.data else DIGITS
    none = ("none", 0.0)
    masks = parse_axis(options.mask, ("depth", "layers"), "mask")
    prunes = parse_axis(options.prune, PRUNES, "prune")
    pairs = [(none, none), *((none, mask) for mask in masks), *((rule, none) for rule in prunes)]
    with tempfile.TemporaryDirectory() as folder:
        study = Study(data, options, command, Path(folder))
        if "search" in options.parts:
            for method in options.methods:
                study.search(method, candidates[method][: options.candidates])
        if "compare" in options.parts:
            for seed in options.seeds:
                for method in options.methods:
                    study.compare(method, seed)
        if "filters" in options.parts:
            for seed in options.seeds:
                for method in options.filtered:
                    for rule, mask in pairs:
                        study.filter(method, Cell(rule, mask, seed))


if __name__ == "__main__":
    main()
