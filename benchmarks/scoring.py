"""EL2N and GraNd of many rows: milliseconds and peak memory, beside eager torch, the materialising form, and a read.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --parts el2n --sizes 50000x10 --rounds 9 --json benchmarks/results/scoring-cpu.json
    python -m benchmarks.scoring --parts end-to-end --data imagefolder:DIR --rounds 1
    python -m benchmarks.scoring --parts cuda

Parts run one by one add their rows to the same JSON file. Rows are taken from memory that the call before has not
touched, as in a pass over a data set; the plain read takes the same.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.registry import Suite
from pad_fast import ConvNet, load_dataset
from pad_fast.data import fit_normalization
from pad_fast.engines import Task, select
from pad_fast.models import FlatNetwork
from pad_fast.scoring import native
from pad_fast.scoring.formulas import el2n_naive
from pad_fast.scoring.one_pass import RunningScores

SUITE = Suite(
    name="scoring",
    about="EL2N and GraNd of many rows",
    quick=("--parts", "el2n", "--sizes", "2000x10", "--rounds", "1"),
    full=("--sizes", "50000x10", "--rounds", "3"),
)

PARTS = ("el2n", "grand", "memory", "end-to-end", "cuda")
SIZES = ("50000x10", "50000x100", "100000x200")
WIDTH = 2048  # of the features
# Relative L2 against float64. The materialising form's float32 norm over classes x features is off by 1e-5.
TOLERANCE = 1e-4

_BATCH = 256  # of the materialising form
_FRESH = 600 << 20  # bytes between two uses of the same memory
_AT_LEAST = 0.02  # seconds of one timing
_ALONE = ", one thread"  # in the names of rivals that get no more


class Case:
    """Random logits, labels and features of one size, in as many copies as keep them out of the caches."""

    def __init__(self, rows: int, classes: int, *, features: bool) -> None:
        draws = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(rows, classes, generator=draws)
        self.labels = torch.randint(classes, (rows,), generator=draws)
        self.features = torch.randn(rows, WIDTH, generator=draws) if features else None
        size = 4 * rows * (classes + (WIDTH if features else 0))
        self.logits = [logits.clone() for _ in range(max(1, min(300, _FRESH // size)))]
        self.turn = 0

    def next(self) -> Tensor:
        """The copy that was used longest ago."""
        self.turn += 1
        return self.logits[self.turn % len(self.logits)]

    def truth(self) -> Tensor:
        """In float64, by the formula."""
        scores = [
            el2n_naive(logits.double(), labels)
            for logits, labels in zip(self.logits[0].split(5000), self.labels.split(5000), strict=True)
        ]
        factor = 1 if self.features is None else torch.cat([f.double().norm(dim=1) for f in self.features.split(5000)])
        return torch.cat(scores) * (factor if self.features is None else (1 + factor**2) ** 0.5)


def eager_el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """As one writes it: softmax, one-hot, difference, norm."""
    return (logits.softmax(1) - torch.nn.functional.one_hot(labels, logits.shape[1])).norm(dim=1)


def eager_el2n_in_place(logits: Tensor, labels: Tensor) -> Tensor:
    """Without the one-hot matrix: subtract 1 at the label in place."""
    errors = logits.softmax(1)
    errors[torch.arange(len(labels)), labels] -= 1
    return errors.norm(dim=1)


def eager_grand(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """The closed form in torch."""
    return eager_el2n(logits, labels) * (1 + features.square().sum(1)).sqrt()


def materialised_grand(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Every sample's gradient of the last layer, bias and weights [batch, classes, features], and then its norm."""
    norms = []
    for z, y, h in zip(logits.split(_BATCH), labels.split(_BATCH), features.split(_BATCH), strict=True):
        bias = z.softmax(1) - torch.nn.functional.one_hot(y, z.shape[1])  # [B, K]
        weight = bias[:, :, None] * h[:, None, :]  # [B, K, F]
        norms.append(torch.cat([bias, weight.flatten(1)], 1).norm(dim=1))
    return torch.cat(norms)


def read(case: Case) -> Tensor:
    """Every byte that scoring has to read, by the cheapest thing torch does with all of them: their sum."""
    case.next().sum()
    case.labels.sum()
    if case.features is not None:
        case.features.sum()
    return case.labels


def ours_grand(case: Case) -> Tensor:
    """Both matrices in one pass."""
    assert case.features is not None
    return native.grand(case.next(), case.features, case.labels)


def with_features(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Case], Tensor]:
    """A rival for GraNd on a case."""

    def run(case: Case) -> Tensor:
        assert case.features is not None
        return function(case.next(), case.labels, case.features)

    return run


RIVALS: dict[str, dict[str, Callable[[Case], Tensor]]] = {
    "el2n": {
        "eager torch": lambda case: eager_el2n(case.next(), case.labels),
        "eager torch, in place": lambda case: eager_el2n_in_place(case.next(), case.labels),
        "ours": lambda case: native.el2n(case.next(), case.labels),
        "plain read": read,
        f"ours{_ALONE}": lambda case: native.el2n(case.next(), case.labels),
        f"plain read{_ALONE}": read,
    },
    "grand": {
        "materialised": with_features(materialised_grand),
        "eager torch, closed form": with_features(eager_grand),
        "ours": ours_grand,
        "plain read": read,
        f"ours{_ALONE}": ours_grand,
        f"plain read{_ALONE}": read,
    },
}


def rows_timed(rival: str, rows: int, classes: int) -> int:
    """The materialising form is linear in the rows and takes minutes: a part of them stands for all."""
    return min(rows, max(_BATCH, 20_480 // classes)) if rival == "materialised" else rows


def scores(rival: str) -> bool:
    """Whether a rival computes anything that can be checked."""
    return not rival.startswith("plain read")


def threads_of(rival: str, threads: int) -> int:
    """Number of the machine's threads that a rival uses."""
    return 1 if rival.endswith(_ALONE) else threads


def work(part: str, rival: str, size: str, threads: int) -> None:
    """Be the worker of one rival: answer `time` (seconds of one call, the mean of a few) and `check`."""
    torch.set_num_threads(threads_of(rival, threads))
    rows, classes = (int(number) for number in size.split("x"))
    case = Case(rows_timed(rival, rows, classes), classes, features=part == "grand")
    run = RIVALS[part][rival]
    run(case)
    start = time.perf_counter()
    run(case)
    calls = max(1, round(_AT_LEAST / (time.perf_counter() - start)))
    for line in sys.stdin:
        request = line.strip()
        if request == "time":
            start = time.perf_counter()
            for _ in range(calls):
                run(case)
            print((time.perf_counter() - start) / calls, flush=True)
        elif request == "check":  # on this rival's own rows
            print(harness.relative_error(run(case), case.truth()), flush=True)


def time_size(part: str, size: str, rounds: int) -> list[dict[str, Any]]:
    """Check and time all rivals at one size."""
    rows, classes = (int(number) for number in size.split("x"))
    threads = torch.get_num_threads()
    workers = {name: harness.Worker("benchmarks.scoring", part, name, size, str(threads)) for name in RIVALS[part]}
    with harness.ending(workers):
        errors = {name: float(worker.ask("check")) for name, worker in workers.items() if scores(name)}
        for name, error in errors.items():
            harness.require(error, TOLERANCE, f"{name}: {part}")
        samples = harness.alternate(workers, rounds=rounds)
    whole = {name: rows / rows_timed(name, rows, classes) for name in workers}
    seconds = {name: [value * whole[name] for value in values] for name, values in samples.items()}
    table = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"part": part, "size": size, "rival": name, "ms": harness.summary(values, scale=1e3)}
        row |= {"rows_timed": rows_timed(name, rows, classes), "threads": threads_of(name, threads)}
        if name in errors:
            row["error"] = errors[name]
        ours = seconds[f"ours{_ALONE}" if name.endswith(_ALONE) else "ours"]
        ratios = [other / own for other, own in zip(values, ours, strict=True)]
        row["ours_is_times_faster"] = harness.summary(ratios)
        table.append(row)
    return table


def peak(part: str, rival: str, size: str) -> Callable[[], object]:
    """One call, ready to be measured by :func:`harness.peak_memory`."""
    rows, classes = (int(number) for number in size.split("x"))
    case = Case(rows_timed(rival, rows, classes), classes, features=part == "grand")
    del case.logits[1:]
    RIVALS[part][rival](Case(64, classes, features=part == "grand"))  # threads and libraries are no part of it
    return lambda: RIVALS[part][rival](case)


def weighed(part: str) -> list[str]:
    """Rivals whose memory is measured; the number of threads makes no difference."""
    return [name for name in RIVALS[part] if scores(name) and not name.endswith(_ALONE)]


def weigh(part: str, rival: str, size: str) -> dict[str, Any]:
    """Peak memory of one rival at one size."""
    mebibytes = harness.peak_memory("benchmarks.scoring", part, rival, size)
    return {"part": "memory", "size": f"{part} {size}", "rival": rival, "peak_mib": mebibytes}


class Pass:
    """One pass over a data set with one network, by the native engine or in plain torch."""

    def __init__(self, dataset: str, images: int) -> None:
        data = load_dataset(dataset)
        self.normalization = fit_normalization(data, "mean-std")
        self.pixels, self.labels = data.train_images[:images], data.train_labels[:images]
        torch.manual_seed(0)
        self.module = ConvNet(channels=data.channels, classes=data.classes, resolution=data.resolution).eval()

    def first(self, count: int) -> Pass:
        """The same for the first `count` images only."""
        part = copy.copy(self)
        part.pixels, part.labels = self.pixels[:count], self.labels[:count]
        return part

    def truth(self) -> Tensor:
        """The scores in float64."""
        module = copy.deepcopy(self.module).double()
        with torch.no_grad():
            pieces = [
                el2n_naive(module(self.normalization.apply(pixels).double()), labels)
                for pixels, labels in zip(self.pixels.split(256), self.labels.split(256), strict=True)
            ]
        return torch.cat(pieces)

    def ours(self) -> tuple[Tensor, float]:
        """Mean scores, and the seconds of the network's forward passes."""
        network = FlatNetwork(self.module)
        task = Task(network, torch.device("cpu"), torch.float32)
        engine, theta = select("cpu", task), network.initial()
        running, forward = RunningScores(len(self.labels), torch.device("cpu")), 0.0
        with engine.running():
            for start in range(0, len(self.labels), 512):
                rows = slice(start, start + 512)
                images = self.normalization.apply(self.pixels[rows])
                begin = time.perf_counter()
                logits = engine.forward(task, theta, images)
                forward += time.perf_counter() - begin
                running.add(0, rows, logits, self.labels[rows])
        return running.mean, forward

    def plain(self) -> tuple[Tensor, float]:
        """The same in torch: module, softmax, one-hot, norm."""
        scores, forward = [], 0.0
        with torch.no_grad():
            for start in range(0, len(self.labels), 512):
                rows = slice(start, start + 512)
                images = self.normalization.apply(self.pixels[rows])
                begin = time.perf_counter()
                logits = self.module(images)
                forward += time.perf_counter() - begin
                scores.append(eager_el2n(logits, self.labels[rows]))
        return torch.cat(scores), forward


def time_pass(dataset: str, images: int, rounds: int) -> list[dict[str, Any]]:
    """End to end: images scored per second, and where the time goes."""
    job = Pass(dataset, images)
    few = job.first(1024)  # which also warms both up
    errors = {"ours": harness.relative_error(few.ours()[0], few.truth())}
    errors["plain torch"] = harness.relative_error(few.plain()[0], few.truth())
    for name, error in errors.items():
        harness.require(error, TOLERANCE, f"end to end, {name}")
    samples: dict[str, list[tuple[float, float]]] = {"plain torch": [], "ours": []}
    for _ in range(rounds):
        for name, run in (("plain torch", job.plain), ("ours", job.ours)):
            start = time.perf_counter()
            _, forward = run()
            samples[name].append((time.perf_counter() - start, forward))
    table = []
    for name, taken in samples.items():
        seconds = [whole for whole, _ in taken]
        faster = [a / b for (a, _), (b, _) in zip(taken, samples["ours"], strict=True)]
        row: dict[str, Any] = {"part": "end-to-end", "size": str(len(job.labels)), "rival": name, "error": errors[name]}
        row["images_per_second"] = harness.summary([len(job.labels) / value for value in seconds])
        row["seconds"] = harness.summary(seconds)
        row["forward_share"] = harness.summary([forward / whole for whole, forward in taken])
        row["ours_is_times_faster"] = harness.summary(faster)
        row["threads"] = torch.get_num_threads()
        table.append(row)
    return table


def time_cuda(rows: int, classes: int, rounds: int) -> list[dict[str, Any]]:
    """Bandwidth of EL2N on the GPU beside that of a copy in the same run, GB/s of bytes read and written."""
    logits = 3 * torch.randn(rows, classes, device="cuda")
    labels = torch.randint(classes, (rows,), device="cuda")
    other, spoiled = torch.empty_like(logits), torch.empty(64 << 20, device="cuda")
    error = harness.relative_error(native.el2n(logits, labels), el2n_naive(logits.double(), labels))
    harness.require(error, TOLERANCE, "cuda: el2n")
    scores = torch.empty(rows, device="cuda")
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "copy": (2 * logits.nbytes, lambda: other.copy_(logits)),
        # The kernel alone: the check of the labels waits for the GPU, and a streaming pass does it once.
        "ours": (
            logits.nbytes + labels.nbytes + scores.nbytes,
            lambda: native._score(logits, labels, None, scores=scores, threads=None),
        ),
    }
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, (size, run) in runs.items():
            spoiled.zero_()  # nothing of the inputs is left in the caches
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            if round_:
                speeds[name].append(size / begin.elapsed_time(end) / 1e6)
    size_name, device = f"{rows}x{classes}", torch.cuda.get_device_name()
    return [
        {
            "part": "cuda",
            "size": size_name,
            "rival": name,
            "device": device,
            "gb_per_second": harness.summary(values),
            "share_of_copy": harness.summary([v / c for v, c in zip(values, speeds["copy"], strict=True)]),
        }
        for name, values in speeds.items()
    ]


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    start = f"{row['part']:<11}{row['size']:<18}{row['rival']:<26}"
    if "peak_mib" in row:
        return f"{start}{row['peak_mib']:>11.1f} MiB"
    if "gb_per_second" in row:
        speed, share = row["gb_per_second"]["median"], row["share_of_copy"]["median"]
        return f"{start}{speed:>11.0f} GB/s{share:>10.1%} of the copy"
    ratio = f"{row['ours_is_times_faster']['median']:>9.2f}"
    if "ms" in row:
        taken = row["ms"]
        text = f"{start}{taken['median']:>11.3f} ms{taken['min']:>11.3f}..{taken['max']:<10.3f}{ratio}"
        return text + (f"{row['error']:>10.1e}" if "error" in row else "")
    rate, share = row["images_per_second"]["median"], row["forward_share"]["median"]
    return f"{start}{rate:>8.0f} images/s, {share:.1%} of the time in the network's forward pass{ratio}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["el2n", "grand", "memory"], help="what to run")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="ROWSxCLASSES", help="problem sizes")
    parser.add_argument("--data", metavar="NAME", help="data set of the end-to-end part, e.g. imagefolder:DIR")
    parser.add_argument("--images", type=int, default=50_000, help="images of the end-to-end part (default: 50000)")
    parser.add_argument("--worker", nargs=4, metavar=("PART", "RIVAL", "SIZE", "THREADS"), help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args(argv)
    if options.worker:
        part, rival, size, threads = options.worker
        work(part, rival, size, threads=int(threads))
        return
    if "end-to-end" in options.parts and options.data is None:
        parser.error("the end-to-end part needs --data, for example imagefolder:DIR")
    source = f" ({options.data.partition(':')[0]})" if options.data else ""
    pieces = f"--parts {' '.join(options.parts)} --sizes {' '.join(options.sizes)} --rounds {options.rounds}"
    command = f"python -m benchmarks.scoring {pieces}{source}"
    print(harness.heading(command) + "\n")
    rows: list[dict[str, Any]] = []
    for part in options.parts:
        if part == "end-to-end":
            new = time_pass(options.data, options.images, options.rounds)
        elif part == "cuda":
            new = time_cuda(1_000_000, 10, options.rounds) + time_cuda(100_000, 1000, options.rounds)
        elif part == "memory":
            new = [weigh(kind, name, size) for kind in RIVALS for size in options.sizes for name in weighed(kind)]
        else:
            new = [row for size in options.sizes for row in time_size(part, size, options.rounds)]
        for row in new:
            row["command"] = command
            print(show(row), flush=True)
        rows += new
    rows = harness.merged(options.json, rows, ("part", "size"))
    harness.write(options.json, "scoring", "python -m benchmarks.scoring", rows)


if __name__ == "__main__":
    main()
