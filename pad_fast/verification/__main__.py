"""`python -m pad_fast.verification DEVICE FILE`: check a device, and write the verdict."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from .check import run


def main(words: list[str]) -> None:
    """The process that :mod:`pad_fast.engines.triton.verdicts` starts."""
    device, out = words
    run(torch.device(device), Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
