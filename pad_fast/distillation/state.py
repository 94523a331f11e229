"""State of a distillation run, and the checkpoint that holds it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import StoreError
from ..runtime import distributed, files, tensor_files
from ..settings.config import Config

CHECKPOINT = "checkpoint"

_FORMAT = "pad_fast checkpoint 1"


@dataclass(eq=False)
class State:
    """Everything an iteration changes, which is exactly what a checkpoint holds.

    Attributes:
        images: `[N, C, H, W]`; label_logits: `[N, classes]`; lr: `[]`.
        momentum: one buffer per learned tensor.
        average: exponential moving average of the images, when the run keeps one.
        iteration: iterations completed.
        skipped: of these, how many were above the threshold.
    """

    images: Tensor
    label_logits: Tensor
    lr: Tensor
    labels: Tensor
    momentum: dict[str, Tensor] = field(default_factory=dict)
    average: Tensor | None = None
    iteration: int = 0
    skipped: int = 0

    @classmethod
    def start(cls, images: Tensor, label_logits: Tensor, labels: Tensor, config: Config, device: torch.device) -> State:
        """The state before the first iteration."""
        images, label_logits = images.to(device, torch.float32), label_logits.to(device, torch.float32)
        # float64, because published settings change alpha by 1e-7 an iteration.
        lr = torch.tensor(config.lr_init, dtype=torch.float64).to(device)
        momentum = {"images": torch.zeros_like(images), "labels": torch.zeros_like(label_logits)}
        momentum["lr"] = torch.zeros_like(lr)
        average = images.clone() if config.ema_decay is not None else None
        return cls(images.clone(), label_logits.clone(), lr, labels.clone(), momentum, average)

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the two counts, by name; the tensors themselves, not copies."""
        tensors = {
            "images": self.images,
            "label_logits": self.label_logits,
            "lr": self.lr,
            "labels": self.labels,
        }
        tensors |= {f"momentum.{name}": value for name, value in self.momentum.items()}
        if self.average is not None:
            tensors["average"] = self.average
        return tensors

    def save(self, path: Path, key: str) -> None:
        """Write a checkpoint atomically; `key` identifies the settings it belongs to."""
        described = {"format": _FORMAT, "key": key, "iteration": self.iteration, "skipped": self.skipped}
        files.write_bytes(path, tensor_files.pack_tensors(self.tensors(), described))

    def require_same(self) -> None:
        """Prove that all ranks have come to the same state.

        Raises:
            RankError: they have not.
        """
        counts = {"counts": torch.tensor([self.iteration, self.skipped])}
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
                    f"{path} belongs to a run with other settings or other experts; resume with the same settings, "
                    "or start afresh in another folder"
                )
            return cls(
                tensors["images"],
                tensors["label_logits"],
                tensors["lr"],
                tensors["labels"].cpu(),
                {name: tensors[f"momentum.{name}"] for name in ("images", "labels", "lr")},
                tensors.get("average"),
                int(described["iteration"]),
                int(described["skipped"]),
            )


def read_checkpoint(path: Path) -> AbstractContextManager[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Tensors and description of a checkpoint of any run; see :func:`pad_fast.runtime.tensor_files.read_tensors`."""
    return tensor_files.read_tensors(path, "checkpoint", _FORMAT, way_out="delete it to start afresh")
