"""Kernels that stages need, found without a GPU.

The engine's host code runs on CPU tensors, and Triton is asked for each launch what it would compile: its own launcher
binds and specialises the arguments, for a card that stands in; only the compiler behind it is replaced by one that
takes down what it was asked for. Compiling that ends under the very key under which a launch looks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu_cases import EPOCHS, TINY, TINY_EPOCHS, UNROLLS, VARIANTS, UnrollCase
from benchmarks.gpu_epochs import Epochs
from benchmarks.gpu_timing import Device, environment
from benchmarks.gpu_unroll import Unroll
from pad_fast.engines import registry
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.errors import BackendError
from pad_fast.kernels.launch import interpreted
from pad_fast.verification.families import LARGE, SMALL, families

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """One kernel with one set of types, constants, alignments and options; as many programs as there are keys."""

    key: str
    source: Any
    target: Any
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.source.name)

    def cached(self) -> bool:
        """Whether Triton's cache has it."""
        from triton.runtime.cache import get_cache_manager

        digest = hashlib.sha256(self.key.encode("utf-8")).hexdigest()
        name = f"{self.name[:150]}.json"
        return name in (get_cache_manager(digest).get_group(name) or {})

    def compile(self) -> Any:
        """Triton's compiled kernel, from the cache where that has it."""
        import triton

        return triton.compile(self.source, target=self.target, options=self.options)


class Card:
    """Stands in for a card: what Triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        """As the CUDA driver's."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Twice:
    """A recorder that does the work again, as a recording does while it is made."""

    def __init__(self, device: torch.device) -> None:
        pass

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        return (lambda: None), work()


_found: dict[str, Variant] = {}


class _Idle:
    """A compiled kernel that does nothing when it is launched, but is noted."""

    function = packed_metadata = None

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def launch_metadata(self, *args: Any) -> None:
        """Nothing to hand to hooks."""

    def run(self, *args: Any) -> None:
        """What Triton calls to launch."""
        _found.setdefault(self.variant.key, self.variant)


def _idle(source: Any, *, target: Any, options: dict[str, Any], **_: Any) -> _Idle:
    """Instead of Triton's compiler."""
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.compiler import make_backend
    from triton.runtime.cache import get_cache_key

    backend = make_backend(target)
    parsed = backend.parse_options(dict(options, **source.parse_options()))
    key = get_cache_key(source, backend, parsed, env_vars=get_cache_invalidating_env_vars())
    return _Idle(Variant(key, source, target, options))


def launched() -> dict[str, Variant]:
    """What has been launched so far, to be read or emptied inside of :func:`taken_down`."""
    return _found


@contextmanager
def taken_down(capability: int) -> Iterator[dict[str, Variant]]:
    """Inside of the block, kernels launched on CPU tensors are not run but noted; for a process that runs none.

    Raises:
        BackendError: this process interprets kernels.
    """
    if interpreted():
        raise BackendError("this process interprets kernels; start another without TRITON_INTERPRET")
    import triton

    triton.runtime.driver.set_active(Card(capability))
    # A kernel keeps the compiler that it finds at its first launch, and what that made: it stays where it is.
    triton.compiler.compile = _idle
    engine, registry._engines["triton"] = registry._engines["triton"], TritonEngine(Operations(), recorder=Twice)
    _found.clear()
    found: dict[str, Variant] = {}
    try:
        yield found
    finally:
        found.update(_found)
        registry._engines["triton"] = engine


def smoke(*, tiny: bool) -> None:
    """Every launch of `pad_fast.verification`."""
    for family in families(CPU, SMALL if tiny else LARGE):
        for dtype, precision in ((torch.float64, "auto"), (torch.float32, "ieee"), (torch.float32, "auto")):
            family.compute("triton", dtype, precision)


def headline(*, tiny: bool) -> None:
    """Ours of every case as it is timed and as it is checked."""
    for case in (TINY if tiny else UNROLLS).values():
        _unroll(case, "ours")


def variants(*, tiny: bool) -> None:
    """The same in other ways."""
    for case in (TINY if tiny else UNROLLS).values():
        for name in case.more:
            _unroll(case, name)


def _unroll(case: UnrollCase, name: str) -> None:
    problem, how = Unroll(case, Device("cpu"), "triton"), VARIANTS[name]
    # Of the number of steps, kernels see by which powers of two it can be divided.
    steps = max(2, math.gcd(case.steps, 16))
    with environment({} if how.graphs else {"PAD_FAST_GRAPHS": "0"}):
        problem.ours(how, steps)
        problem.ours(how, steps)  # recorded
        problem.ours(how, min(2, case.steps), augmented=False, precision="ieee")


def training(*, tiny: bool) -> None:
    """Every step of the epochs, one by one and together."""
    for case in (TINY_EPOCHS if tiny else EPOCHS).values():
        problem = Epochs(replace(case, epochs=1), Device("cpu"), "triton")
        for together in sorted({1, case.networks}):
            problem.ours(together)
            problem.ours(together, "ieee")


def matching(*, tiny: bool) -> None:
    """The distance and its gradients."""
    from pad_fast.kernels import matching as kernels

    count = 320_010
    for trajectories in (1,) if tiny else (1, 8):
        end, start, target = (torch.empty(trajectories, count) for _ in range(3))
        grad = torch.ones(trajectories)
        for kept, dropped in ((count // 2, 0), (0, count // 2)):
            kernels.distance(end, start, target, first_kept=kept, dropped=dropped)
            kernels.distance_gradients(end, start, target, grad, first_kept=kept, dropped=dropped)


STAGES: dict[str, Callable[..., None]] = {
    "smoke": smoke,
    "headline": headline,
    "training": training,
    "matching": matching,
    "variants": variants,
}


def of_stage(name: str, capability: int, *, tiny: bool) -> dict[str, Variant]:
    """The variants that a stage of :data:`STAGES` compiles."""
    with taken_down(capability) as found, environment({"PAD_FAST_CONV": "triton"}):
        STAGES[name](tiny=tiny)
    return found
