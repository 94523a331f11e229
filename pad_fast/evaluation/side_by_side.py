"""Several networks at once, one thread each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

Work = Generator[None, None, Result]
"""Something long that yields now and then, and returns its result."""

_TURN_SECONDS = 0.05


def side_by_side(run: Callable[[Item], Work[Result]], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Yield the result of `run(item)` for every item as soon as it is there, `workers` of them at a time.

    A worker goes on with another item after a twentieth of a second, so that five networks take two workers two and a
    half times as long as one, not three times. At most `2 * workers - 1` items are begun and not finished: what is
    finished survives a kill. Items are taken from `items` by the calling thread, only when they can begin. torch's
    threads are shared out among the workers.
    """
    if workers <= 1:
        for item in items:
            yield from _turn(run(item), float("inf"))
        return
    threads = torch.get_num_threads()
    each = max(1, threads // workers)
    left = (run(item) for item in items)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            waiting: deque[Work[Result]] = deque()
            running: dict[Future[list[Result]], Work[Result]] = {}
            while True:
                waiting.extend(islice(left, 2 * workers - 1 - len(waiting) - len(running)))
                while waiting and len(running) < workers:
                    work = waiting.popleft()
                    running[pool.submit(_turn, work)] = work
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    work = running.pop(future)
                    results = future.result()
                    yield from results
                    if not results:
                        waiting.append(work)
    finally:
        torch.set_num_threads(threads)  # the workers' calls also set libraries' process-wide numbers


def _turn(work: Work[Result], seconds: float = _TURN_SECONDS) -> list[Result]:
    """Go on with `work` for a while: its result, once it has one."""
    end = time.monotonic() + seconds
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return [finished.value]
        if time.monotonic() >= end:
            return []
