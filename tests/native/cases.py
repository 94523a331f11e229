"""Golden files of unrolled runs as plain numbers for tests/native/unroll.cpp, which has no Python to read them with.

python -m tests.native.cases OUT
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pad_fast.models import FlatNetwork
from pad_fast.models.selection import keep_largest

from ..support.golden import CASES, arguments_of, golden_folders, network_of, served_natively


def row(values: Any, kind: str) -> bytes:
    flat = np.ascontiguousarray(values, dtype=kind).reshape(-1)
    return struct.pack("<q", len(flat)) + flat.tobytes()


def kept_of(case: dict[str, Any]) -> Tensor:
    """1 for the parameters whose errors at the end count, 0 for the others."""
    network, mask = FlatNetwork(network_of(case)), arguments_of(case)["mask"]
    first, count = mask.first_kept(network), network.parameter_count
    errors = torch.from_numpy(case["theta_end"] - case["theta_target"]).square()[None]
    kept = torch.zeros(count)
    kept[first:] = keep_largest(errors[:, first:], mask.dropped_entries(count))[0].float()
    return kept


def encoded(name: str, case: dict[str, Any]) -> bytes:
    """One case in the order in which the driver reads it."""
    config = network_of(case).config
    sizes = (config.channels, config.resolution, config.first_padding, config.depth, config.width, config.classes)
    batches = np.split(case["batch_indices"], np.cumsum(case["batch_sizes"])[:-1])
    numbers = (
        *("syn_lr", "theta_start", "theta_target", None, "images", "label_logits"),
        *("loss", "grad_images", "grad_label_logits", "grad_syn_lr"),
    )
    return b"".join(
        [
            row(np.frombuffer(name.encode(), np.int8), "<i1"),
            row(sizes, "<i8"),
            struct.pack("<q", len(batches)),
            *(row(batch, "<i8") for batch in batches),
            *(row(kept_of(case) if key is None else case[key], "<f8") for key in numbers),
        ]
    )


def write(out: Path) -> list[str]:
    """Every case at hand that the engine serves."""
    found = {}
    for name in CASES:
        for folder in golden_folders():
            path = folder / f"unroll_{name}.npz"
            if path.is_file():
                with np.load(path) as stored:
                    case = {key: stored[key] for key in stored.files}
                if served_natively(case):
                    found[name] = encoded(name, case)
                break
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(struct.pack("<q", len(found)) + b"".join(found.values()))
    return list(found)


if __name__ == "__main__":
    print("cases:", ", ".join(write(Path(sys.argv[1]))))
