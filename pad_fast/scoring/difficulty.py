"""Difficulty scores of a training set and the easy-to-hard order of every class."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import ImageDataset
from ..errors import StoreError
from ..runtime import files, tensor_files
from .order_table import SUFFIXES, read_order_table, require_permutation

_FORMAT = "pad_fast difficulty 1"


@dataclass(frozen=True, eq=False)
class Difficulty:
    """Difficulty of each training image.

    Attributes:
        scores: `[N]`, higher = harder; where only an order is known (the reference's files), the rank within the
            class divided by the class size.
        order: per class, dataset indices easy to hard, ties by index.
        method: "el2n", "grand", "forgetting", or "order" for a file of the reference.
        fingerprint: of the data set it belongs to; empty when unknown.
        variance: `[N]`, of the score over networks (unbiased; 0 for a single one), or None where unknown.
        forgetting: `[N]`, forgetting events of each image, averaged over networks, or None where unknown.
        settings: how the scores were made: networks, epochs and so on; empty where unknown.
    """

    scores: Tensor
    order: list[Tensor]
    method: str
    fingerprint: str = ""
    variance: Tensor | None = None
    forgetting: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Difficulty({self.method}, {len(self.scores):,} images, {len(self.order)} classes)"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write scores and order atomically: safetensors, or for a name ending in `.pt` the reference's index table.

        Raises:
            StoreError: a `.pt` table needs classes of equal size.
        """
        if Path(path).suffix == ".pt":
            if len({len(indices) for indices in self.order}) != 1:
                sizes = sorted({len(indices) for indices in self.order})
                raise StoreError(
                    f"the reference's .pt table is rectangular, but class sizes are {sizes}; save as .safetensors"
                )
            return files.write_torch(path, torch.stack(self.order))
        tensors = {
            "scores": self.scores.cpu().contiguous(),
            "order": torch.cat(self.order),
            "class_sizes": torch.tensor([len(indices) for indices in self.order]),
        }
        for name in ("variance", "forgetting"):
            if (values := getattr(self, name)) is not None:
                tensors[name] = values
        described = {
            "format": _FORMAT,
            "method": self.method,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
        }
        return files.write_bytes(path, tensor_files.pack_tensors(tensors, described))

    @classmethod
    def load(cls, path: str | os.PathLike[str], data: ImageDataset | None = None) -> Difficulty:
        """Read a file of ours, or an order table as other programs save it (`.pt`, `.npy`).

        A table holds dataset indices, easy to hard: `[classes, n_c]` as the reference's, a list with a row for each
        class, or one row `[N]` of all images, which the labels of `data` divide.

        Args:
            data: what the order must belong to, see :meth:`require`.

        Raises:
            StoreError: missing, truncated or foreign file, one of another format, a table that is not an order of a
                data set, or one of other data.
        """
        path = Path(path)
        if path.suffix in SUFFIXES:
            found = cls._from_table(read_order_table(path, data), path)
        else:
            found = cls._from_ours(path)
        if data is not None:
            found.require(data)
        return found

    @classmethod
    def _from_ours(cls, path: Path) -> Difficulty:
        theirs = f"order tables of other programs are read from {' and '.join(SUFFIXES)} files"
        way_out = "delete it and compute the scores again" if path.suffix == ".safetensors" else theirs
        with tensor_files.read_tensors(path, "difficulty scores", _FORMAT, way_out=way_out) as (tensors, described):
            order = list(tensors["order"].split(tensors["class_sizes"].tolist()))
            scores, method, fingerprint = tensors["scores"], described["method"], described["fingerprint"]
        require_permutation(order, path)
        more = {name: tensors.get(name) for name in ("variance", "forgetting")}
        return cls(scores, order, method, fingerprint, **more, settings=described.get("settings", {}))

    @classmethod
    def _from_table(cls, order: list[Tensor], path: Path) -> Difficulty:
        scores = torch.empty(require_permutation(order, path))
        for row in order:
            scores[row] = torch.arange(len(row), dtype=torch.float32) / len(row)
        return cls(scores, order, "order")

    def require(self, data: ImageDataset) -> None:
        """Check that this order belongs to `data`.

        Raises:
            StoreError: other images, other labels, or an index filed under a class it does not belong to.
        """
        if self.fingerprint and self.fingerprint != data.fingerprint:
            raise StoreError("these difficulty scores were computed on another data set (fingerprints differ)")
        if len(self.order) != data.classes or len(self.scores) != len(data.train_labels):
            raise StoreError(
                f"the order covers {len(self.scores)} images in {len(self.order)} classes, but {data.name} has "
                f"{len(data.train_labels)} in {data.classes}"
            )
        for label, indices in enumerate(self.order):
            if not bool((data.train_labels[indices] == label).all()):
                raise StoreError(f"the order lists images of other classes under class {label} of {data.name}")
