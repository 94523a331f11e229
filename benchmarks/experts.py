"""Expert training and storage: seconds per epoch, bytes read, time to open, memory.

    python -m benchmarks.experts --data imagefolder:DIR
    python -m benchmarks.experts --parts storage      (no training; random weights)

`epoch`    one GSAM epoch on CIFAR-10 images against plain torch as published scripts write it: a DataLoader, DSA drawn
           and applied in the published order. Both sides see the same batches and draws, and their weights are compared
           first.
`at-once`  experts of the digits, one after another on all threads against one per process and thread.
`storage`  bytes read in 1,000 iterations against loading whole replay buffers, time to open a sparse store of 10 GB,
           and memory while distilling from a small and a large store.
`rounding` what storing experts in two bytes does: error of the matched segments, losses and accuracy on the digits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.registry import Suite
from benchmarks.rivals import keep_freed_memory, plain_gsam_epoch
from benchmarks.training import TOLERANCE, Job, load_images
from pad_fast import DSA, ConvNet, ExpertStore, Progress, distill, train_experts
from pad_fast.distillation.schedule import draw_iteration
from pad_fast.distillation.state import State
from pad_fast.distillation.trajectory_matching import Loop
from pad_fast.experts import convert_experts
from pad_fast.experts.snapshots import Snapshots
from pad_fast.models import FlatNetwork
from pad_fast.runtime import tensor_files
from pad_fast.runtime.device import resolve_device
from pad_fast.runtime.rng import generator
from pad_fast.settings.choices import STORAGES
from pad_fast.settings.config import Config
from pad_fast.training.optimizers import GSAM

SUITE = Suite(
    name="experts",
    about="an epoch of expert training, and what the store reads",
    quick=("--parts", "epoch", "--images", "40", "--rounds", "1"),
    full=("--parts", "epoch", "storage", "--images", "500", "--rounds", "1"),
)

PARTS = ("epoch", "at-once", "storage", "rounding")
_PARAMETERS = 320_010  # ConvNet D3 W128 on CIFAR-10
_CHECKED = 512  # images of the epoch whose weights are compared


class PublishedJob(Job):
    """The same epoch with batches from a DataLoader."""

    def augment(self) -> Any:
        """The published order of draws, on both sides."""
        dsa, draws = DSA(mode="reference"), generator(0, "bench dsa")
        return lambda images: dsa(images, generator=draws)

    def plain_loader(self, tuned: bool) -> Tensor:
        """One epoch the way published scripts run it."""
        module, augment = self._module(tuned), self._augment(tuned)
        data = torch.utils.data.TensorDataset(self.images, self.targets)
        order = torch.cat(self.batches).tolist()
        loader = torch.utils.data.DataLoader(data, batch_size=len(self.batches[0]), sampler=order)
        for images, labels in loader:
            whole = [torch.arange(len(images))]
            plain_gsam_epoch(module, images, labels, whole, augment, lr=0.01, rho=0.01, alpha=0.3)
        return FlatNetwork(module).initial()


RIVALS = {
    "plain torch": lambda job: job.plain_loader(False),
    "plain torch, tuned": lambda job: job.plain_loader(True),
    "ours": lambda job: job.ours(GSAM(0.01, rho=0.01, alpha=0.3), "cpu"),
}


def work_epoch(rival: str, dataset: str | None, count: int) -> None:
    """Be the worker of one rival: its whole epoch is timed, a few batches of it are compared."""
    if rival == "plain torch, tuned":
        keep_freed_memory()
    images, labels = load_images(dataset, count)
    timed, checked = PublishedJob(images, labels, 256), PublishedJob(images[:_CHECKED], labels[:_CHECKED], 256)
    harness.serve(lambda: [RIVALS[rival](timed)], check=lambda: [RIVALS[rival](checked) - checked.start])


def time_epoch(dataset: str | None, count: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds per expert epoch."""
    arguments = (str(count), *([dataset] if dataset else []))
    workers = {name: harness.Worker("benchmarks.experts", "epoch", name, *arguments) for name in RIVALS}
    errors, samples = harness.race(
        workers, rounds=rounds, check=lambda name, error: harness.require(error, TOLERANCE, f"{name}: the weights")
    )
    rows = []
    for name, seconds in samples.items():
        row: dict[str, Any] = {"part": "epoch", "rival": name, "images": count, "error": errors[name]}
        row["seconds_per_epoch"] = harness.summary(seconds)
        row |= harness.times_faster(samples, name, ("plain torch", "plain torch, tuned"))
        rows.append(row)
    return rows


def time_at_once(rounds: int) -> list[dict[str, Any]]:
    """Seconds per expert epoch of the digits, by workers; the experts are compared with each other first."""
    experts, epochs, threads = 4, 8, torch.get_num_threads()
    samples: dict[int, list[float]] = {0: [], threads: []}
    weights: dict[int, Tensor] = {}
    for round_ in range(rounds + 1):
        for workers, seconds in samples.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                store = train_experts(
                    "digits", out=folder, experts=experts, epochs=epochs, model="ConvNetD2W32", batch=64, lr=0.02,
                    dsa="color_crop_scale_rotate", workers=workers, progress=Progress(quiet=True),
                )  # fmt: skip
                if round_:
                    seconds.append((time.perf_counter() - start) / experts / epochs)
                weights[workers] = torch.stack([store.snapshot(expert, -1) for expert in range(experts)])
    if not torch.equal(weights[0], weights[threads]):
        raise SystemExit("experts differ when several are trained at once; no speed is reported")
    return [
        {
            "part": "at-once",
            "workers": workers,
            "seconds_per_epoch": harness.summary(seconds),
            "times_faster": harness.summary([a / b for a, b in zip(samples[0], seconds, strict=True)]),
        }
        for workers, seconds in samples.items()
    ]


def bytes_read() -> int:
    """Bytes this process has read so far, from wherever the system had them."""
    return int(Path("/proc/self/io").read_text().split()[1])


def random_store(folder: Path, *, experts: int, snapshots: int, parameters: int, **options: Any) -> ExpertStore:
    """Experts of random weights."""
    store = ExpertStore.create(folder, parameter_count=parameters, epochs=snapshots - 1, metadata={}, **options)
    draws = torch.Generator().manual_seed(0)
    for _ in range(experts):
        store.append(torch.randn(len(store.kept), parameters, generator=draws))
    return store


def count_bytes(parameters: int = 10_000) -> list[dict[str, Any]]:
    """Bytes read by 1,000 iterations of the published CIFAR-10 setting for 10 images per class.

    The reference keeps one replay buffer in memory, uses each of its experts once and loads the next: a whole file of
    10 experts every 10 iterations. One such load is measured. The ratio does not depend on the number of parameters.
    """
    iterations, per_file = 1000, 10
    config = Config(train_epochs=100, max_start_epoch=20, expert_epochs=2)
    rows: list[dict[str, Any]] = []
    for storage in STORAGES:
        with tempfile.TemporaryDirectory() as name:
            store = random_store(
                Path(name), experts=2 * per_file, snapshots=101, parameters=parameters, storage=storage
            )
            if not rows:
                replay = store.write_replay_buffer(
                    Path(name) / "replay_buffer_0.pt", [torch.Size([parameters])], experts=range(per_file)
                )
                torch.load(replay, weights_only=True)  # what this imports is not counted
                before = bytes_read()
                torch.load(replay, weights_only=True)
                theirs = (bytes_read() - before) * (iterations // per_file)
                rows.append({"part": "bytes", "scheme": "replay buffers, loaded whole", "bytes": theirs})
            before = bytes_read()
            snapshots = Snapshots(ExpertStore.open(name), torch.device("cpu"))
            for iteration in range(iterations):
                drawn = draw_iteration(config, iteration, len(store), 100)
                ends = [(drawn.experts[0], drawn.start_epochs[0] + later) for later in (0, config.expert_epochs)]
                snapshots.prefetch(ends)
                for end in ends:
                    snapshots.get(*end)
            ours = bytes_read() - before
        rows.append({"part": "bytes", "scheme": storage, "bytes": ours, "times_fewer": theirs / ours})
    return rows


def time_opening(rounds: int) -> list[dict[str, Any]]:
    """Seconds to open 10 GB of experts whose weights are holes in sparse files."""
    experts = 78
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = ExpertStore.create(folder, parameter_count=_PARAMETERS, epochs=100, metadata={})
        shape = (101, _PARAMETERS)
        header = tensor_files.tensor_pieces({"snapshots": torch.empty(shape)}, tensor_files.seal({"rows": [0] * 101}))
        beginning = bytes(next(header)) + bytes(next(header))
        for number in range(experts):
            with (folder / f"expert_{number:05d}.safetensors").open("wb") as file:
                file.write(beginning)
                file.truncate(len(beginning) + store.bytes_per_expert)
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            opened = ExpertStore.open(folder)
            seconds.append(time.perf_counter() - start)
    size = len(opened) * opened.bytes_per_expert
    return [{"part": "open", "experts": len(opened), "bytes": size, "seconds": harness.summary(seconds)}]


def work_memory(folder: str) -> None:
    """Distil for a while, and print by how many KiB the resident memory has grown after every expert was used."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    torch.manual_seed(0)
    store = ExpertStore.open(folder)
    config = Config(
        iterations=300, syn_steps=1, max_start_epoch=6, current_max_start_epoch=6, train_epochs=7, expert_epochs=2,
        threshold=None, lr_img=1e-3, mask="none",
    )  # fmt: skip
    loop = Loop(FlatNetwork(ConvNet()), store, config, resolve_device("cpu"))
    labels = torch.arange(10)
    state = State.start(torch.randn(10, 3, 32, 32), torch.randn(10, 10), labels, config, resolve_device("cpu"))
    for _ in range(10):
        loop.iterate(state)
    before = resident()
    while state.iteration < config.iterations:
        loop.iterate(state)
    print(resident() - before)


def measure_memory() -> list[dict[str, Any]]:
    """Growth of the peak resident memory over 290 iterations, by the size of the store."""
    rows = []
    for experts in (4, 16, 64):
        with tempfile.TemporaryDirectory() as name:
            store = random_store(Path(name), experts=experts, snapshots=8, parameters=_PARAMETERS)
            command = [sys.executable, "-m", "benchmarks.experts", "--worker", "memory", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            size = len(store) * store.bytes_per_expert
        rows.append({"part": "memory", "experts": experts, "bytes": size, "growth_bytes": int(done.stdout) * 1024})
    return rows


def measure_rounding() -> list[dict[str, Any]]:
    """The digits, one image per class, from the same experts in three kinds of storage."""
    rows: list[dict[str, Any]] = []
    quiet = Progress(quiet=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact = train_experts(
            "digits", out=folder / "float32", experts=5, epochs=10, model="ConvNetD2W32", batch=64, lr=0.02,
            dsa="color_crop_scale_rotate", progress=quiet,
        )  # fmt: skip
        for storage in STORAGES:
            if storage != "float32":
                convert_experts(exact.folder, folder / storage, storage=storage, progress=quiet)
            store = ExpertStore.open(folder / storage)
            errors = []
            for expert, start in ((e, s) for e in range(len(exact)) for s in range(8)):
                whole, ours = (
                    each.snapshot(expert, start + 2) - each.snapshot(expert, start) for each in (exact, store)
                )
                errors.append(harness.relative_error(ours, whole))
            accuracies, losses = [], []
            for seed in range(3):
                result = distill(
                    out=folder / f"run-{storage}-{seed}", buffer_path=str(folder / storage), seed=seed, iterations=200,
                    eval_networks=3, eval_epochs=300, eval_baselines=False, train_epochs=10, max_start_epoch=8,
                    curriculum=False, progress=quiet,
                )  # fmt: skip
                (row,) = result.evaluation
                accuracies += row.accuracies
                losses += [entry["loss"] for entry in result.history[-50:]]
            rows.append(
                {
                    "part": "rounding",
                    "storage": storage,
                    "segment_error": harness.summary(errors),
                    "loss": harness.summary(losses),
                    "accuracy": harness.summary(accuracies),
                }
            )
    return rows


def main() -> None:
    """Print what was measured, part by part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument("--data", metavar="NAME", help="data set, e.g. imagefolder:DIR (default: random images)")
    parser.add_argument("--images", type=int, default=5000, help="images per expert epoch (default: 5000)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args()
    if options.worker:
        kind, *rest = options.worker
        if kind == "memory":
            work_memory(rest[0])
        else:
            work_epoch(rest[0], rest[2] if len(rest) > 2 else None, int(rest[1]))
        return
    source = options.data.partition(":")[0] if options.data else "random images"
    command = f"python -m benchmarks.experts --parts {' '.join(options.parts)} --images {options.images} "
    command += f"--rounds {options.rounds} ({source})"
    print(harness.heading(command) + "\n")
    rows: list[dict[str, Any]] = []

    def show(new: list[dict[str, Any]]) -> None:
        for row in new:
            rows.append({**row, "command": command})
            print(", ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)

    if "storage" in options.parts:
        show(count_bytes())
        show(time_opening(options.rounds))
        show(measure_memory())
    if "rounding" in options.parts:
        show(measure_rounding())
    if "at-once" in options.parts:
        show(time_at_once(options.rounds))
    if "epoch" in options.parts:
        show(time_epoch(options.data, options.images, options.rounds))
    harness.write(options.json, "experts", command, harness.merged(options.json, rows, ("part",)))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.4g} ({value['min']:.4g}..{value['max']:.4g})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
