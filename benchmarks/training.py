"""Expert training (GSAM) and evaluation training, on our engine and in plain torch: seconds per epoch.

    python -m benchmarks.training --data imagefolder:DIR
    python -m benchmarks.training                     (random images of CIFAR-10's shape)

Both sides see the same images, batches, DSA draws and hyperparameters, and start from the same weights; the weights
they end with are compared first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.rivals import keep_freed_memory, plain_gsam_epoch, plain_sgd_epoch
from pad_fast import DSA, ConvNet, load_dataset
from pad_fast.data import fit_normalization
from pad_fast.models import FlatNetwork
from pad_fast.optimizers import GSAM, SGD
from pad_fast.rng import generator
from pad_fast.training import Trainer, shuffled_batches

# After a whole epoch in float32; a wrong update rule differs in the first digit.
TOLERANCE = 5e-2


def load_images(dataset: str | None, count: int) -> tuple[Tensor, Tensor, str]:
    """`count` normalised training images of a data set, or random ones of CIFAR-10's shape."""
    if dataset is None:
        draws = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, 32, 32, generator=draws), torch.arange(count) % 10, "random images"
    data = load_dataset(dataset)
    rows = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(0))[:count]
    images = fit_normalization(data, "mean-std").apply(data.train_images[rows])
    return images, data.train_labels[rows], dataset.partition(":")[0]


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
        keep_freed_memory(False)
        self.fresh()
        trainer = Trainer(FlatNetwork(self.module), device=torch.device("cpu"), backend=backend)
        trainer.epoch(self.images, self.targets, self.batches, optimizer, self.augment())
        return trainer.theta

    def plain_gsam(self, tuned: bool) -> Tensor:
        """One epoch of GSAM in plain torch."""
        keep_freed_memory(tuned)
        module = self._module(tuned)
        plain_gsam_epoch(
            module, self.images, self.targets, self.batches, self._augment(tuned), lr=0.01, rho=0.01, alpha=0.3
        )
        return FlatNetwork(module).initial()

    def plain_sgd(self, tuned: bool) -> Tensor:
        """One epoch of the evaluation recipe in plain torch."""
        keep_freed_memory(tuned)
        module = self._module(tuned)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        probabilities = self.targets.softmax(-1)
        plain_sgd_epoch(module, self.images, probabilities, self.batches, self._augment(tuned), optimizer)
        return FlatNetwork(module).initial()

    def _module(self, tuned: bool) -> nn.Module:
        module = self.fresh()
        return module.to(memory_format=torch.channels_last if tuned else torch.contiguous_format)

    def _augment(self, tuned: bool) -> Callable[[Tensor], Tensor]:
        augment = self.augment()
        if not tuned:
            return augment
        return lambda images: augment(images).contiguous(memory_format=torch.channels_last)


def dsa_share(job: Job, seconds: float) -> float:
    """Augmentation's share of an epoch that took `seconds`."""
    augment = job.augment()
    samples = harness.alternate({"dsa": lambda: [augment(job.images[batch]) for batch in job.batches]}, rounds=3)
    return harness.summary(samples["dsa"])["median"] / seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="NAME", help="data set, e.g. imagefolder:DIR (default: random images)")
    parser.add_argument("--images", type=int, default=5000, help="images per epoch (default: 5000)")
    harness.add_common(parser)
    options = parser.parse_args()
    images, labels, source = load_images(options.data, options.images)
    command = f"python -m benchmarks.training --images {options.images} --rounds {options.rounds} ({source})"
    print(harness.heading(command) + "\n")
    soft = torch.nn.functional.one_hot(labels, 10).float() * 4
    gsam, sgd = Job(images, labels, 256), Job(images[:1000], soft[:1000], 128)
    suites: dict[str, tuple[Job, dict[str, Callable[[], Tensor]]]] = {
        f"GSAM experts, {len(images)} images, batch 256": (
            gsam,
            {
                "plain torch": lambda: gsam.plain_gsam(False),
                "plain torch, tuned": lambda: gsam.plain_gsam(True),
                "ours": lambda: gsam.ours(GSAM(0.01, rho=0.01, alpha=0.3), "cpu"),
            },
        ),
        "evaluation, 1000 images, batch 128, momentum": (
            sgd,
            {
                "plain torch": lambda: sgd.plain_sgd(False),
                "plain torch, tuned": lambda: sgd.plain_sgd(True),
                "ours": lambda: sgd.ours(SGD(0.01, momentum=0.9, weight_decay=5e-4), "cpu"),
            },
        ),
    }
    rows: list[dict[str, Any]] = []
    for title, (job, rivals) in suites.items():
        moved = rivals["plain torch"]() - job.start
        errors = {name: harness.relative_error(run() - job.start, moved) for name, run in rivals.items()}
        if max(errors.values()) > TOLERANCE:
            raise SystemExit(f"{title}: weights differ ({errors}); no speed is reported")
        samples = harness.alternate(rivals, rounds=options.rounds)
        print(title)
        for name, seconds in samples.items():
            ratios = {
                against: harness.summary([a / b for a, b in zip(samples[against], seconds, strict=True)])
                for against in ("plain torch", "plain torch, tuned")
            }
            time = harness.summary(seconds)
            rows.append({"suite": title, "rival": name, "seconds": time, "error": errors[name], "ratios": ratios})
            print(
                f"  {name:<20}{time['median']:>9.2f} s/epoch  {time['min']:.2f}..{time['max']:.2f}"
                f"   x plain {ratios['plain torch']['median']:.2f}   x tuned "
                f"{ratios['plain torch, tuned']['median']:.2f}   error {errors[name]:.1e}"
            )
        own = harness.summary(samples["ours"])["median"]
        share = dsa_share(job, own)
        rows.append({"suite": title, "dsa_share_of_ours": share})
        print(f"  augmentation takes {share:.0%} of our epoch\n")
    harness.write(options.json, "training", command, rows)


if __name__ == "__main__":
    main()
