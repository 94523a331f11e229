"""Randomness: one seed, one named generator per purpose (nothing reads the clock).

A generator is a pure function of `(seed, purpose, counter...)`. Iteration 700 of a run therefore draws the same
numbers whether the run reached it undisturbed or resumed from a checkpoint, and no generator state is stored.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, independent of every other purpose's.

    Example:
        >>> derive_seed(0, "expert", 3) == derive_seed(0, "expert", 3)
        True
        >>> derive_seed(0, "expert", 3) == derive_seed(0, "expert", 4)
        False
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded with :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
