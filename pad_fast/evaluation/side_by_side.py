"""Several networks at once, one thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    run: Callable[[Item, Callable[[], bool]], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """Yield `run(item, stopped)` of every item as soon as it is there, `workers` of them at a time.

    torch's threads are shared out among the workers. An item is taken from `items` by the calling thread, and only when
    a worker is free for it. When one fails, or the caller stops listening, the others are told through `stopped`.
    """
    if workers <= 1:
        for item in items:
            yield run(item, bool)
        return
    threads = torch.get_num_threads()
    each = max(1, threads // workers)
    left = iter(items)
    stop = threading.Event()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            try:
                running = {pool.submit(run, item, stop.is_set) for item in islice(left, workers)}
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    running |= {pool.submit(run, item, stop.is_set) for item in islice(left, len(done))}
                    for future in done:
                        yield future.result()
            finally:
                stop.set()
    finally:
        torch.set_num_threads(threads)  # the workers' calls also set libraries' process-wide numbers
