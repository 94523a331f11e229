"""Devices by name: a GPU always has its number, since `cuda` and `cuda:0` are not equal to torch."""

from __future__ import annotations

import pytest
import torch

from pad_fast.errors import InputError
from pad_fast.runtime import device as module
from pad_fast.runtime.device import resolve_device


class Group:
    def __init__(self, size: int = 1, local_rank: int = 0) -> None:
        self.size, self.local_rank = size, local_rank


@pytest.fixture
def cards(monkeypatch):
    """Two GPUs, the second of which is torch's current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.parametrize(
    ("given", "index"), [("auto", 1), ("cuda", 1), ("cuda:0", 0), ("cuda:1", 1), (torch.device("cuda"), 1)]
)
def test_a_gpu_has_its_number(cards, given, index):
    resolved = resolve_device(given)
    assert resolved == torch.device("cuda", index) and resolved.index == index
    assert resolve_device(str(resolved)) == resolved == resolve_device(resolved)


def test_a_rank_takes_its_own_and_no_other(cards, monkeypatch):
    monkeypatch.setattr(module.distributed, "group", lambda: Group(2, 1))
    for given in ("auto", "cuda", "cuda:1"):
        assert resolve_device(given) == torch.device("cuda:1")
    with pytest.raises(InputError, match="every process takes a GPU of its own"):
        resolve_device("cuda:0")
    monkeypatch.setattr(module.distributed, "group", lambda: Group(3, 2))
    with pytest.raises(InputError, match="--nproc-per-node 2"):
        resolve_device("cuda")


def test_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert resolve_device("auto") == torch.device("cpu") == resolve_device(torch.device("cpu"))
