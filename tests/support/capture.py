"""The capture of a CUDA graph on the CPU: what a graph would record is done once, under the rules of a capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .launches import Forbidden, Launch, Launches

# Values come to the host, which waits for the device.
_READING = tuple("item tolist numpy cpu equal allclose __array__ __bool__ __int__ __float__ __contains__".split())
# Numbers of the host become a tensor, whose way to the device is a copy from memory that is not pinned.
_FROM_HOST = tuple("tensor as_tensor asarray from_numpy frombuffer new_tensor".split())
_PINNING = ("pin_memory", "is_pinned")
_FACTORIES = tuple("empty zeros ones full arange linspace eye rand randn randint randperm empty_strided".split())
# Operators whose results' sizes are values, or that are nothing but a value.
_DEPENDING = tuple("_local_scalar_dense nonzero masked_select unique_dim _unique _unique2 bincount".split())


class Captures:
    """A recorder that notes what each capture launches, see :class:`pad_fast.engines.triton.graphs.Recorder`.

    Replays do nothing: every kernel left out, there is nothing to be seen of them.

    Attributes:
        made: the launches of each capture.
        replays: how often a capture was replayed.
    """

    def __init__(self, launches: Launches) -> None:
        self.launches = launches
        self.made: list[list[Launch]] = []
        self.replays = 0

    def __call__(self, device: torch.device) -> Captures:
        return self

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with self.launches.since() as found, capturing(self.launches):
            result = work()
        self.made.append(found)
        return self._replay, result

    def _replay(self) -> None:
        self.replays += 1

    def unrehearsed(self) -> list[list[Launch]]:
        """The captures that do not launch, in order and on the same grids, what was launched plainly before."""
        return [capture for capture in self.made if not _contains(self.launches.plain, capture)]


def _contains(launches: list[Launch], part: list[Launch]) -> bool:
    """Whether one list stands in the other, without a gap."""
    return any(launches[start : start + len(part)] == part for start in range(len(launches) - len(part) + 1))


@contextmanager
def capturing(launches: Launches) -> Iterator[None]:
    """Between begin and end of a capture; raises :class:`Forbidden` at what CUDA, or a first run, would not survive."""
    with pytest.MonkeyPatch.context() as patch, _Operators(), _Functions():
        for place, name in (
            (torch.cuda, "synchronize"),
            (torch.cuda, "empty_cache"),
            (torch.cuda.Stream, "synchronize"),
            (torch.cuda.Event, "synchronize"),
        ):
            patch.setattr(place, name, _waiting)
        patch.setattr(launches, "capturing", True)
        yield


def _waiting(*_: Any, **__: Any) -> None:
    raise Forbidden("waits for the device")


class _Functions(TorchFunctionMode):
    """Functions of torch as Python calls them; some never become an operator on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in _READING:
            raise Forbidden(f"reads a value: {name}")
        if name in _FROM_HOST:
            raise Forbidden(f"makes a tensor of numbers on the host: {name}")
        if name in _PINNING:
            raise Forbidden(f"pins memory: {name}")
        if name in _FACTORIES and kwargs.get("device") is None:
            raise Forbidden(f"makes a tensor on the host: {name} without a device")
        if name in ("__getitem__", "__setitem__"):
            _check_index(args[1])
        if name == "to" and any(str(value) == "cpu" for value in (*args[1:], *kwargs.values()) if type(value) is str):
            raise Forbidden("reads a value: to('cpu')")
        return function(*args, **kwargs)


def _check_index(index: Any) -> None:
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, (list, range)):
            raise Forbidden("makes a tensor of numbers on the host: a list as an index")
        if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8):
            raise Forbidden("reads a value: a mask as an index")
        if isinstance(part, Tensor) and part.dim() == 0:
            raise Forbidden("reads a value: a tensor as a number in an index")


class _Operators(TorchDispatchMode):
    """Operators as they come, from Python or from inside torch."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in _DEPENDING or (name, function._overloadname) == ("repeat_interleave", "Tensor"):
            raise Forbidden(f"reads a value: {name}")
        if name in ("lift_fresh", "_pin_memory"):
            raise Forbidden(f"makes a tensor of numbers on the host: {name}")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            _check_index(tuple(part for part in args[1] if part is not None and part.dim() > 0))
        return function(*args, **(kwargs or {}))
