"""The engine under test, with naive twins or with kernels that are written down instead of run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations

from ...support.triton import Emulated, register

if TYPE_CHECKING:
    from ...support.capture import Captures
    from ...support.launches import Launches


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """Registered as "triton" for this test; nothing is recorded."""
    return register(monkeypatch, TritonEngine(Operations(naive=True)))


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """The same with emulated graphs."""
    return register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Emulated))


@pytest.fixture
def launches() -> Iterator[Launches]:
    """Every launch of a kernel, which does not run."""
    pytest.importorskip("triton", reason="launches are bound by Triton")
    from ...support.launches import launches_written_down

    with launches_written_down() as found:
        yield found


@pytest.fixture
def captures(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> Captures:
    """What the engine registered as "triton" records, its kernels written down as `launches`."""
    from ...support.capture import Captures

    found = Captures(launches)
    register(monkeypatch, TritonEngine(Operations(), recorder=found))
    return found
