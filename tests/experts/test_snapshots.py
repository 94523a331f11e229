"""Snapshots are read ahead by another thread, once each, without the store filling the memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from pad_fast import ExpertStore
from pad_fast.errors import StoreError
from pad_fast.experts.snapshots import Snapshots

from ..support.experts import expert, make


def test_what_was_announced_is_read_by_another_thread_and_nothing_twice(tmp_path, monkeypatch):
    store = make(tmp_path)
    reads = []
    original = ExpertStore.snapshot

    def recorded(self, number, epoch, **rest):
        reads.append((number, epoch, threading.current_thread().name.startswith("pad_fast snapshots")))
        return original(self, number, epoch, **rest)

    monkeypatch.setattr(ExpertStore, "snapshot", recorded)
    snapshots = Snapshots(store, torch.device("cpu"))
    snapshots.prefetch([(0, 1), (0, 3), (2, 1)])
    assert torch.equal(snapshots.get(0, 3), expert(0)[3]) and torch.equal(snapshots.get(0, 1), expert(0)[1])
    snapshots.prefetch([(2, 1), (1, 0)])
    assert torch.equal(snapshots.get(2, 1), expert(2)[1]) and torch.equal(snapshots.get(1, 0), expert(1)[0])
    assert torch.equal(snapshots.get(1, 2), expert(1)[2]), "not announced"
    assert reads == [(0, 1, True), (0, 3, True), (2, 1, True), (1, 0, True), (1, 2, False)]


def test_damage_shows_where_the_snapshot_is_asked_for(tmp_path):
    store = make(tmp_path)
    os.truncate(tmp_path / "expert_00001.safetensors", 50)
    snapshots = Snapshots(store, torch.device("cpu"))
    snapshots.prefetch([(0, 0), (1, 1), (2, 2)])
    assert torch.equal(snapshots.get(0, 0), expert(0)[0])
    with pytest.raises(StoreError, match=r"expert_00001.*shorter"):
        snapshots.get(1, 1)
    assert torch.equal(snapshots.get(2, 2), expert(2)[2])


MEMORY = """
import sys, torch
from pad_fast import ExpertStore
from pad_fast.experts.snapshots import Snapshots

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

store = ExpertStore.open(sys.argv[1])
snapshots = Snapshots(store, torch.device("cpu"))
wanted = [(expert, epoch) for expert in range(len(store)) for epoch in range(4)]
def use(keys):
    for first in range(0, len(keys), 2):
        snapshots.prefetch(keys[first : first + 6])
        for key in keys[first : first + 2]:
            assert float(snapshots.get(*key).sum()) != 0
use(wanted[:8])
before = resident()
use(wanted)
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident size from /proc")
def test_memory_does_not_grow_with_the_store(tmp_path):
    """48 snapshots of 4 MB: after all of them were used, memory is what it was after the first."""
    size = 1_000_000
    store = ExpertStore.create(tmp_path, parameter_count=size, epochs=3, metadata={})
    for number in range(12):
        store.append(torch.full((4, size), 1.0 + number))
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 90 * 1024, "KiB; the store holds 187 MiB, six snapshots (23 MiB) are read ahead"
