"""Progress on a terminal (a bar) and elsewhere (a line now and then), both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from . import distributed

Item = TypeVar("Item")

_LINE_EVERY_SECONDS = 10.0


class Progress:
    """Reports progress; `quiet` says nothing, nor does any but the main one of several processes.

    A terminal gets a tqdm bar with rate and ETA. Anything else (a file, a pipe, CI) gets a whole line every ten
    seconds and one at the end, so that a log stays readable.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet or not distributed.group().main

    @classmethod
    def of(cls, given: Progress | bool | None) -> Progress:
        """What a caller asks for: a :class:`Progress`, True or None for the usual one, False for none."""
        return given if isinstance(given, Progress) else cls(quiet=given is False)

    def say(self, message: str) -> None:
        """One line of its own."""
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def track(
        self,
        items: Iterable[Item],
        label: str,
        *,
        total: int,
        done: int = 0,
        unit: str = "it",
        detail: Callable[[], str] | None = None,
    ) -> Iterator[Item]:
        """Yield `items`, reporting under `label`.

        Args:
            total: how many there are in all; `done` of them were finished before (a resumed run).
            unit: name of one item.
            detail: called when something is printed, for a short text such as the current loss.
        """
        if self.quiet or total <= done:
            yield from items
        elif sys.stderr.isatty():
            yield from self._bar(items, label, total, done, unit, detail)
        else:
            yield from self._lines(items, label, total, done, unit, detail)

    @staticmethod
    def _bar(
        items: Iterable[Item],
        label: str,
        total: int,
        done: int,
        unit: str,
        detail: Callable[[], str] | None,
    ) -> Iterator[Item]:
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=label, unit=unit, dynamic_ncols=True, smoothing=0.1) as bar:
            for item in items:
                yield item
                if detail is not None:
                    bar.set_postfix_str(detail(), refresh=False)
                bar.update()

    @staticmethod
    def _lines(
        items: Iterable[Item],
        label: str,
        total: int,
        done: int,
        unit: str,
        detail: Callable[[], str] | None,
    ) -> Iterator[Item]:
        from tqdm import tqdm

        start = last = time.monotonic()
        count = done
        for item in items:
            yield item
            count += 1
            now = time.monotonic()
            if count == total or now - last >= _LINE_EVERY_SECONDS:
                last = now
                meter = tqdm.format_meter(count, total, now - start, prefix=label, unit=unit, initial=done, ncols=0)
                print(f"{meter}{', ' + detail() if detail else ''}", file=sys.stderr, flush=True)
