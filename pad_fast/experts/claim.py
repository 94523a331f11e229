"""Claims on files that several processes might write: taken by a lock, finished by a rename."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ..errors import StoreError
from ..runtime import files


class Claim:
    """The right to write one file, held by one process on this machine or on any that shares its file system.

    The unfinished file carries the lock (`flock`), so the right ends with the process that holds it, however that
    ends, and what a killed process leaves behind is taken over by the next one. Use it as a context manager:
    leaving without :meth:`finish` gives the right back.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle

    @classmethod
    def take(cls, path: Path, *, wait: bool = False) -> Claim | None:
        """Claim `path`; None when it is there already, or another process is about to write it.

        Args:
            wait: until the other process has written it (None) or has given up.

        Raises:
            StoreError: the folder cannot be written to, or its file system has no locks.
        """
        if path.exists() and not _unfinished(path).exists():
            return None
        try:
            while True:
                handle = os.open(_unfinished(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    return None
                except BaseException:
                    os.close(handle)
                    raise
                # The one who held the lock may have renamed or removed the file before this process got it.
                if _is(handle, _unfinished(path)):
                    break
                os.close(handle)
        except OSError as error:
            raise StoreError(f"cannot claim {path}: {error.strerror or error}") from error
        claim = cls(path, handle)
        if path.exists():
            claim.release()
            return None
        return claim

    def finish(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Write the file and give it its name: it appears whole or not at all.

        Raises:
            StoreError: the disk refuses; nothing is left behind.
        """
        assert self._handle is not None, "the claim was given back"
        try:
            os.ftruncate(self._handle, 0)
            with os.fdopen(os.dup(self._handle), "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(_unfinished(self.path), self.path)
            files.sync_folder(self.path.parent)
        except OSError as error:
            self.release()
            raise StoreError(
                f"cannot write {self.path}: {error.strerror or error}. What is finished stays; repeat the command "
                "when there is room"
            ) from error
        os.close(self._handle)
        self._handle = None

    def release(self) -> None:
        """Give the right back; nothing happens when the file was finished."""
        if self._handle is None:
            return
        # Removed while it is still locked: afterwards it may be another's.
        if _is(self._handle, _unfinished(self.path)):
            os.unlink(_unfinished(self.path))
        os.close(self._handle)
        self._handle = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left beside files that others have finished since."""
    for leftover in folder.glob(".*.part"):
        path = folder / leftover.name[1 : -len(".part")]
        if path.exists():
            Claim.take(path)  # of a file that is there, nothing is left when it was nobody's


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
