"""DSA of a batch, forward and pulled back, beside the published formulas in plain torch: milliseconds per call.

    python -m benchmarks.augmentation
    python -m benchmarks.augmentation --batches 10 256 --resolution 64 --json benchmarks/results/augmentation-cpu.json

"per image" draws every image's numbers, one column after the other; "per batch" draws one row for the whole batch, as
siamese augmentation does. Both sides draw and apply; "all" applies the six operations once each.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.registry import Suite
from benchmarks.rivals import PlainDSA, plain_dsa
from pad_fast import DSA
from pad_fast.data.augment import OPERATIONS
from pad_fast.runtime.rng import generator

SUITE = Suite(
    name="augmentation",
    about="DSA forward and pulled back",
    quick=("--batches", "8", "--rounds", "1"),
    full=("--batches", "10", "256", "--rounds", "5"),
)

# Of the output and of what is pulled back, relative to the plain formula on the same draw.
TOLERANCE = 1e-4
_AT_LEAST = 0.02  # seconds of one timing


class Case:
    """Images and the gradient that is pulled back to them."""

    def __init__(self, batch: int, resolution: int) -> None:
        draws = torch.Generator().manual_seed(0)
        shape = (batch, 3, resolution, resolution)
        self.images = torch.randn(shape, generator=draws).requires_grad_()
        self.pulled = torch.randn(shape, generator=draws)
        self.draws = generator(0, "benchmark dsa")

    def back(self, augmented: Tensor) -> Tensor:
        """The gradient of the images."""
        return torch.autograd.grad(augmented, self.images, self.pulled)[0]

    def ours(self, operation: str, siamese: bool) -> Tensor:
        """Drawn in the fast mode."""
        return self.back(DSA(operation, siamese=siamese)(self.images, generator=self.draws))

    def plain(self, operation: str, siamese: bool) -> Tensor:
        """Column by column, as the published code draws."""
        return self.back(PlainDSA([operation], self.draws, siamese=siamese)(self.images))

    def error(self, operation: str, siamese: bool) -> float:
        """Ours against the plain formula on one draw, both directions together."""
        draw = DSA(operation, siamese=siamese).draw(len(self.images), self.images.shape, generator=self.draws)
        mine, other = DSA.apply(self.images, draw), plain_dsa(self.images, operation, draw.values)
        forward = harness.relative_error(mine.detach(), other.detach())
        return math.hypot(forward, harness.relative_error(self.back(mine), self.back(other)))


def measure(batch: int, resolution: int, rounds: int) -> list[dict[str, Any]]:
    """Check and time every operation, and all of them together."""
    case, rows = Case(batch, resolution), []
    for siamese in (False, True):
        errors = {operation: case.error(operation, siamese) for operation in OPERATIONS}
        for operation, error in errors.items():
            harness.require(error, TOLERANCE, f"{operation}, {'per batch' if siamese else 'per image'}")
        for operations in (*((each,) for each in OPERATIONS), OPERATIONS):
            rows += time_operations(case, operations, siamese, rounds, max(errors[each] for each in operations))
    return rows


def time_operations(
    case: Case, operations: Sequence[str], siamese: bool, rounds: int, error: float
) -> list[dict[str, Any]]:
    """Both sides of some operations, by turns."""

    def every(side: Callable[[str, bool], Tensor]) -> None:
        for operation in operations:
            side(operation, siamese)

    runs: dict[str, Callable[[], None]] = {"plain torch": lambda: every(case.plain), "ours": lambda: every(case.ours)}
    (once,) = harness.take_turns({"": runs["plain torch"]}, rounds=1)[""]
    samples = harness.take_turns(runs, rounds=rounds, calls=max(1, round(_AT_LEAST / once)))
    return [
        {
            "operation": operations[0] if len(operations) == 1 else "all",
            "draws": "per batch" if siamese else "per image",
            "batch": len(case.images),
            "resolution": case.images.shape[-1],
            "rival": name,
            "ms": harness.summary(seconds, scale=1e3),
            "error": error,
            "times_faster_than_plain torch": harness.summary(
                [plain / own for plain, own in zip(samples["plain torch"], seconds, strict=True)]
            ),
        }
        for name, seconds in samples.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[10, 256], help="images per batch (default: 10 256)")
    parser.add_argument("--resolution", type=int, default=32, help="pixels on a side (default: 32)")
    harness.add_common(parser)
    options = parser.parse_args(argv)
    command = harness.command("benchmarks.augmentation", argv)
    print(harness.heading(command) + "\n")
    print(
        f"{'operation':<10}{'draws':<11}{'batch':>6} {'rival':<13}{'ms':>9}{'min..max':>18}{'x plain':>9}{'error':>10}"
    )
    rows = []
    for batch in options.batches:
        for row in measure(batch, options.resolution, options.rounds):
            rows.append(row)
            time, ratio = row["ms"], row["times_faster_than_plain torch"]["median"]
            print(
                f"{row['operation']:<10}{row['draws']:<11}{batch:>6} {row['rival']:<13}{time['median']:>9.3f}"
                f"{time['min']:>9.3f}..{time['max']:<7.3f}{ratio:>9.2f}{row['error']:>10.1e}",
                flush=True,
            )
    harness.write(options.json, "augmentation", command, rows)


if __name__ == "__main__":
    main()
