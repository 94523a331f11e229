"""Numbers and images of a run for TensorBoard or Weights & Biases, through their own packages, where asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from ..evaluation import AccuracyRow
from ..runtime import files
from .folder import METRICS, PAGE

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
NAMES = tuple(_PACKAGES)
_NOT_CURVES = ("iteration", "expert")


class Tracker(ABC):
    """Somewhere to send what a run writes into metrics.jsonl, and its result."""

    @abstractmethod
    def row(self, row: Mapping[str, float]) -> None:
        """One iteration's row of metrics.jsonl."""

    @abstractmethod
    def result(self, accuracy: Sequence[AccuracyRow], picture: Path, iteration: int) -> None:
        """The accuracies and the image grid (a PNG file) after the last iteration."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left."""


def require_trackers(names: Sequence[str]) -> None:
    """Check that trackers exist and their packages are installed, before any work.

    Raises:
        ConfigError: an unknown name, or a package that is missing.
    """
    for name in names:
        if name not in _PACKAGES:
            raise ConfigError(f"log is {name!r}; use one of {', '.join(NAMES)}.{nearest(name, NAMES)}")
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"log {name!r} needs the package {_PACKAGES[name]}, which is not installed: "
                f"pip install {_PACKAGES[name]}, or leave log out ({METRICS} and {PAGE} are written anyway)"
            )


def open_trackers(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], *, begun: int = 0
) -> Sequence[Tracker]:
    """Trackers of a run.

    Args:
        names: "tensorboard" (event files in `folder/tensorboard`), "wandb".
        folder: of the run.
        settings: its configuration.
        begun: iterations that were done before (a resumed run); what was sent beyond them is dropped.

    Raises:
        ConfigError: see :func:`require_trackers`.
    """
    require_trackers(names)
    made: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
    return [made[name](folder, settings, begun) for name in names]


def _curves(row: Mapping[str, float]) -> dict[str, float]:
    return {key.replace("layer_loss.", "layer_loss/"): value for key, value in row.items() if key not in _NOT_CURVES}


def _accuracies(rows: Sequence[AccuracyRow]) -> dict[str, float]:
    """Means and standard deviations by what was trained on and network."""
    found = {}
    for row in rows:
        found[f"accuracy/{row.name}/{row.model}"] = row.mean
        if row.networks > 1:
            found[f"accuracy std/{row.name}/{row.model}"] = row.std
    return found


class _TensorBoard(Tracker):
    def __init__(self, folder: Path, settings: Mapping[str, Any], begun: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=begun or None)
        self.writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def row(self, row: Mapping[str, float]) -> None:
        for key, value in _curves(row).items():
            self.writer.add_scalar(key, value, int(row["iteration"]))

    def result(self, accuracy: Sequence[AccuracyRow], picture: Path, iteration: int) -> None:
        import numpy
        from PIL import Image

        for key, value in _accuracies(accuracy).items():
            self.writer.add_scalar(key, value, iteration)
        with Image.open(picture) as image:
            self.writer.add_image("images", numpy.asarray(image.convert("RGB")), iteration, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases(Tracker):
    def __init__(self, folder: Path, settings: Mapping[str, Any], begun: int) -> None:
        self.package: Any = importlib.import_module("wandb")
        # A resumed run goes on in the same place.
        remembered = folder / "wandb.json"
        known = json.loads(remembered.read_text(encoding="utf-8"))["id"] if begun and remembered.is_file() else None
        self.run = self.package.init(
            project="pad_fast", name=folder.name, dir=str(folder), config=dict(settings), id=known, resume="allow"
        )
        files.write_json(remembered, {"id": self.run.id})

    def row(self, row: Mapping[str, float]) -> None:
        self.run.log(_curves(row), step=int(row["iteration"]))

    def result(self, accuracy: Sequence[AccuracyRow], picture: Path, iteration: int) -> None:
        self.run.log({**_accuracies(accuracy), "images": self.package.Image(str(picture))}, step=iteration)

    def close(self) -> None:
        self.run.finish()
