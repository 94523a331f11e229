"""Expert training (GSAM) and evaluation training, on our engine and in plain torch: seconds per epoch.

    python -m benchmarks.training --data imagefolder:DIR
    python -m benchmarks.training                     (random images of CIFAR-10's shape)

Both sides see the same images, batches, DSA draws and hyperparameters, and start from the same weights; the weights
they end with are compared first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.registry import Suite
from benchmarks.rivals import keep_freed_memory, laid_out, plain_gsam_epoch, plain_sgd_epoch
from pad_fast import DSA, ConvNet, load_dataset
from pad_fast.data import fit_normalization
from pad_fast.models import FlatNetwork
from pad_fast.runtime.rng import generator
from pad_fast.training.optimizers import GSAM, SGD
from pad_fast.training.trainer import Trainer, shuffled_batches

SUITE = Suite(
    name="training",
    about="epochs of expert training (GSAM) and of evaluation training",
    quick=("--images", "40", "--rounds", "1"),
    full=("--images", "500", "--rounds", "1"),
)

# After a whole epoch in float32; a wrong update rule differs in the first digit.
TOLERANCE = 5e-2


def load_images(dataset: str | None, count: int) -> tuple[Tensor, Tensor]:
    """`count` normalised training images of a data set, or random ones of CIFAR-10's shape."""
    if dataset is None:
        draws = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, 32, 32, generator=draws), torch.arange(count) % 10
    data = load_dataset(dataset)
    rows = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(0))[:count]
    images = fit_normalization(data, "mean-std").apply(data.train_images[rows])
    return images, data.train_labels[rows]


class Job:
    """One epoch on either side; calling it returns the flat weights it ends with."""

    def __init__(self, images: Tensor, targets: Tensor, batch: int) -> None:
        torch.manual_seed(0)
        self.module = ConvNet()
        self.start = FlatNetwork(self.module).initial()
        self.images, self.targets = images, targets
        self.batches = shuffled_batches(torch.arange(len(images)), batch, generator(0, "bench"))

    def augment(self) -> Callable[[Tensor], Tensor]:
        """The same draws on both sides: a fresh generator for every epoch."""
        dsa, draws = DSA("color_crop_cutout_flip_scale_rotate"), generator(0, "bench dsa")
        return lambda images: dsa(images, generator=draws)

    def fresh(self) -> nn.Module:
        """The module with its first weights."""
        return FlatNetwork(self.module).load(self.start).train()

    def ours(self, optimizer: Any, backend: str) -> Tensor:
        """One epoch on an engine of ours."""
        self.fresh()
        trainer = Trainer(FlatNetwork(self.module), device=torch.device("cpu"), backend=backend)
        trainer.epoch(self.images, self.targets, self.batches, optimizer, self.augment())
        return trainer.theta

    def plain_gsam(self, tuned: bool) -> Tensor:
        """One epoch of GSAM in plain torch."""
        module = self._module(tuned)
        plain_gsam_epoch(
            module, self.images, self.targets, self.batches, self._augment(tuned), lr=0.01, rho=0.01, alpha=0.3
        )
        return FlatNetwork(module).initial()

    def plain_sgd(self, tuned: bool) -> Tensor:
        """One epoch of the evaluation recipe in plain torch."""
        module = self._module(tuned)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        probabilities = self.targets.softmax(-1)
        plain_sgd_epoch(module, self.images, probabilities, self.batches, self._augment(tuned), optimizer)
        return FlatNetwork(module).initial()

    def augmented(self) -> Tensor:
        """The epoch's augmentation and nothing else."""
        augment = self.augment()
        for batch in self.batches:
            augment(self.images[batch])
        return self.start

    def _module(self, tuned: bool) -> nn.Module:
        module = self.fresh()
        return laid_out(module, torch.channels_last if tuned else torch.contiguous_format)

    def _augment(self, tuned: bool) -> Callable[[Tensor], Tensor]:
        augment = self.augment()
        if not tuned:
            return augment
        return lambda images: augment(images).contiguous(memory_format=torch.channels_last)


def make_job(suite: str, dataset: str | None, count: int) -> Job:
    """The images of a suite: experts take all of them, evaluation a fifth with soft labels."""
    images, labels = load_images(dataset, count)
    if suite == "experts":
        return Job(images, labels, 256)
    soft = torch.nn.functional.one_hot(labels, 10).float() * 4
    return Job(images[: count // 5], soft[: count // 5], 128)


RIVALS: dict[tuple[str, str], Callable[[Job], Tensor]] = {
    ("experts", "plain torch"): lambda job: job.plain_gsam(False),
    ("experts", "plain torch, tuned"): lambda job: job.plain_gsam(True),
    ("experts", "ours"): lambda job: job.ours(GSAM(0.01, rho=0.01, alpha=0.3), "cpu"),
    ("evaluation", "plain torch"): lambda job: job.plain_sgd(False),
    ("evaluation", "plain torch, tuned"): lambda job: job.plain_sgd(True),
    ("evaluation", "ours"): lambda job: job.ours(SGD(0.01, momentum=0.9, weight_decay=5e-4), "cpu"),
    ("experts", "our augmentation alone"): lambda job: job.augmented(),
    ("evaluation", "our augmentation alone"): lambda job: job.augmented(),
}


def work(suite: str, rival: str, dataset: str | None, count: int) -> None:
    """Be the worker of one rival; results are the weights' movement over the epoch."""
    if rival == "plain torch, tuned":
        keep_freed_memory()
    job, run = make_job(suite, dataset, count), RIVALS[suite, rival]
    harness.serve(lambda: [run(job) - job.start])


def time_suite(suite: str, dataset: str | None, count: int, rounds: int) -> list[dict[str, Any]]:
    """Check and time the rivals of one suite."""
    names = [name for each, name in RIVALS if each == suite]
    arguments = (str(count), *([dataset] if dataset else []))
    workers = {name: harness.Worker("benchmarks.training", suite, name, *arguments) for name in names}
    errors, samples = harness.race(
        workers,
        rounds=rounds,
        check=lambda name, error: harness.require(error, TOLERANCE, f"{suite}, {name}: the movement of the weights"),
        apart=[name for name in names if "alone" in name],
    )
    rows = []
    for name, seconds in samples.items():
        row: dict[str, Any] = {"suite": suite, "rival": name, "seconds": harness.summary(seconds)}
        if name in errors:
            row["error"] = errors[name]
            row |= harness.times_faster(samples, name, ("plain torch", "plain torch, tuned"))
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="NAME", help="data set, e.g. imagefolder:DIR (default: random images)")
    parser.add_argument("--images", type=int, default=5000, help="images per expert epoch (default: 5000)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args(argv)
    if options.worker:
        suite, rival, count, *named = options.worker
        work(suite, rival, named[0] if named else None, int(count))
        return
    source = options.data.partition(":")[0] if options.data else "random images"
    command = f"python -m benchmarks.training --images {options.images} --rounds {options.rounds} ({source})"
    print(harness.heading(command) + "\n")
    rows: list[dict[str, Any]] = []
    print(f"{'suite':<12}{'rival':<24}{'s per epoch':>12}{'min..max':>16}{'x plain':>9}{'x tuned':>9}{'error':>10}")
    for suite in ("experts", "evaluation"):
        for row in time_suite(suite, options.data, options.images, options.rounds):
            rows.append(row)
            time = row["seconds"]
            text = f"{suite:<12}{row['rival']:<24}{time['median']:>12.3f}{time['min']:>8.2f}..{time['max']:<6.2f}"
            if "error" in row:
                plain, tuned = (row[f"times_faster_than_{name}"] for name in ("plain torch", "plain torch, tuned"))
                text += f"{plain['median']:>9.2f}{tuned['median']:>9.2f}{row['error']:>10.1e}"
            print(text)
    harness.write(options.json, "training", command, rows)


if __name__ == "__main__":
    main()
