"""Gradient and distribution matching at CIFAR-10's size: seconds per iteration, ours against a loop over classes.

    python -m benchmarks.matching
    python -m benchmarks.matching --methods dm --rounds 5 --json benchmarks/results/matching-dm-cpu.json

ConvNet D3 W128, 32 px, 10 classes, 256 real images per class and update. One iteration of DM is one update. One of DSA
has many alike parts, so these are timed: one update of the images (`dsa update`), and one epoch of the network on the
synthetic set (`dsa epoch`); at IPC 10 there are 10 of the former and 9 * 50 of the latter. Both sides draw the same
images, networks and augmentation; their results are compared first. The loops over classes are plain torch; tuned,
they run in channels_last, in a process that keeps freed memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import harness
from benchmarks.registry import Suite
from benchmarks.rivals import keep_freed_memory, laid_out
from pad_fast import DSA, Config
from pad_fast.distillation.batch_matching import BatchLoop, RealPool, initial_images, loops_of
from pad_fast.distillation.state import State
from pad_fast.engines import record_backends
from pad_fast.experts import Curriculum
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import derive_seed, generator
from pad_fast.settings.resolve import make_settings

SUITE = Suite(
    name="matching",
    about="updates of gradient and distribution matching",
    quick=None,  # one update of the plain loops takes seconds
    full=("--methods", "dm", "--rounds", "2"),
)

# One update in float32, compared as the change of the images; a ReLU may switch, a wrong gradient is off by far more.
TOLERANCE = 2e-2
CLASSES = 10
PARTS = {"dm": ("dm update",), "dsa": ("dsa update", "dsa epoch")}


class Case:
    """Random images of CIFAR-10's shape, and what both sides do with them."""

    def __init__(self, part: str, ipc: int, **changes: Any) -> None:
        method = part.partition(" ")[0]
        overrides = {"method": method, "ipc": ipc, "dataset": "cifar10", **changes}
        self.config: Config = make_settings(overrides=overrides).config
        draws = torch.Generator().manual_seed(0)
        per_class = self.config.batch_real + 44
        self.images = torch.randn(CLASSES * per_class, 3, 32, 32, generator=draws)
        order = list(torch.arange(len(self.images)).split(per_class))
        spec = NetworkSpec(self.config.model, 3, CLASSES, 32)
        real = RealPool(self.images, order, [str(label) for label in range(CLASSES)], Curriculum.none())
        initial = initial_images(self.config, real)
        self.state = State.start(initial.images, initial.label_logits, initial.labels, self.config, torch.device("cpu"))
        self.loop = BatchLoop(spec.build(self.config.seed, "student"), spec, real, self.config, torch.device("cpu"))
        self.spec, self.dsa = spec, DSA(self.config.dsa, siamese=True)
        self.module = spec.build(self.config.seed, "network", 0).module

    def ours(self, part: str) -> Tensor:
        """One step of `BatchLoop`: the images' gradient, or the network's parameters after an epoch."""
        theta = self.spec.build(self.config.seed, "network", 0).initial()
        with self.loop.engine.running():
            if part.endswith("update"):
                return self.loop._match(theta, self.state.images, 0, 0)[1]
            self.loop.inner = 1
            return self.loop._train(theta, self.state.images, self.state.labels, 0, 1) - theta

    def plain(self, part: str, tuned: bool) -> Tensor:
        """The same in plain torch, class by class, on a module with a fresh network's weights."""
        module = self.spec.build(self.config.seed, "network", 0).module
        layout = torch.channels_last if tuned else torch.contiguous_format
        laid_out(module, layout)
        if part == "dsa epoch":
            return self._epoch(module, layout)
        leaf = self.state.images.clone().requires_grad_()
        match = self._features if part == "dm update" else self._gradients
        total = leaf.new_zeros(())
        for label, rows in enumerate(self.loop._rows(0, 0)):
            draw = self.dsa.draw(1, (3, 32, 32), generator=generator(self.config.seed, "siamese dsa", 0, 0, label))
            real = self.dsa.apply(self.images[rows], draw).contiguous(memory_format=layout)
            made = self.dsa.apply(leaf[self.state.labels == label], draw).contiguous(memory_format=layout)
            total = total + match(module, real, made, label)
        total.backward()
        assert leaf.grad is not None
        return leaf.grad

    @staticmethod
    def _features(module: Any, real: Tensor, made: Tensor, label: int) -> Tensor:
        with torch.no_grad():
            given = module.embed(real).mean(0)
        return (given - module.embed(made).mean(0)).square().sum()

    @staticmethod
    def _gradients(module: nn.Module, real: Tensor, made: Tensor, label: int) -> Tensor:
        parameters = list(module.parameters())
        loss = functional.cross_entropy(module(real), torch.full((len(real),), label))
        given = torch.autograd.grad(loss, parameters)
        loss = functional.cross_entropy(module(made), torch.full((len(made),), label))
        mine = torch.autograd.grad(loss, parameters, create_graph=True)
        pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(given, mine, strict=True) if a.dim() > 1]
        return torch.stack([(1 - functional.cosine_similarity(a, b)).sum() for a, b in pairs]).sum()

    def _epoch(self, module: nn.Module, layout: torch.memory_format) -> Tensor:
        config = self.config
        before = torch.cat([p.detach().flatten() for p in module.parameters()])
        augment = self.loop.train_dsa.seeded(derive_seed(config.seed, "network dsa", 0, 1))
        optimizer = torch.optim.SGD(module.parameters(), lr=config.lr_init)
        order = torch.randperm(len(self.state.images), generator=generator(config.seed, "network batches", 0, 1))
        x = augment(self.state.images[order], 0).contiguous(memory_format=layout)
        loss = functional.cross_entropy(module(x), self.state.labels[order])
        loss.backward()
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in module.parameters()]) - before


RIVALS: dict[str, Callable[[Case, str], Tensor]] = {
    "loop over classes": lambda case, part: case.plain(part, False),
    "loop over classes, tuned": lambda case, part: case.plain(part, True),
    "ours": lambda case, part: case.ours(part),
}


def work(rival: str, part: str, ipc: int) -> None:
    """Be the worker of one rival."""
    if rival.endswith("tuned"):
        keep_freed_memory()
    with record_backends() as used:
        case = Case(part, ipc)
    if rival == "ours" and used != ["cpu"]:
        raise SystemExit(f"ours ran on {used}")
    harness.serve(lambda: [RIVALS[rival](case, part)])


def time_part(part: str, ipc: int, rounds: int) -> list[dict[str, Any]]:
    """Check and time every rival at one part of an iteration."""
    workers = {name: harness.Worker("benchmarks.matching", name, part, str(ipc)) for name in RIVALS}
    errors, samples = harness.race(
        workers, rounds=rounds, check=lambda name, error: harness.require(error, TOLERANCE, f"{part}, {name}")
    )
    rows = []
    for name, seconds in samples.items():
        row: dict[str, Any] = {"part": part, "ipc": ipc, "rival": name, "error": errors[name]}
        row["seconds"] = harness.summary(seconds)
        row |= harness.times_faster(samples, name, ("loop over classes", "loop over classes, tuned"))
        rows.append(row)
    return rows


def whole(method: str, rows: list[dict[str, Any]], ipc: int) -> list[dict[str, Any]]:
    """Iterations per second of every rival, put together from the medians of their parts."""
    config = make_settings(overrides={"method": method, "ipc": ipc, "dataset": "cifar10"}).config
    outer, inner, _ = loops_of(config)
    times = (outer, (outer - 1) * inner)
    median = {(row["part"], row["rival"]): row["seconds"]["median"] for row in rows}
    found = []
    for rival in RIVALS:
        seconds = sum(count * median[part, rival] for count, part in zip(times, PARTS[method], strict=False))
        found.append({"method": method, "rival": rival, "seconds": seconds, "iterations_per_second": 1 / seconds})
    return found


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ipc", type=int, default=10, help="synthetic images per class (default: 10)")
    parser.add_argument("--methods", nargs="+", choices=PARTS, default=list(PARTS), help="what to time (default: all)")
    parser.add_argument("--worker", nargs=3, metavar=("RIVAL", "PART", "IPC"), help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], options.worker[1], int(options.worker[2]))
        return
    command = "python -m benchmarks.matching " + " ".join(sys.argv[1:])
    print(harness.heading(command) + "\n")
    rows: list[dict[str, Any]] = []
    print(f"{'part':<14}{'rival':<28}{'seconds':>10}{'min..max':>18}{'x loop':>9}{'x tuned':>9}{'error':>10}")
    for part in (part for method in options.methods for part in PARTS[method]):
        for row in time_part(part, options.ipc, options.rounds):
            rows.append(row)
            time = row["seconds"]
            ratios = [row[f"times_faster_than_loop over classes{end}"]["median"] for end in ("", ", tuned")]
            print(
                f"{part:<14}{row['rival']:<28}{time['median']:>10.3f}{time['min']:>9.3f}..{time['max']:<7.3f}"
                f"{ratios[0]:>9.2f}{ratios[1]:>9.2f}{row['error']:>10.1e}"
            )
    totals = [row for method in options.methods for row in whole(method, rows, options.ipc)]
    print(f"\n{'method':<14}{'rival':<28}{'s per iteration':>16}{'iterations per s':>18}")
    for row in totals:
        print(f"{row['method']:<14}{row['rival']:<28}{row['seconds']:>16.3f}{row['iterations_per_second']:>18.4f}")
    harness.write(options.json, "matching", command, rows, iterations=totals)


if __name__ == "__main__":
    main()
