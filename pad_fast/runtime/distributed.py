"""The processes of one run: who they are, what they wait for, and what they add up.

`torchrun` starts one command many times, on one machine or several, and tells every process its rank. :func:`join`
makes them one group (NCCL between GPUs, gloo between CPUs and for everything that is not a tensor on a GPU);
:func:`group` is that group, wherever somebody needs to know. A process on its own is a group of one, whose operations
do nothing.

What holds for every group: all ranks go through the same operations in the same order, rank 0 alone writes what a run
leaves behind (experts and score networks are written by whoever trained them), and a rank that ends takes the others
with it: they raise :class:`RankLost`, at once where the connection breaks, otherwise after a time limit.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from ..errors import RankError, RankLost
from . import files
from .variables import seconds_from

Item = TypeVar("Item")

ANSWER_SECONDS = 600
"""Seconds a rank waits for the others inside a computation; `PAD_FAST_ANSWER_SECONDS` overrides it."""

WORK_SECONDS = 24 * 3600
"""Seconds it waits for others that train networks of their own; `PAD_FAST_WORK_SECONDS` overrides it.

A process that dies is noticed at once either way. This is for one that hangs, or whose machine is gone.
"""


@dataclass(frozen=True)
class Group:
    """Processes that work on one run. The default is a process on its own.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        local_rank: among those on this machine; the number of its GPU.

    Example:
        >>> alone = Group()
        >>> alone.main, list(alone.turns(["a", "b"])), alone.part(7)
        (True, ['a', 'b'], range(0, 7))
        >>> [list(Group(rank, 3).part(7)) for rank in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """A consecutive share of `count` things for each rank; they differ by one at most, and may be empty."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def turns(self, items: Sequence[Item]) -> Sequence[Item]:
        """The share of this rank when `items` are dealt out one by one."""
        return items[self.rank :: self.size]

    def sum_(self, *tensors: Tensor | None) -> None:
        """Replace every tensor by its sum over the ranks, in place: the same bits on every rank.

        They travel together, as one vector. None is left out; all ranks leave out the same.
        """
        given = [tensor for tensor in tensors if tensor is not None]
        if self.size == 1 or not given:
            return
        flat = given[0] if len(given) == 1 and given[0].is_contiguous() else torch.cat([t.reshape(-1) for t in given])
        with self._speaking("adding up"):
            torch.distributed.all_reduce(flat)
        if flat is not given[0]:
            for tensor, piece in zip(given, flat.split([t.numel() for t in given]), strict=True):
                tensor.copy_(piece.view_as(tensor))

    def joined(self, own: Tensor, count: int) -> Tensor:
        """All ranks' values `[count]`, of which `own` are those of :meth:`part`."""
        if self.size == 1:
            return own
        values = own.new_zeros(count)
        values[self.part(count).start : self.part(count).stop] = own
        self.sum_(values)
        return values

    def broadcast_(self, *tensors: Tensor) -> None:
        """Replace every tensor by rank 0's, in place."""
        for tensor in tensors if self.size > 1 else ():
            sent = tensor.contiguous()
            with self._speaking("taking over what rank 0 has"):
                torch.distributed.broadcast(sent, 0)
            tensor.copy_(sent)

    def wait(self, what: str) -> None:
        """Wait until every rank is here; they may be busy for long. `what` ends "while waiting for"."""
        if self.size > 1:
            with self._speaking(f"waiting for {what}"):
                torch.distributed.all_reduce(torch.zeros(1), group=_waiting)

    def on_main(self, what: str, action: Callable[[], object]) -> None:
        """Let rank 0 do something for all, and wait until it is done."""
        if self.main:
            action()
        self.wait(what)

    def require_shared(self, folder: Path) -> None:
        """Prove that all ranks see the same `folder`, which exists.

        Raises:
            RankError: they do not; the message names the ranks that see another one.
        """
        if self.size == 1:
            return
        number = torch.tensor([os.getpid()])
        self.broadcast_(number)
        # A name that nobody has looked for before: a shared file system may remember what was not there.
        mark = folder / f".rank-0-was-here-{int(number)}"
        if self.main:
            files.write_bytes(mark, b"")
        self.wait("rank 0 to leave a mark in the folder")
        blind = torch.zeros(self.size, dtype=torch.int64)
        blind[self.rank] = not mark.exists()
        self.sum_(blind)
        if self.main:
            mark.unlink()
        if bool(blind.any()):
            raise RankError(
                f"{folder} is not the same folder on all ranks: {_listed(blind)} of {self.size} cannot see what rank 0 "
                "writes there; name one on a file system that all machines share"
            )

    def require_same(self, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Prove that all ranks hold the same bits.

        Raises:
            RankError: they do not; the message names the ranks that differ from rank 0.
        """
        if self.size == 1:
            return
        digests = torch.zeros(self.size, dtype=torch.int64)
        digests[self.rank] = _digest(tensors)
        with self._speaking(f"comparing {what}"):
            torch.distributed.all_reduce(digests)
        different = digests != digests[0]
        if bool(different.any()):
            raise RankError(
                f"{what} is not the same on all ranks: {_listed(different)} of {self.size} and rank 0 disagree. All "
                "ranks need the same kind of device and the same versions; resume from the last checkpoint"
            )

    @contextmanager
    def _speaking(self, doing: str) -> Iterator[None]:
        """Turn a fault between processes into an error that says what to do."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RankLost(
                f"rank {self.rank} of {self.size} lost another rank while {doing} ({_reason(error)}). The rank that "
                "ended first says why in its own messages; repeating the command continues"
            ) from error


ALONE = Group()
_current = ALONE
_waiting: Any = None  # torch's group for long waits


def group() -> Group:
    """The group this process has joined; otherwise the process on its own."""
    return _current


def join() -> Group:
    """Become a member of the group that torchrun has started, once per process; on its own, nothing happens.

    A script that has called `torch.distributed.init_process_group` itself keeps what it has set up. On machines with
    GPUs, each process takes the one with the number of its local rank.

    Raises:
        RankError: the processes do not find each other.
    """
    global _current, _waiting
    environment = os.environ
    begun = torch.distributed.is_available() and torch.distributed.is_initialized()
    if group().size > 1 or not (begun or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(environment)):
        return group()
    if not begun and int(environment["WORLD_SIZE"]) == 1:
        return group()
    if not torch.distributed.is_available():
        raise RankError("this torch was built without torch.distributed; start a single process, without torchrun")
    local_rank = int(environment.get("LOCAL_RANK", 0))
    gpus = torch.cuda.is_available()
    if gpus and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    try:
        if not begun:
            answer = timedelta(seconds=seconds_from("PAD_FAST_ANSWER_SECONDS", ANSWER_SECONDS, RankError))
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=answer)
            _end_well()
        work = timedelta(seconds=seconds_from("PAD_FAST_WORK_SECONDS", WORK_SECONDS, RankError))
        _waiting = torch.distributed.new_group(backend="gloo", timeout=work)
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {environment.get('RANK')} of {environment.get('WORLD_SIZE')} cannot join the others "
            f"({_reason(error)}); start all of them with torchrun, with the same --rdzv-endpoint on every machine"
        ) from error
    _current = Group(torch.distributed.get_rank(), torch.distributed.get_world_size(), local_rank)
    return group()


def _end_well() -> None:
    """Leave the group when the process ends, and say so when it is torchrun that ends it."""
    atexit.register(torch.distributed.destroy_process_group)
    untouched = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if untouched and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _ended)


def _ended(number: int, frame: Any) -> NoReturn:
    here = group()
    print(
        f"pad_fast: rank {here.rank} of {here.size} was told to end, usually because another rank has failed and says "
        "why; repeating the command continues",
        file=sys.stderr,
        flush=True,
    )
    raise SystemExit(128 + number)


def _reason(error: Exception) -> str:
    """The first sentence of what a communication library says, without the place in its sources."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).strip().partition("\n")[0]).partition(". ")[0]


def _listed(ranks: Tensor) -> str:
    return "rank " + ", ".join(str(rank) for rank in ranks.nonzero().flatten().tolist())


def _digest(tensors: Mapping[str, Tensor]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors.items():
        numbers = tensor.detach().cpu().reshape(-1).contiguous()
        digest.update(name.encode() + numbers.view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)
