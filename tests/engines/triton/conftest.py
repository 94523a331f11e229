"""The engine under test, with naive twins."""

from __future__ import annotations

import pytest

from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations

from ...support.triton import Emulated, register


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """Registered as "triton" for this test; nothing is recorded."""
    return register(monkeypatch, TritonEngine(Operations(naive=True)))


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """The same with emulated graphs."""
    return register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Emulated))
