"""State of a distillation run, and the checkpoint that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, StoreError
from ..runtime import distributed, files, tensor_files
from ..settings.config import Config

CHECKPOINT = "checkpoint"

_FORMAT = "pad_fast checkpoint 1"

DIVERGED = 10.0
"""Matching loss of a student that has left the experts, for a run that backs off and has no threshold."""


@dataclass
class Watch:
    """What a run that backs off has seen of its losses.

    Attributes:
        losses: of the window under way.
        updates: how many of them were followed by an update.
        idle: windows in a row that led nowhere.
        stalled: there was no other one since it backed off from such a row.
        waited: iterations without an update before the first one since the good state.
        moved: whether there was that one.
        best: lowest median of a window, slowly forgotten; None before the first.
        counts: back-offs, by what was made smaller.
    """

    losses: list[float] = field(default_factory=list)
    updates: int = 0
    idle: int = 0
    stalled: bool = False
    waited: int = 0
    moved: bool = False
    best: float | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class State:
    """Everything an iteration changes, which is exactly what a checkpoint holds.

    Attributes:
        images: `[N, C, H, W]`; label_logits: `[N, classes]`; lr: `[]`.
        momentum: one buffer per learned tensor.
        average: exponential moving average of the images, when the run keeps one.
        iteration: iterations completed.
        skipped: of these, how many were above the threshold.
        found: settings that the run has found or changed by itself, by name: they are in force.
        watch, kept: of a run that backs off, what it has seen, and the states it may return to, by name: "good", and
            "start" of the window under way. Each is a copy of what :meth:`learned` has.
    """

    images: Tensor
    label_logits: Tensor
    lr: Tensor
    labels: Tensor
    momentum: dict[str, Tensor] = field(default_factory=dict)
    average: Tensor | None = None
    iteration: int = 0
    skipped: int = 0
    found: dict[str, float] = field(default_factory=dict)
    watch: Watch | None = None
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def start(cls, images: Tensor, label_logits: Tensor, labels: Tensor, config: Config, device: torch.device) -> State:
        """The state before the first iteration."""
        images, label_logits = images.to(device, torch.float32), label_logits.to(device, torch.float32)
        # float64, because published settings change alpha by 1e-7 an iteration.
        lr = torch.tensor(config.lr_init, dtype=torch.float64).to(device)
        momentum = {"images": torch.zeros_like(images), "labels": torch.zeros_like(label_logits)}
        momentum["lr"] = torch.zeros_like(lr)
        average = images.clone() if config.ema_decay is not None else None
        state = cls(images.clone(), label_logits.clone(), lr, labels.clone(), momentum, average)
        if config.back_off:
            state.watch = Watch()
            state.keep("good")
            state.keep("start")
        return state

    def rate(self, name: str, config: Config) -> float:
        """The step size in force: lr_img, lr_lr or lr_y.

        Raises:
            ConfigError: it is "auto", and nobody has searched for it.
        """
        value = self.found.get(name, getattr(config, name))
        if value == "auto":
            raise ConfigError(f"{name} is 'auto', and no search has found its value yet")
        return float(value)

    def threshold(self, config: Config) -> float | None:
        """The matching loss above which there is no update."""
        if "threshold" in self.found:
            return self.found["threshold"]
        # What batches are matched by has no natural size.
        watched = config.back_off and config.uses_experts
        return DIVERGED if config.threshold is None and watched else config.threshold

    def learned(self) -> dict[str, Tensor]:
        """What iterations change, by name; the tensors themselves, not copies."""
        tensors = {"images": self.images, "label_logits": self.label_logits, "lr": self.lr}
        tensors |= {f"momentum.{name}": value for name, value in self.momentum.items()}
        if self.average is not None:
            tensors["average"] = self.average
        return tensors

    def keep(self, name: str) -> None:
        """Put a copy aside, to :meth:`restore` it."""
        self.kept[name] = {each: value.clone() for each, value in self.learned().items()}

    def restore(self, name: str) -> None:
        """Make everything that is learned what it was."""
        for each, value in self.learned().items():
            value.copy_(self.kept[name][each])

    def copy(self) -> State:
        """A state to try something on."""
        momentum = {name: value.clone() for name, value in self.momentum.items()}
        average = None if self.average is None else self.average.clone()
        learned = self.images.clone(), self.label_logits.clone(), self.lr.clone()
        return State(*learned, self.labels, momentum, average, self.iteration, self.skipped, dict(self.found))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name; the tensors themselves, not copies."""
        tensors = {**self.learned(), "labels": self.labels}
        for name, kept in self.kept.items():
            tensors |= {f"{name}.{each}": value for each, value in kept.items()}
        return tensors

    def save(self, path: Path, key: str) -> None:
        """Write a checkpoint atomically; `key` identifies the settings it belongs to."""
        described: dict[str, Any] = {
            "format": _FORMAT,
            "key": key,
            "iteration": self.iteration,
            "skipped": self.skipped,
        }
        # Runs without these write what they always have.
        if self.found:
            described["found"] = self.found
        if self.watch is not None:
            described["watch"] = asdict(self.watch)
        files.write_bytes(path, tensor_files.pack_tensors(self.tensors(), described))

    def require_same(self) -> None:
        """Prove that all ranks have come to the same state.

        Raises:
            RankError: they have not.
        """
        counts = {"counts": torch.tensor([self.iteration, self.skipped])}
        if self.found:
            counts["found"] = torch.tensor([self.found[name] for name in sorted(self.found)], dtype=torch.float64)
        distributed.group().require_same(f"the state after iteration {self.iteration}", self.tensors() | counts)

    @classmethod
    def load(cls, path: Path, key: str, device: torch.device) -> State:
        """Read a checkpoint.

        Raises:
            StoreError: truncated, foreign, of another format, or written with other settings.
        """
        with read_checkpoint(path) as (stored, described):
            tensors = {name: value.to(device) for name, value in stored.items()}
            if described["key"] != key:
                raise StoreError(
                    f"{path} belongs to a run with other settings, other experts or another version of torch; "
                    "go on with the same ones, begin anew with overwrite=True (--overwrite), or in another folder"
                )
            watch = described.get("watch")
            return cls(
                tensors["images"],
                tensors["label_logits"],
                tensors["lr"],
                tensors["labels"].cpu(),
                {name: tensors[f"momentum.{name}"] for name in ("images", "labels", "lr")},
                tensors.get("average"),
                int(described["iteration"]),
                int(described["skipped"]),
                {str(name): float(value) for name, value in described.get("found", {}).items()},
                None if watch is None else Watch(**watch),
                {} if watch is None else {name: _under(tensors, name) for name in ("good", "start")},
            )


def _under(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a kept state."""
    prefix = f"{name}."
    return {each.removeprefix(prefix): value for each, value in tensors.items() if each.startswith(prefix)}


def read_checkpoint(path: Path) -> AbstractContextManager[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Tensors and description of a checkpoint of any run; see :func:`pad_fast.runtime.tensor_files.read_tensors`."""
    return tensor_files.read_tensors(path, "checkpoint", _FORMAT, way_out="delete it to start afresh")
