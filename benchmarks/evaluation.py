"""Evaluating 10 images per class with fresh networks, by `pad_fast.evaluate` and in plain torch.

    python -m benchmarks.evaluation --data digits
    python -m benchmarks.evaluation --data imagefolder:DIR --epochs 10 --test-images 333 --rounds 2
    python -m benchmarks.evaluation --data imagefolder:DIR --accuracy

Random real images with soft labels stand in for a distilled set. The plain side is a script: a DataLoader, published
augmentation, a module, a torch optimiser. Its batches and draws are its own, so what is compared is the accuracy over
several networks (`--accuracy`: all epochs, once, one rival after the other in this process; their seconds stand
beside it). Without it, whole evaluations are timed by turns: networks are built, trained and tested. Where 300 epochs
take too long, `--epochs 10 --test-images 333` is a thirtieth of everything. `--json` adds the rows to those in the
file.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks import harness, rivals
from benchmarks.registry import Suite
from pad_fast import DSA, DistilledDataset, ImageDataset, Progress, evaluate, load_dataset
from pad_fast.data import fit_normalization
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import generator

SUITE = Suite(
    name="evaluation",
    about="10 images per class evaluated with fresh networks",
    quick=("--networks", "1", "--epochs", "2", "--test-images", "50", "--rounds", "1"),
    full=("--networks", "2", "--epochs", "100", "--rounds", "2"),
)

IPC = 10
BATCH = 128
RIVALS = ("plain torch", "plain torch, tuned", "ours")


def stand_in(dataset: str, test_images: int | None) -> ImageDataset:
    """The data set with 10 random images per class for training, and the first `test_images` for testing."""
    data = load_dataset(dataset)
    draws = generator(0, "bench")
    rows = []
    for label in range(data.classes):
        members = data.images_of_class(label)
        rows.append(members[torch.randperm(len(members), generator=draws)[:IPC]])
    picked = torch.cat(rows)
    # In random order, so that any number of them has all classes.
    tested = torch.randperm(len(data.test_labels), generator=draws)[:test_images]
    return replace(
        data,
        train_images=data.train_images[picked],
        train_labels=data.train_labels[picked],
        test_images=data.test_images[tested],
        test_labels=data.test_labels[tested],
    )


class Job:
    """One evaluation, both ways."""

    def __init__(self, data: ImageDataset) -> None:
        digits = data.resolution == 8
        self.data = data
        model = "ConvNetD2W32" if digits else "ConvNet"
        dsa = "color_crop_scale_rotate" if digits else "color_crop_cutout_flip_scale_rotate"
        white = fit_normalization(data, "mean-std")
        self.logits = 5.0 * torch.nn.functional.one_hot(data.train_labels, data.classes)
        self.distilled = DistilledDataset(
            images=white.apply(data.train_images),
            label_logits=self.logits,
            labels=data.train_labels,
            lr=0.02 if digits else 0.01,
            whitening=white,
            config={"model": model, "dsa": dsa},
        )
        self.operations = DSA(dsa).operations
        self.spec = NetworkSpec(model, data.channels, data.classes, data.resolution)
        self.test = white.apply(data.test_images), data.test_labels

    def plain(self, networks: int, epochs: int, *, tuned: bool = False) -> list[float]:
        """Accuracies of `networks` networks, one after the other."""
        accuracies = []
        for index in range(networks):
            draws = generator(0, "plain", index)
            augment = rivals.PlainDSA(self.operations, draws)
            module = self.spec.build(0, "plain", index).module
            accuracies.append(
                rivals.plain_evaluation(
                    module,
                    self.distilled.images,
                    self.logits.softmax(-1),
                    self.test,
                    augment,
                    lr=self.distilled.lr,
                    epochs=epochs,
                    batch=BATCH,
                    generator=draws,
                    tuned=tuned,
                )
            )
        return accuracies

    def ours(self, networks: int, epochs: int) -> list[float]:
        """The same from :func:`pad_fast.evaluate`."""
        report = evaluate(
            self.distilled,
            self.data,
            repeats=networks,
            epochs=epochs,
            batch=BATCH,
            baselines=False,
            device="cpu",
            progress=Progress(quiet=True),
        )
        return list(report.rows[0].accuracies)

    def run(self, rival: str, networks: int, epochs: int) -> list[float]:
        """One evaluation by a rival."""
        if rival == "ours":
            return self.ours(networks, epochs)
        return self.plain(networks, epochs, tuned=rival == RIVALS[1])


def work(rival: str, file: str, networks: int, epochs: int) -> None:
    """Be the worker of one rival; results are accuracies."""
    if rival == RIVALS[1]:
        rivals.keep_freed_memory()
    job = Job(ImageDataset(**torch.load(file, weights_only=True)))
    harness.serve(lambda: [torch.tensor(job.run(rival, networks, epochs))])


def timed(data: ImageDataset, networks: int, epochs: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of whole evaluations, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/data.pt"
        torch.save({name: value for name, value in vars(data).items() if name != "fingerprint"}, file)
        workers = {
            name: harness.Worker("benchmarks.evaluation", name, file, str(networks), str(epochs)) for name in RIVALS
        }
        with harness.ending(workers):
            samples = harness.alternate(workers, rounds=rounds)
    rows = []
    for name, seconds in samples.items():
        ratios = [a / b for a, b in zip(seconds, samples["ours"], strict=True)]
        rows.append(
            {
                "rival": name,
                "seconds": harness.summary(seconds),
                "ms_per_network_and_epoch": harness.summary(seconds, scale=1000 / networks / epochs),
                "ours_is_times_faster": harness.summary(ratios),
            }
        )
    return rows


def accuracy(data: ImageDataset, names: list[str], networks: int, epochs: int) -> list[dict[str, Any]]:
    """Accuracies after all epochs, and the seconds of the one evaluation of each rival that this takes."""
    job = Job(data)
    rows = []
    for name in names:
        job.run(name, 1, 1)  # warms up
        start = time.perf_counter()
        values = job.run(name, networks, epochs)
        seconds = time.perf_counter() - start
        std = statistics.stdev(values) if networks > 1 else 0.0
        row = {"rival": name, "accuracies": values, "mean": statistics.fmean(values), "std": std}
        rows.append({**row, "seconds": harness.summary([seconds])})
    return rows


def require_same_accuracy(rows: list[dict[str, Any]]) -> None:
    """Refuse to go on when ours differs from plain torch by more than three standard errors and half a point.

    Raises:
        SystemExit: it does.
    """
    by_name = {row["rival"]: row for row in rows}
    plain, ours = by_name[RIVALS[0]], by_name["ours"]
    error = math.sqrt(sum(row["std"] ** 2 / len(row["accuracies"]) for row in (plain, ours)))
    if abs(plain["mean"] - ours["mean"]) > 3 * error + 0.5:
        raise SystemExit(f"accuracies differ: plain torch {plain['mean']:.1f}, ours {ours['mean']:.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", metavar="NAME", help="data set (default: digits)")
    parser.add_argument("--networks", type=int, default=5, help="fresh networks per evaluation (default: 5)")
    parser.add_argument("--epochs", type=int, default=300, help="epochs of each (default: 300)")
    parser.add_argument("--test-images", type=int, metavar="N", help="test on N images only (default: all)")
    parser.add_argument("--accuracy", action="store_true", help="compare accuracies instead of times")
    parser.add_argument("--rivals", nargs="+", default=[RIVALS[0], "ours"], choices=RIVALS, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args()
    if options.worker:
        rival, file, networks, epochs = options.worker
        work(rival, file, int(networks), int(epochs))
        return
    source = options.data.partition(":")[0]
    command = f"python -m benchmarks.evaluation --data {source} --networks {options.networks} --epochs {options.epochs}"
    if options.test_images:
        command += f" --test-images {options.test_images}"
    command += " --accuracy" if options.accuracy else f" --rounds {options.rounds}"
    print(harness.heading(command) + "\n")
    data = stand_in(options.data, options.test_images)
    if options.accuracy:
        rows = accuracy(data, options.rivals, options.networks, options.epochs)
        for row in rows:
            print(
                f"{row['rival']:<22}{row['mean']:>8.2f} +- {row['std']:.2f}  of {len(row['accuracies'])} networks"
                f"{row['seconds']['median']:>10.1f} s"
            )
        if set(options.rivals) >= {RIVALS[0], "ours"}:
            require_same_accuracy(rows)
    else:
        rows = timed(data, options.networks, options.epochs, options.rounds)
        print(f"{'rival':<22}{'seconds':>9}{'min..max':>18}{'ms/network/epoch':>18}{'ours x faster':>15}")
        for row in rows:
            time = row["seconds"]
            print(
                f"{row['rival']:<22}{time['median']:>9.2f}{time['min']:>9.2f}..{time['max']:<7.2f}"
                f"{row['ms_per_network_and_epoch']['median']:>18.2f}{row['ours_is_times_faster']['median']:>15.2f}"
            )
    rows = [{"data": source, **row, "command": command} for row in rows]
    harness.write(
        options.json, "evaluation", "python -m benchmarks.evaluation", harness.merged(options.json, rows, ("command",))
    )


if __name__ == "__main__":
    main()
