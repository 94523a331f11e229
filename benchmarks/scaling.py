"""Scaling of an iteration of distillation over GPUs: a counted model, nothing measured.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --update docs/distributed.md --json benchmarks/results/scaling.json

What one GPU does is counted by `benchmarks.model`; what crosses between GPUs is counted here. `split="batch"` adds up
one vector of P numbers per student step in the forward pass, one per step but the first in the reverse pass, and the
gradients once. `split="trajectories"` adds up the gradients once.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import harness, model
from benchmarks.model import GRAPH_LAUNCH, Setting, Total
from pad_fast.matching.split_batches import SplitBatches
from pad_fast.runtime.distributed import Group

HOST_LAUNCH = 10e-6
"""Seconds that the host takes to start a kernel where passes are not recorded, as with divided batches."""

NODE = 8
"""GPUs of one machine."""


@dataclass(frozen=True)
class Link:
    """Connection of GPUs: seconds until a sum over all of them begins to move, and bytes per second of each."""

    latency: float
    bandwidth: float

    def seconds(self, bytes_: float, ranks: int) -> float:
        """Of one all-reduce: every GPU sends and receives `2 (ranks - 1) / ranks` times the vector."""
        return self.latency + 2 * (ranks - 1) / ranks * bytes_ / self.bandwidth


NVLINK = Link(20e-6, 300e9)
"""Inside a machine: two thirds of the 450 GB/s that an H200 can send over NVLink."""

INFINIBAND = Link(40e-6, 40e9)
"""Between machines: four fifths of one 400 Gbit/s adapter per GPU."""

HOP = 10e-6
"""Seconds that every doubling of the machines adds to an all-reduce."""

RANKS = (1, 2, 4, 8, 16, 32, 64)

STACKED = (1, 2, 4, 8)
"""Trajectories at once on one GPU."""

BEGIN, END = "<!-- scaling model: begin -->", "<!-- scaling model: end -->"


def all_reduce(bytes_: float, ranks: int) -> float:
    """Seconds of one all-reduce of `bytes_` over `ranks` GPUs."""
    if ranks == 1:
        return 0.0
    if ranks <= NODE:
        return NVLINK.seconds(bytes_, ranks)
    return INFINIBAND.seconds(bytes_, ranks) + HOP * math.log2(ranks / NODE)


def sums(setting: Setting, split: str, ranks: int) -> list[float]:
    """Bytes of every all-reduce of one iteration, in order, with one trajectory per rank or in all."""
    learned = setting.images * (3 * setting.resolution**2 + setting.classes)
    if split == "batch":
        parameters = sum(parameter.numel() for parameter in setting.network().parameters())
        # g in every step forward, dphi/dtheta in every step back but the first one's, gradients and phis at the end.
        return [4.0 * parameters] * (2 * setting.steps - 1) + [4.0 * (learned + setting.steps)]
    return [4.0 * ranks, 4.0 * (learned + 1)]  # losses; gradients of images, labels and learning rate


def communication(setting: Setting, split: str, ranks: int) -> float:
    """Seconds of one iteration that go into sums."""
    return sum(all_reduce(bytes_, ranks) for bytes_ in sums(setting, split, ranks))


@cache
def compute(setting: Setting, batch: int, launching: float, trajectories: int = 1) -> float:
    """Seconds of one GPU's work in an iteration on batches of `batch` images."""
    own = replace(setting, batch=batch)
    two, three = (Total.of(model.ours(own, steps, trajectories=trajectories), launching) for steps in (2, 3))
    return two.extrapolate(three, setting.steps).seconds


def row(setting: Setting) -> dict[str, Any]:
    """Predicted seconds of one iteration of a setting, by the number of GPUs."""
    whole = compute(setting, setting.batch, GRAPH_LAUNCH)
    divided = {1: whole}
    for ranks in RANKS[1:]:
        largest = max(SplitBatches.of(Group(rank, ranks), [setting.batch]).sizes[0] for rank in range(ranks))
        divided[ranks] = compute(setting, largest, HOST_LAUNCH) + communication(setting, "batch", ranks)
    steps = sums(setting, "batch", 2)
    return {
        "setting": setting.name,
        "batch": setting.batch,
        "steps": setting.steps,
        "sums": len(steps),
        "step_bytes": steps[0],
        "batch_seconds": divided,
        "pays_up_to": pays_up_to(divided),
        "gradient_bytes": sums(setting, "trajectories", 2)[-1],
        "trajectories_seconds": {
            ranks: whole + (communication(setting, "trajectories", ranks) if ranks > 1 else 0.0) for ranks in RANKS
        },
        "stacked_seconds": {stacked: compute(setting, setting.batch, GRAPH_LAUNCH, stacked) for stacked in STACKED},
    }


def pays_up_to(seconds: dict[int, float]) -> int:
    """The largest number of GPUs that is still a tenth faster than half as many, all smaller ones included."""
    best = 1
    for fewer, more in zip(RANKS, RANKS[1:], strict=False):
        if seconds[more] > 0.9 * seconds[fewer]:
            break
        best = more
    return best


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The tables of docs/distributed.md."""

    def table(title: str, columns: Sequence[str], cells: Callable[[dict[str, Any]], Sequence[str]]) -> list[str]:
        lines = [title, "", "| setting | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
        return [*lines, *(f"| {row['setting']} | " + " | ".join(cells(row)) + " |" for row in rows), ""]

    gpus, stacked = [f"{ranks} GPUs" if ranks > 1 else "1 GPU" for ranks in RANKS], [f"K = {each}" for each in STACKED]
    lines = table(
        "Predicted ms of one iteration with `split=batch`:",
        ["batch", "T", "sums", "MB each", *gpus, "pays up to"],
        lambda row: [
            str(row["batch"]),
            str(row["steps"]),
            str(row["sums"]),
            f"{row['step_bytes'] / 1e6:.2f}",
            *milliseconds(row["batch_seconds"]),
            str(row["pays_up_to"]),
        ],
    )
    lines += table(
        "Predicted ms of one iteration with `split=trajectories` and one trajectory per GPU, so that an iteration on "
        "more GPUs averages more of them:",
        ["MB at the end", *gpus, f"efficiency at {RANKS[-1]}"],
        lambda row: [
            f"{row['gradient_bytes'] / 1e6:.2f}",
            *milliseconds(row["trajectories_seconds"]),
            f"{row['trajectories_seconds'][1] / row['trajectories_seconds'][RANKS[-1]]:.1%}",
        ],
    )
    lines += table(
        "Predicted ms of one iteration with `trajectories=K` on one GPU:",
        stacked,
        lambda row: milliseconds(row["stacked_seconds"]),
    )
    return "\n".join(lines).rstrip()


def milliseconds(seconds: dict[int, float]) -> list[str]:
    """Cells of a table."""
    return [f"{1e3 * each:,.1f}" for each in seconds.values()]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="some of them (default: all)")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the tables into this document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    settings = [setting for setting in model.SETTINGS if not options.settings or setting.name in options.settings]
    rows = list(model.counted(row, settings))
    print(markdown(rows))
    if options.update:
        model.update(options.update, markdown(rows), BEGIN, END)
    harness.write(options.json, "scaling", "python -m benchmarks.scaling " + " ".join(sys.argv[1:]), rows)


if __name__ == "__main__":
    main()
