"""Every Triton launch of pad_fast goes through :func:`launch`, so that launches, bytes and operations can be counted.

Counting needs no GPU: inside :func:`dry_run` nothing is executed, the host code runs on CPU tensors and every launch
is written down with its cost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PRECISIONS = ("tf32", "ieee", "bf16")
"""How float32 products are formed: operands rounded to 10 or 7 bits of fraction, or kept. Sums are always float32."""


OPTIONS = {"enable_fp_fusion": True}
"""For every kernel: a * b + c rounds once. Triton's own default is about to change."""

TARGETS = {80: 163 * 1024, 90: 227 * 1024}
"""Compute capabilities compiled for (A100; H100 and H200), and the shared memory in bytes that one program may have."""


@dataclass(frozen=True)
class Cost:
    """The least that one launch must do.

    Attributes:
        bytes: of device memory read and written, every operand counted once.
        flops: floating-point operations, a multiply-add counted as two.
    """

    bytes: int
    flops: int = 0


@dataclass
class Count:
    """Launches written down by :func:`counting` and :func:`dry_run`: kernel name and cost, in order."""

    launches: list[tuple[str, Cost]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(cost.bytes for _, cost in self.launches)

    @property
    def flops(self) -> int:
        return sum(cost.flops for _, cost in self.launches)


_counts: list[Count] = []
_dry = 0


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 before the first kernel is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, cost: Cost, **options: Any) -> None:
    """Run `kernel[grid](*args, **options)` with :data:`OPTIONS`, and write it down where somebody counts.

    A library call that stands in for a kernel is counted by :func:`note` instead.
    """
    note(kernel.__name__, cost)
    if not _dry:
        kernel[grid](*args, **OPTIONS, **options)


def note(name: str, cost: Cost) -> None:
    """Write down work that does not go through :func:`launch` (a cuDNN or cuBLAS call)."""
    for count in _counts:
        count.launches.append((name, cost))


@contextmanager
def counting() -> Iterator[Count]:
    """Write down what is launched inside the block, and run it."""
    count = Count()
    _counts.append(count)
    try:
        yield count
    finally:
        _counts.remove(count)


@contextmanager
def dry_run() -> Iterator[Count]:
    """Write down what would be launched inside the block; outputs of kernels stay unwritten."""
    global _dry
    _dry += 1
    try:
        with counting() as count:
            yield count
    finally:
        _dry -= 1
