"""The engine under test, and plain float32 for what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pad_fast.engines import registry
from pad_fast.engines.triton.engine import TritonEngine


@pytest.fixture(autouse=True)
def _plain_float32() -> Iterator[None]:
    """The oracle computes in float32 where the engine is compared with it in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """A fresh engine under its name, without the recordings of other tests."""
    fresh = TritonEngine()
    monkeypatch.setitem(registry._engines, "triton", fresh)
    return fresh
