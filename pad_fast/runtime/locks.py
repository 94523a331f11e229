"""Locks between processes that share a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import StoreError


@contextmanager
def locked(path: str | os.PathLike[str], *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of that name, waiting while another process does; a process that dies lets go of it.

    Args:
        waiting: is called when there is somebody to wait for.

    Raises:
        StoreError: the folder cannot be written to, or its file system has no locks.
    """
    path = Path(path)
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise StoreError(f"cannot lock {path}: {error.strerror or error}") from error
        yield


def is_locked(path: str | os.PathLike[str]) -> bool | None:
    """Whether a process is inside :func:`locked`; None where nobody has ever been, or it cannot be told."""
    try:
        with open(path, "rb") as file:
            # Shared, so that several who ask do not take each other for its holder.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
