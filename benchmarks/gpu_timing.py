"""What `benchmarks.gpu` times: rivals, the clock and memory of a device, and the settings that rivals run under."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import harness
from pad_fast.engines import Task, registry
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.runtime.device import resolve_device


class NeedsCudaError(Exception):
    """A rival that no CPU can stand in for."""


@dataclass(frozen=True)
class AsTimed:
    """How far what was timed is from the truth, which is the same problem in full float32.

    Attributes:
        error: relative L2, the worst of what is computed.
        tolerance: what it may be; None for the yardstick, whose error is only shown.
        plain: the same error of the yardstick in the same precision, None where it does not fit into memory.
        how: what was compared.
    """

    error: float
    tolerance: float | None
    plain: float | None
    how: str


class Rival:
    """Something that is timed.

    Args:
        within: what it is run in: environment, torch's settings.

    Attributes:
        check: its relative error in full float32, None for the yardstick itself.
        timed: its error as it is timed.
        skipped: why it is not run.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], Any],
        *,
        steps: int,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.name, self.run, self.steps, self.within = name, run, steps, within
        self.check: float | None = None
        self.timed: AsTimed | None = None
        self.milliseconds: list[float] = []
        self.peak = 0
        self.out_of_memory = False
        self.skipped = ""

    @property
    def runs(self) -> bool:
        """Whether it can be timed, as far as is known."""
        return not (self.out_of_memory or self.skipped)

    def row(self) -> dict[str, Any]:
        described: dict[str, Any] = {"rival": self.name, "steps": self.steps, "error": self.check}
        if self.skipped:
            return {**described, "status": f"skipped: {self.skipped}"}
        if self.out_of_memory:
            return {**described, "status": "out of memory"}
        if not self.milliseconds:
            return {**described, "status": "not run"}
        described["ms"] = harness.summary(self.milliseconds)
        described["ms_per_step"] = described["ms"]["median"] / self.steps
        if self.timed is not None:
            described["as_timed"] = vars(self.timed)
        return {**described, "status": "ok", "peak_mib": self.peak / 2**20}


class Device:
    """Clock and memory of a device."""

    def __init__(self, name: str) -> None:
        self.device = resolve_device(name)
        self.cuda = self.device.type == "cuda"

    def time(self, run: Callable[[], Any]) -> float:
        """Milliseconds from the first to the last thing the device does."""
        if not self.cuda:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def clean(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes reserved at most since :meth:`clean`: what graphs hold for themselves is in it."""
        return torch.cuda.max_memory_reserved() if self.cuda else 0

    def reserved(self) -> int:
        return torch.cuda.memory_reserved() if self.cuda else 0


@contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Environment variables for the duration of a block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def torch_settings(precision: str, *, benchmark: bool = False) -> Iterator[None]:
    """Convolutions and matrix products of torch with TF32, or without for "ieee", for the duration of a block.

    Args:
        benchmark: cuDNN tries its algorithms for every new shape.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = precision != "ieee"
    cudnn.benchmark = benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def triton_engine() -> TritonEngine:
    """Ours, as `backend="triton"` finds it."""
    engine = registry._engines["triton"]
    assert isinstance(engine, TritonEngine)
    return engine


def recorded() -> int:
    """CUDA graphs of ours that were recorded so far."""
    return triton_engine().graphs.recorded


def replays() -> int:
    """Unrolled runs whose forward pass was replayed so far, by recordings that are there with both their passes."""
    runs = triton_engine().graphs._runs.values()
    return sum(recording.runs for known in runs for recording in known.free if recording._reverse is not None)


def replayed(run: Callable[[], Any], backend: str, task: Task) -> Any:
    """What an unrolled run on that engine gives, which must be replayed where it records.

    Raises:
        SystemExit: it was recorded, or started kernel by kernel.
    """
    before = recorded(), replays()
    result = run()
    if backend == "triton" and triton_engine()._records(task) and (recorded(), replays()) != (before[0], before[1] + 1):
        raise SystemExit("the run that was checked is no replay of the recordings that were timed")
    return result
