"""Expert snapshots where they are needed."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from ..device import free_bytes
from .store import ExpertStore

# Of the memory that is free when the first snapshot is asked for.
_SHARE = 8


class Snapshots:
    """Snapshots of a store on a device.

    On a GPU they come through pinned memory, so that nobody waits for the copy, and those used last stay there as long
    as they fit into an eighth of the memory that was free at the start.

    Args:
        store: where they are.
        device: where they go.
        limit: bytes to keep on a GPU; an eighth of its free memory when None.
    """

    def __init__(self, store: ExpertStore, device: torch.device, *, limit: int | None = None) -> None:
        self.store, self.device, self.limit = store, device, limit
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def get(self, expert: int, epoch: int) -> Tensor:
        """Weights `[P]` float32; not to be written to.

        Raises:
            StoreError: no such expert or epoch.
        """
        if self.device.type == "cpu":
            return self.store.snapshot(expert, epoch)
        key = expert, epoch
        if key not in self._kept:
            self._kept[key] = self._copy(self.store.snapshot(expert, epoch))
            self._shrink()
        self._kept.move_to_end(key)
        return self._kept[key]

    def _copy(self, snapshot: Tensor) -> Tensor:
        return snapshot.pin_memory().to(self.device, non_blocking=True)

    def _shrink(self) -> None:
        if self.limit is None:
            self.limit = free_bytes(self.device) // _SHARE
        size = 4 * self.store.parameter_count
        while len(self._kept) > max(1, self.limit // size):
            self._kept.popitem(last=False)
