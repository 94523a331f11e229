"""What the card can do at best: bytes copied and matrix products, in a second each.

    python -m benchmarks.gpu_check.ceilings --device cuda --json ceilings.json

Every other rate of a check is to be read beside these.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.results import write_json
from benchmarks.gpu_timing import Device

_SECONDS = 1.0
_CALLS = 5


def best(device: Device, run: Callable[[], Any]) -> float:
    """Least seconds of one call, of turns of :data:`_CALLS`."""

    def several() -> None:
        for _ in range(_CALLS):
            run()

    device.time(run)
    limit, least = time.monotonic() + (_SECONDS if device.cuda else _SECONDS / 5), float("inf")
    while time.monotonic() < limit:
        least = min(least, device.time(several) / 1e3 / _CALLS)
    return least


def copied(device: Device) -> dict[str, Any]:
    """Bytes read and written by a copy."""
    source = torch.empty((2**30 if device.cuda else 2**24) // 4, device=device.device).normal_()
    target = torch.empty_like(source)
    seconds = best(device, lambda: target.copy_(source))
    return {"name": "copy", "value": 2 * source.nbytes / seconds / 1e9, "unit": "GB/s", "size": source.nbytes}


def multiplied(device: Device, name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Operations of a product of square matrices."""
    size = 8192 if device.cuda else 256
    a, b = (torch.randn(size, size, device=device.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = best(device, lambda: torch.mm(a, b, out=out))
    return {"name": f"product, {name}", "value": 2 * size**3 / seconds / 1e12, "unit": "TFLOP/s", "size": size}


def measured(device: Device) -> list[dict[str, Any]]:
    """A row for each ceiling."""
    torch.backends.cuda.matmul.allow_tf32 = True
    products = (("tf32", torch.float32), ("bf16", torch.bfloat16))
    return [copied(device), *(multiplied(device, name, dtype) for name, dtype in products)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where (default: cuda)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    rows = measured(Device(options.device))
    print("\n".join(f"{row['name']:<16}{row['value']:>10.3g} {row['unit']}" for row in rows))
    if options.json is not None:
        write_json(options.json, {"device": options.device, "rows": rows})


if __name__ == "__main__":
    main()
