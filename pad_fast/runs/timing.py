"""Costs of the stages of a run: time and peak memory, in `timing.json` from the first stage on."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..errors import StoreError
from ..runtime import distributed, files
from ..runtime.environment import environment

TIMING = "timing.json"


@dataclass(frozen=True)
class StageCost:
    """One stage.

    Attributes:
        seconds: None while it runs.
        peak_mib: most memory the process held during the stage, MiB, Python and torch included; None while it runs.
            Where the system cannot say it for a stage (`per_stage` false), the most since the process began.
        per_stage: whether `peak_mib` is of this stage alone.
        peak_gpu_mib: most memory torch held on the GPU, MiB; None without one.
        reused: the stage was taken from the cache; the numbers are of the run that computed it, where they are known.
        resumed: the stage went on from a checkpoint; the numbers are of the last part.
    """

    seconds: float | None = None
    peak_mib: float | None = None
    per_stage: bool = True
    peak_gpu_mib: float | None = None
    reused: bool = False
    resumed: bool = False


@dataclass(frozen=True)
class Timing:
    """The content of `timing.json`.

    Attributes:
        environment: versions and machine, see :func:`pad_fast.environment.environment`.
        stages: in the order they ran.
        finished: the run got to its end.
    """

    environment: Mapping[str, Any]
    stages: Mapping[str, StageCost]
    finished: bool


class StageLog:
    """Measures stages one after the other and keeps `timing.json` up to date.

    The first stage writes when it has succeeded, so that a run that is refused leaves its folder alone.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.path, self.device = folder / TIMING, device
        self.stages: dict[str, StageCost] = {}
        self._earlier: Mapping[str, StageCost] = {}
        self._marks: dict[str, bool] = {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions and machine."""
        return environment()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside; a stage that raises stays without an end."""
        if self.stages:
            self.stages[name] = StageCost()
            self._write()
        else:
            self._earlier = _earlier(self.path)
        self._marks = {}
        per_stage = _reset_peak(self.device)
        start = time.perf_counter()
        yield
        cost = StageCost(
            seconds=round(time.perf_counter() - start, 3),
            peak_mib=round(_peak_mib(per_stage), 1),
            per_stage=per_stage,
            peak_gpu_mib=_peak_gpu_mib(self.device),
            **self._marks,
        )
        before = self._earlier.get(name)
        if cost.reused and before is not None and before.seconds is not None:
            cost = replace(before, reused=True)
        self.stages[name] = cost
        self._write()

    def reused(self) -> None:
        """The stage under way takes its result from the cache."""
        self._marks["reused"] = True

    def resumed(self) -> None:
        """The stage under way goes on from a checkpoint."""
        self._marks["resumed"] = True

    def finish(self) -> None:
        """The run is complete."""
        self._write(finished=True)

    def _write(self, *, finished: bool = False) -> None:
        if not distributed.group().main:
            return
        stages = {name: asdict(cost) for name, cost in self.stages.items()}
        files.write_json(self.path, {"environment": self.environment, "finished": finished, "stages": stages})


def read_timing(folder: Path) -> Timing:
    """Read `folder/timing.json`.

    Raises:
        StoreError: missing, truncated or foreign.
    """
    stored = files.read_json(folder / TIMING, "stage costs")
    with files.reading(folder / TIMING, "stage costs"):
        stages = {str(name): StageCost(**cost) for name, cost in stored["stages"].items()}
        return Timing(dict(stored["environment"]), stages, bool(stored["finished"]))


def peak_memory(device: torch.device) -> tuple[float, float | None]:
    """Most memory the process has held since it began, and torch on a GPU, MiB; the latter None without one."""
    return _peak_mib(per_stage=False), _peak_gpu_mib(device)


def _earlier(path: Path) -> Mapping[str, StageCost]:
    try:
        return read_timing(path.parent).stages
    except StoreError:
        return {}


def _reset_peak(device: torch.device) -> bool:
    """Begin a new measurement of peak memory; False where the process's can only be had since its beginning."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_mib(per_stage: bool) -> float:
    if per_stage:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _peak_gpu_mib(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None
