"""Several experts at once: processes that fill one store, each on one thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..errors import ConfigError, PadFastError

Fill = Callable[[], Iterable[int]]
"""Does work that it shares with others who do the same, and yields every piece's number once it is done."""


def require_processes(device: torch.device) -> None:
    """Check that work on `device` can be divided over processes of this one.

    Raises:
        ConfigError: a GPU, or a system without fork.
    """
    if device.type != "cpu":
        raise ConfigError(f"workers are processes on the CPU, but the device is {device}; leave workers at 0 there")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError("this system cannot fork workers; start the same command several times instead")


def in_processes(fill: Fill, count: int) -> Generator[int]:
    """Run `fill` in `count` forked processes, which share this one's memory; yields every number once.

    A worker that is killed is replaced by nobody: the others go on, and take over what it had claimed.

    Raises:
        PadFastError: what a worker raised, or all of them ended early.
    """
    context: Any = multiprocessing.get_context("fork")
    workers: dict[Connection, Any] = {}
    try:
        for _ in range(count):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(fill, sender, os.getpid()), daemon=True)
            with warnings.catch_warnings():
                # Newer Pythons warn that another thread may hold a lock. A worker calls into nothing that such threads
                # (torch's pool) guard: it computes on one thread of its own.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            sender.close()
            workers[receiver] = process
        done: set[int] = set()
        codes: list[int] = []
        while workers:
            for receiver in wait(list(workers)):
                assert isinstance(receiver, Connection)
                try:
                    message = receiver.recv()
                except EOFError:
                    process = workers.pop(receiver)
                    process.join()
                    codes.append(process.exitcode)
                    continue
                if isinstance(message, BaseException):
                    raise message
                if message not in done:
                    done.add(message)
                    yield message
        if 0 not in codes:
            raise PadFastError(
                f"all workers ended early (exit codes {', '.join(map(str, codes))}; -9 is often for want of memory); "
                "finished experts are kept, repeat the command, with fewer workers if need be"
            )
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join()


def _work(fill: Fill, sender: Connection, parent: int) -> None:
    """Be a worker."""
    # Ctrl-C reaches the parent as well, which ends the workers; ending in the ordinary way gives claims back.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    try:
        for number in fill():
            sender.send(number)
    except PadFastError as error:
        sender.send(error)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)
