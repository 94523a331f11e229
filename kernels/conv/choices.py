"""Routes of convolutions that were measured: kept between processes, so that the same seed gives the same result.

Which route is faster can change from one measurement to the next, and with it the last bits of a result. The first
measurement on a card therefore stands, in the user's cache folder, until card, driver, versions or sources change.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import StoreError
from ...runtime import files, locks
from ...runtime.cards import card_and_versions, digest_of_sources, file_name
from ...runtime.user_cache import cache_folder
from .layer import Layer

FORMAT = "pad_fast convolutions 1"

logger = logging.getLogger("pad_fast")


@dataclass(frozen=True)
class Choice:
    """A measurement: milliseconds per call, and the relative difference of the results."""

    route: str
    triton_ms: float
    cudnn_ms: float
    difference: float


class Choices:
    """The choices on all devices: of this process, and those that others have kept."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Layer], Choice] = {}
        self._kept: dict[torch.device, dict[str, Choice]] = {}

    def used(self) -> dict[tuple[str, Layer], Choice]:
        """Everything that was asked for in this process and is known."""
        return dict(self._known)

    def get(self, op: str, layer: Layer) -> Choice | None:
        """A choice that was made here or anywhere before."""
        if (op, layer) not in self._known:
            if layer.device not in self._kept:
                self._kept[layer.device] = _read(layer.device)
            kept = self._kept[layer.device].get(key_of(op, layer))
            if kept is not None:
                self._known[op, layer] = kept
        return self._known.get((op, layer))

    def put(self, op: str, layer: Layer, choice: Choice, *, keep: bool) -> Choice:
        """Note a choice, and keep it; the one that another process has kept meanwhile counts instead."""
        if keep:
            choice = _add(layer.device, key_of(op, layer), choice)
        self._known[op, layer] = choice
        return choice


def key_of(op: str, layer: Layer) -> str:
    """Operation and layer in words; which of several equal cards it is does not matter."""
    values = {name: str(value) for name, value in vars(layer).items() if name != "device"}
    return f"{op} " + " ".join(f"{name}={value}" for name, value in values.items())


def path_of(device: torch.device) -> Path:
    """The file of a card's choices."""
    subject = {**card_and_versions(device), "kernels": _sources()}
    return cache_folder() / "convolutions" / file_name(subject)


def _read(device: torch.device) -> dict[str, Choice]:
    path = path_of(device)
    if not path.exists():
        return {}
    try:
        stored: dict[str, Any] = files.read_json(path, "choice of convolutions")
        with files.reading(path, "choice of convolutions"):
            if stored["format"] != FORMAT:
                return {}
            return {str(key): Choice(**value) for key, value in stored["choices"].items()}
    except StoreError as error:
        logger.info(str(error))
        return {}


def _add(device: torch.device, key: str, choice: Choice) -> Choice:
    path = path_of(device)
    try:
        with locks.locked(path.with_suffix(".lock")):
            kept = _read(device)
            if key in kept:
                return kept[key]
            written = {name: asdict(each) for name, each in {**kept, key: choice}.items()}
            files.write_json(path, {"format": FORMAT, "choices": written})
    except StoreError as error:
        logger.info(f"the choice of convolutions is not kept: {error}")
    return choice


@functools.cache
def _sources() -> str:
    return digest_of_sources([Path(__file__).parent])
