"""Cost of one iteration of every published setting: counted for a GPU, scaled from a measurement for the CPU.

    python -m benchmarks.published --json benchmarks/results/published.json
    python -m benchmarks.published --settings "CIFAR-100 IPC 10"

Time on a GPU is what `benchmarks.model` predicts for an H200. Memory is the most that is alive at once in tensors,
watched while the host code runs: linear in the number of steps, and for the plain loop also in the batch, so that small
runs give large ones. Seconds on the CPU are the operations of the setting at the rate that `benchmarks.unroll` measured
at the nearest batch.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import harness, model
from benchmarks.harness import load
from benchmarks.model import SETTINGS, Setting

PRINTED = {
    "CIFAR-100 IPC 10": "one A100-80G: MTT 61.6 GB, 1.92 s; TESLA 10.3 GB, 5.71 s; DATM out of memory",
}
"""Numbers that others print for a setting, with their own numbers of steps and batches."""


class Alive(TorchDispatchMode):
    """Bytes of all tensors made inside that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in model.tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                self._seen.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def alive(run: Callable[[], object]) -> int:
    """The most bytes that are alive in tensors made while `run` runs."""
    with Alive() as mode:
        run()
    return mode.most


def our_bytes(setting: Setting) -> float:
    """Ours at the setting's own batch, from two steps and three."""
    two, three = (alive(partial(model.ours, setting, steps)) for steps in (2, 3))
    return two + (setting.steps - 2) * (three - two)


def plain_bytes(setting: Setting) -> float:
    """The plain loop, which grows with the batch, with the steps, and with their product."""
    corner = {
        (batch, steps): alive(partial(model.plain, setting, batch, steps)) for batch in (2, 3) for steps in (2, 3)
    }
    batch, steps = setting.batch - 2, setting.steps - 2
    by_batch, by_steps = corner[3, 2] - corner[2, 2], corner[2, 3] - corner[2, 2]
    both = corner[3, 3] - corner[2, 3] - by_batch
    return corner[2, 2] + batch * by_batch + steps * by_steps + batch * steps * both


def cpu_rate(measured: dict[str, Any], wanted: Setting) -> tuple[float, Setting]:
    """Counted operations per second of our CPU engine at the nearest measured batch and T, and what was measured."""
    rows = [row for row in measured["rows"] if row["rival"] == "cpu high, recompute" and row["mask"] == "none"]
    row = min(rows, key=lambda row: (abs(row["batch"] - wanted.batch), row["batch"], abs(row["steps"] - wanted.steps)))
    setting = Setting(wanted.name, row["batch"], row["batch"], row["steps"])
    return model.our_total(setting).flops / (row["ms_per_step"]["median"] * row["steps"] / 1e3), setting


def row(setting: Setting, measured: dict[str, Any]) -> dict[str, Any]:
    """Everything about one setting."""
    mine, other = model.our_total(setting), model.plain_total(setting)
    rate, known = cpu_rate(measured, setting)
    return {
        "setting": setting.name,
        "batch": setting.batch,
        "steps": setting.steps,
        "gpu_seconds": {"ours": mine.seconds, "plain": other.seconds},
        "gpu_bytes": {"ours": our_bytes(setting), "plain": plain_bytes(setting)},
        "cpu_seconds": mine.flops / rate,
        "cpu_measured_at": {"batch": known.batch, "steps": known.steps},
        "cpu_is_measured": known == setting,
        "printed": PRINTED.get(setting.name, ""),
    }


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of docs/scaling.md."""
    header = ["setting", "batch", "T", "H200, s per iteration: ours / plain (predicted)"]
    header += [
        "GB: ours / plain (counted)",
        "2 CPU cores, s per iteration (predicted, or measured)",
        "printed by others (measured)",
    ]
    return header, [
        [
            row["setting"],
            str(row["batch"]),
            str(row["steps"]),
            f"{row['gpu_seconds']['ours']:.3g} / {row['gpu_seconds']['plain']:.3g}",
            f"{row['gpu_bytes']['ours'] / 1e9:.2f} / {row['gpu_bytes']['plain'] / 1e9:,.1f}",
            f"{row['cpu_seconds']:.3g}{', measured' if row['cpu_is_measured'] else ''}",
            row["printed"],
        ]
        for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="some of them (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args(argv)
    settings = [setting for setting in SETTINGS if not options.settings or setting.name in options.settings]
    measured = load("unroll-cpu")
    rows = []
    for found in model.counted(lambda setting: row(setting, measured), settings):
        rows.append(found)
        print(*table([found])[1][0], sep=" | ", flush=True)
    harness.write(options.json, "published", harness.command("benchmarks.published", argv), rows)


if __name__ == "__main__":
    main()
