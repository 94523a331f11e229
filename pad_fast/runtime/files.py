"""Atomic writes: a reader sees the old file or the whole new one, never half of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import PadFastError, StoreError

_ALLOWING = threading.Lock()  # torch keeps one list of what may be loaded, for all threads


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` through a temporary file in the same folder, fsync and rename.

    Raises:
        StoreError: the folder cannot be written to (read-only, missing, full); nothing is left behind.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the permissions an ordinary open() would have.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Atomic :func:`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Atomic write of indented JSON with a final newline; key order is the caller's."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_torch(path: str | os.PathLike[str], value: Any) -> Path:
    """Atomic `torch.save`. The archive does not embed the file's name, so equal values give equal bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return write_bytes(path, buffer.getvalue())


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder that is there whole or not at all: filled under another name beside it, then renamed.

    Raises:
        StoreError: there is something already, or the folder above cannot be written to; nothing is left behind.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreError(f"{path} is there already; name another folder, or delete it")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def reading(path: str | os.PathLike[str], what: str, *, way_out: str = "") -> Iterator[None]:
    """Turn what goes wrong while a file of ours is read and taken apart into one error that names it.

    Args:
        what: the file's role, such as "checkpoint".
        way_out: of somebody whose file is damaged.

    Raises:
        StoreError: the file is missing or unreadable, or does not hold what the code inside looks for.
    """
    try:
        yield
    except PadFastError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except (ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise StoreError(f"{path} is damaged or no {what} of pad_fast ({reason}){way_out and '; '}{way_out}") from error


def require_format(
    described: Mapping[str, Any], expected: str, path: str | os.PathLike[str], what: str, *, way_out: str
) -> None:
    """Compare the format that a file says it has with the one this version reads.

    Raises:
        StoreError: another one, or none; with both, and the way out.
    """
    found = described.get("format")
    if found != expected:
        has = "says no format" if found is None else f"has format {found!r}"
        raise StoreError(f"{path} {has}; this version reads {expected!r} ({what}); {way_out}")


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Parse JSON; `what` names the file's role in the error.

    Raises:
        StoreError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{what} {path} is not valid JSON ({error}); it is truncated or not ours") from error


def read_torch(path: str | os.PathLike[str], what: str, *, mapped: bool = False) -> Any:
    """`torch.load` with `weights_only=True` on the CPU; never runs code from the file.

    Args:
        mapped: leave the tensors in the file until they are used, which files older than torch 1.6 do not allow.

    Raises:
        StoreError: the file is missing, truncated, or holds anything but tensors, numpy's arrays and plain
            containers.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise StoreError(f"cannot read {what} {path}: {error.strerror or error}") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is in a file that is then refused
        try:
            if mapped and zipfile.is_zipfile(file):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return _load_torch(file)
        except Exception as error:  # torch raises pickle, zip, runtime and even OS errors for foreign bytes
            said = str(error).strip().splitlines()
            # Torch's advice for this one is to load the file all the same.
            refused = isinstance(error, pickle.UnpicklingError) or not said
            reason = type(error).__name__ if refused else said[0]
            raise StoreError(
                f"{what} {path} cannot be read as a tensor file (truncated, foreign, or pickled code): {reason}"
            ) from error


def _load_torch(file: io.BufferedReader) -> Any:
    """Tensors, plain containers and numpy's arrays and numbers, which many scripts save as they are."""
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        file.seek(0)
        with _ALLOWING, torch.serialization.safe_globals(_numpy_types()):
            return torch.load(file, map_location="cpu", weights_only=True)


def _numpy_types() -> list[Any]:
    """What numpy's pickles name; nothing of it runs code, and arrays of objects are left out."""
    rebuild: Any = np.zeros(1).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [np.dtype(code) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"]
    # Files of numpy 1 name the first two by the module they had there.
    older = [(each, f"numpy.core.multiarray.{each.__name__}") for each in (rebuild, scalar)]
    return [rebuild, scalar, *older, np.ndarray, np.dtype, *{type(kind) for kind in kinds}]


def require_writable(folder: str | os.PathLike[str]) -> Path:
    """Create `folder` if needed and prove that a file can be written there, before any work starts.

    Raises:
        StoreError: the folder cannot be created or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"output folder {folder} is not writable: {error.strerror or error}") from error
    return folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable; folders cannot be fsynced on some systems, which is fine."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
