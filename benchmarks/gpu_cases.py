"""Cases of `benchmarks.gpu`, variants of our side, and the targets they are held to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Ours:
    """One way to run our side: options of the call, environment, trajectories at once."""

    options: dict[str, Any] = field(default_factory=dict)
    graphs: bool = True
    trajectories: int = 1


@dataclass(frozen=True)
class UnrollCase:
    """One iteration's gradient: ConvNet D3 W128, 32 px, 10 classes, T steps on batches of `batch`, with DSA."""

    batch: int
    steps: int
    width: int = 128
    more: tuple[str, ...] = ()
    compiled: bool = False  # also the plain loop with its step out of torch.compile


@dataclass(frozen=True)
class EpochCase:
    """Training of `networks` networks on the same images: experts, or networks of an evaluation."""

    images: int
    expert: bool
    networks: int = 1
    epochs: int = 1
    width: int = 128


VARIANTS: dict[str, Ours] = {
    "ours": Ours(),
    "ours, activations kept": Ours({"cache": "auto"}),
    "ours, one launch at a time": Ours(graphs=False),
    "ours, 8 trajectories": Ours(trajectories=8),
    "ours, bf16": Ours({"precision": "bf16"}),
    "ours, float32": Ours({"precision": "ieee"}),
}
UNROLLS: dict[str, UnrollCase] = {
    "CIFAR-10 IPC 1": UnrollCase(10, 80, more=tuple(VARIANTS)[1:]),
    "CIFAR-10 IPC 10": UnrollCase(100, 80, more=("ours, activations kept", "ours, bf16")),
    "CIFAR-10 IPC 1000": UnrollCase(1000, 100, more=("ours, activations kept",)),
    "batch 500": UnrollCase(500, 40, more=("ours, activations kept",)),
    "CIFAR-10 IPC 500": UnrollCase(1000, 40),
    "IPC 10, torch.compile": UnrollCase(100, 80, compiled=True),
}
# What this case's rival needs, a compiler that gets through in time, is not ours to promise.
OPTIONAL = ("IPC 10, torch.compile",)
# What was asked for: times faster than the plain loop, and MiB at batch 1000 whatever T is.
TARGETS = {"CIFAR-10 IPC 1": 15, "CIFAR-10 IPC 10": 8, "batch 500": 5, "CIFAR-10 IPC 500": 5, "CIFAR-10 IPC 1000": 5}
MOST_MIB = 6144
FLAT = ("CIFAR-10 IPC 500", "CIFAR-10 IPC 1000")
TINY = {"tiny": UnrollCase(4, 3, width=8, more=("ours, 8 trajectories",))}
EPOCHS: dict[str, EpochCase] = {
    "expert epoch": EpochCase(5000, expert=True),
    "evaluation epoch": EpochCase(1000, expert=False),
    "8 experts": EpochCase(1280, expert=True, networks=8),
    "20 networks, IPC 1": EpochCase(10, expert=False, networks=20, epochs=20),
}
TINY_EPOCHS = {
    name: replace(case, images=9, networks=min(case.networks, 2), epochs=min(case.epochs, 2), width=8)
    for name, case in EPOCHS.items()
}
SUITES = ("unroll", "epochs", "matching")
