"""Launches of Triton kernels, bound by Triton's own specialisation and written down instead of run.

What a GPU would compile is decided by the host: types, alignments, the integers that are 1 and the constants of a
launch. All of that is there without a GPU, so host code runs on CPU tensors while a driver that stands in for an H100's
and Triton's hook in front of its compiler write down each launch. What kernels would have written stays unwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks.gpu_check.variants import Card
from pad_fast.kernels import calls


class Forbidden(AssertionError):
    """Something that must not happen while a CUDA graph is captured. No RuntimeError, which engines make do with."""


@dataclass(frozen=True)
class Program:
    """What is compiled once: a kernel with Triton's key of a launch, and the same in words."""

    kernel: str
    key: str
    words: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.kernel}({self.words})"


@dataclass(frozen=True)
class Launch:
    """A program on a grid."""

    program: Program
    grid: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.program} on {self.grid}"


class Launches:
    """Every launch since the beginning, in order.

    Attributes:
        made: the launches.
        plain: those that were made while nothing was captured.
        asked: what Triton would have had its compiler do for each program.
        capturing: whether a graph is being captured, which must not compile anything.
        before: called with each launch and its tensors in front of it; may raise what a GPU would.
    """

    def __init__(self) -> None:
        self.made: list[Launch] = []
        self.plain: list[Launch] = []
        self.asked: dict[Program, Mapping[str, Any]] = {}
        self.capturing = False
        self.before: Callable[[Launch, tuple[Any, ...]], None] = lambda launch, args: None
        self._compiled: set[Program] = set()
        self._known: dict[tuple[str, str], Program] = {}
        self._program: Program | None = None

    @property
    def programs(self) -> set[Program]:
        """Without grids."""
        return {launch.program for launch in self.made}

    def bind(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> Launch:
        """The launch that `kernel[grid](*args, **options)` is, by Triton's own code."""
        self._program = None
        jitted(kernel)[grid](*args, **options)
        assert self._program is not None, f"Triton did not ask to compile {kernel}"
        return Launch(self._program, tuple(grid))

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        """Write it down."""
        launch = self.bind(kernel, grid, *args, **options)
        self.before(launch, args)
        if self.capturing and launch.program not in self._compiled:
            raise Forbidden(f"compiled while a graph is captured: {launch.program}\n{self._nearest(launch.program)}")
        self._compiled.add(launch.program)
        self.made.append(launch)
        if not self.capturing:
            self.plain.append(launch)

    @contextmanager
    def since(self) -> Iterator[list[Launch]]:
        """The launches made inside the block."""
        found: list[Launch] = []
        start = len(self.made)
        try:
            yield found
        finally:
            found += self.made[start:]

    def _nearest(self, program: Program) -> str:
        known = [other for other in self._compiled if other.kernel == program.kernel]
        return "known:" + "".join(f"\n  {other}" for other in sorted(known, key=str))

    def _asked_to_compile(self, *, key: str, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:
        kernel = f"{fn.module.removeprefix('pad_fast.kernels.')}.{fn.name}"
        if (kernel, key) not in self._known:
            self._known[kernel, key] = Program(kernel, key, _words(compile))
            self.asked[self._known[kernel, key]] = compile
        self._program = self._known[kernel, key]
        return True  # there is nothing to compile any more


@cache
def jitted(kernel: Any) -> JITFunction[Any]:
    """The kernel as it is launched on a GPU, whatever it is in this process; compiled by nobody else."""
    if isinstance(kernel, JITFunction):
        names = ("do_not_specialize", "do_not_specialize_on_alignment")
        return JITFunction(kernel.fn, **{name: getattr(kernel, name) for name in names})
    return JITFunction(kernel.fn, **kernel.kwargs)


@contextmanager
def launches_written_down() -> Iterator[Launches]:
    """Inside, no kernel of pad_fast runs."""
    found, real = Launches(), calls.launch

    def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        real(_Bound(kernel, found), grid, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "launch", launch)
        patch.setattr(driver, "_active", Card(90))
        patch.setattr(knobs.runtime, "jit_cache_hook", found._asked_to_compile)
        yield found


class _Bound:
    """A kernel that the library launches."""

    def __init__(self, kernel: Any, launches: Launches) -> None:
        self.kernel, self.launches, self.__name__ = kernel, launches, kernel.__name__

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.launches.launch(self.kernel, grid, *args, **options)


def _words(compile: Mapping[str, Any]) -> str:
    """Arguments with their types, `/16` behind what is a multiple of it, and the values that are compiled in."""
    (attributes,) = compile["configs"]
    words = []
    for place, (name, kind) in enumerate(compile["signature"].items()):
        if kind == "constexpr":
            words.append(f"{name}={compile['constants'][place,]}")
        else:
            words.append(f"{name}: {kind}{' /16' if attributes.get((place,)) else ''}")
    return ", ".join([*words, *(f"{name} {compile[name]}" for name in ("num_warps", "num_stages"))])
