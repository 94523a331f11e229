"""The routes stage: which convolution was measured to be faster, ours or cuDNN's, by operation and shape.

    python -m benchmarks.gpu_check.routes --json routes.json

The choices are the ones that runs on this card use from then on. Without a GPU there is nothing to choose between.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.results import write_json
from pad_fast.kernels.conv import cudnn
from pad_fast.kernels.conv.choices import Choice
from pad_fast.kernels.conv.launches import KERNELS
from pad_fast.kernels.conv.layer import Layer

BATCHES = (100, 10, 500, 1000)
SIDES = (16, 8)
"""Of the later blocks of the 32-pixel ConvNet."""


def layers(device: torch.device) -> Iterator[Layer]:
    """Of the published settings, those of IPC 10 first; then the ones of networks that are trained together."""
    for batch in BATCHES:
        for side in SIDES:
            yield Layer(1, batch, side, side, 128, 128, device=device)
    for side in SIDES:
        yield Layer(8, 256, side, side, 128, 128, device=device)


def row_of(op: str, layer: Layer, choice: Choice) -> dict[str, Any]:
    """One choice."""
    shape = f"{layer.trajectories} x {layer.batch} x {layer.height} x {layer.width}, {layer.inputs} -> {layer.outputs}"
    rates = {"ours_tflops": layer.flops * PRODUCTS[op] / choice.triton_ms / 1e9}
    rates["cudnn_tflops"] = layer.flops * PRODUCTS[op] / choice.cudnn_ms / 1e9
    return {"op": op, "shape": shape, "precision": layer.kind, **vars(choice), **rates}


PRODUCTS = {
    "forward": 1,
    "tangent": 3,
    "tangent_only": 2,
    "data_grad": 1,
    "data_grad_dual": 3,
    "weight_grad": 1,
    "weight_grad_dual": 2,
}
"""Convolutions in an operation."""


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Aligned text."""
    head = f"{'operation':<18}{'shape':<32}{'route':<8}{'ours ms':>9}{'cuDNN ms':>10}{'TFLOP/s':>14}{'difference':>12}"
    lines = [head]
    for row in rows:
        rates = f"{row['ours_tflops']:.0f} / {row['cudnn_tflops']:.0f}"
        lines.append(
            f"{row['op']:<18}{row['shape']:<32}{row['route']:<8}{row['triton_ms']:>9.4f}{row['cudnn_ms']:>10.4f}"
            f"{rates:>14}{row['difference']:>12.1e}"
        )
    return lines


def main() -> None:
    """Measure until time is up; what is known is written after each layer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where (default: cuda)")
    parser.add_argument("--seconds", type=float, default=30.0, help="begin no layer later (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    begin, rows = time.monotonic(), []
    for layer in layers(torch.device(options.device)):
        if time.monotonic() > begin + options.seconds:
            print(f"no time for {layer}")
            continue
        for op, kernel in KERNELS.items():
            cudnn.choose(op, layer, kernel)
            choice = cudnn.choices().get((op, layer))
            if choice is not None:
                rows.append(row_of(op, layer, choice))
        if options.json is not None:
            write_json(options.json, {"rows": rows})
    print("\n".join(table(rows)) if rows else "nothing was measured")


if __name__ == "__main__":
    main()
