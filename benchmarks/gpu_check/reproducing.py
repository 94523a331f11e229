"""The reproduce stage: CIFAR-10, ten images a class, from raw images to an accuracy, as far as its seconds go.

    python -m benchmarks.gpu_check.reproducing --data DATA --seconds 170 --json reproduce.json

DATA is a folder of images (`train/<class>/<image>`, `test/<class>/<image>`), one that holds torchvision's
`cifar-10-batches-py`, or a tar archive of either. The published settings, but for a budget of experts and networks that
fits minutes (:data:`BUDGET`): accuracies stay below the published ones. The distillation is run again with ten times as
many iterations while that fits; scores and experts are kept from one to the next.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import pad_fast
from benchmarks.gpu_check.results import write_json
from pad_fast.runs.timing import read_timing

PRESET = "cifar10-ipc10"
BUDGET: dict[str, Any] = {"num_experts": 4, "train_epochs": 14, "score_networks": 1, "score_epochs": 3}
BUDGET |= {"max_start_epoch": 10, "current_max_start_epoch": 10, "expansion_end_epoch": 1, "add_end_epoch": 4}
BUDGET |= {"removal1_epoch": 12, "removal2_epoch": 13, "eval_networks": 3, "eval_full_epochs": 1}
TINY: dict[str, Any] = {**BUDGET, "model": "ConvNetD1W4", "num_experts": 1, "eval_networks": 1, "eval_epochs": 2}
TINY |= {"syn_steps": 2, "zca": False, "batch_syn": 10}
"""For a CPU, to try the program itself."""
FIRST = 20
"""Iterations of the first run."""
_ROOM = 0.8  # of the time that is left, for what was measured on fewer iterations


def opened(data: Path, folder: Path) -> Path:
    """The folder of the images; an archive is unpacked into `folder`."""
    if data.is_file():
        with tarfile.open(data) as archive:
            archive.extractall(folder, filter="data")
        data = folder
    inside = [path for path in sorted(data.iterdir()) if path.is_dir()] if data.is_dir() else []
    return inside[0] if len(inside) == 1 and inside[0].name != "cifar-10-batches-py" else data


def source_of(data: Path) -> tuple[str, Path | None]:
    """Data set and folder as :func:`pad_fast.distill` wants them."""
    if (data / "cifar-10-batches-py").is_dir():
        return "cifar10", data
    return f"imagefolder:{data}", None


def budget_of(device: str) -> dict[str, Any]:
    """Settings that differ from the published ones."""
    return BUDGET if device.startswith("cuda") else TINY


def run(data: Path, out: Path, iterations: int, *, device: str) -> dict[str, Any]:
    """One run; its accuracies, and what each stage took."""
    dataset, folder = source_of(data)
    begin = time.monotonic()
    result = pad_fast.distill(
        dataset,
        data_dir=folder,
        preset=PRESET,
        out=out,
        overwrite=True,
        device=device,
        backend="triton" if device.startswith("cuda") else "auto",
        iterations=iterations,
        **budget_of(device),
    )
    accuracy = {row.name: {"mean": row.mean, "std": row.std} for row in result.evaluation}
    stages = {name: round(cost.seconds or 0.0, 2) for name, cost in read_timing(out).stages.items()}
    return {"iterations": iterations, "seconds": time.monotonic() - begin, "stages": stages, "accuracy": accuracy}


def line_of(row: dict[str, Any]) -> str:
    """A run in a line."""
    reached = ", ".join(f"{name} {each['mean']:.1f} +- {each['std']:.1f}" for name, each in row["accuracy"].items())
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["stages"].items())
    return f"{row['iterations']} iterations: {row['seconds']:.1f} s ({stages}); accuracy in %: {reached}"


def next_count(row: dict[str, Any], seconds: float) -> int:
    """Iterations that fit into what is left, at most ten times as many; 0 where not even twice as many do."""
    distilling = row["stages"]["distill"] / row["iterations"]
    rest = row["stages"].get("evaluate", 0.0) + row["stages"].get("data", 0.0)
    fitting = int((_ROOM * seconds - rest) / max(distilling, 1e-6))
    return min(10 * row["iterations"], fitting) if fitting >= 2 * row["iterations"] else 0


def main() -> None:
    """Run as often as fits; what is known is written after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder or archive of the images")
    parser.add_argument("--device", default="cuda", help="where (default: cuda)")
    parser.add_argument("--seconds", type=float, default=170.0, help="to fit into (default: 170)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    limit, rows, count = time.monotonic() + options.seconds, list[dict[str, Any]](), FIRST
    with tempfile.TemporaryDirectory() as folder:
        data = opened(options.data, Path(folder) / "data")
        budget = budget_of(options.device)
        print(f"{PRESET} with {budget}", flush=True)
        while count:
            rows.append(run(data, Path(folder) / "run", count, device=options.device))
            print(line_of(rows[-1]), flush=True)
            if options.json is not None:
                found = {"preset": PRESET, "budget": budget, "rows": rows, "table": [line_of(row) for row in rows]}
                write_json(options.json, found)
            count = next_count(rows[-1], limit - time.monotonic())


if __name__ == "__main__":
    main()
