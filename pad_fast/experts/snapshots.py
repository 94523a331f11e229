"""Expert snapshots where they are needed, read before they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ..runtime.device import free_bytes
from .store import ExpertStore

# Of the memory that is free when the first snapshot is asked for.
_SHARE = 8


class Snapshots:
    """Snapshots of a store on a device.

    A thread reads what :meth:`prefetch` announces. On a GPU it reads into pinned memory, so that nobody waits for the
    copy, and the snapshots used last stay there as long as they fit into an eighth of the memory that was free at the
    start. On a CPU nothing is kept: memory holds what was announced last, however large the store is.

    Args:
        store: where they are.
        device: where they go.
        limit: bytes to keep on a GPU; an eighth of its free memory when None.
    """

    def __init__(self, store: ExpertStore, device: torch.device, *, limit: int | None = None) -> None:
        self.store, self.device, self.limit = store, device, limit
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._coming: dict[tuple[int, int], Future[Tensor]] = {}
        self._reader: ThreadPoolExecutor | None = None

    def prefetch(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Begin to read these (expert, epoch), in this order, and drop what was announced before and is not among them.

        Problems show when a snapshot is asked for.
        """
        if self._reader is None:  # one thread: a disk serves one reader best, and the order is kept
            self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pad_fast snapshots")
        for key in [key for key in self._coming if key not in wanted]:
            self._coming.pop(key).cancel()
        for key in wanted:
            if key not in self._coming and key not in self._kept:
                self._coming[key] = self._reader.submit(self._read, *key)

    def get(self, expert: int, epoch: int) -> Tensor:
        """Weights `[P]` float32; not to be written to.

        Raises:
            StoreError: no such expert or epoch, or the file is damaged.
        """
        key = expert, epoch
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        coming = self._coming.get(key)
        snapshot = self._read(expert, epoch) if coming is None else coming.result()
        if self.device.type == "cpu":
            return snapshot
        self._kept[key] = self._copy(snapshot)
        self._shrink()
        return self._kept[key]

    def _read(self, expert: int, epoch: int) -> Tensor:
        return self.store.snapshot(expert, epoch, out=self._buffer())

    def _buffer(self) -> Tensor:
        # torch reuses pinned blocks once the copies from them are done.
        return torch.empty(self.store.parameter_count, pin_memory=self.device.type == "cuda")

    def _copy(self, snapshot: Tensor) -> Tensor:
        return snapshot.to(self.device, non_blocking=True)

    def _shrink(self) -> None:
        if self.limit is None:
            self.limit = free_bytes(self.device) // _SHARE
        size = 4 * self.store.parameter_count
        while len(self._kept) > max(1, self.limit // size):
            self._kept.popitem(last=False)
