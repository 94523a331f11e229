"""Atomic writes: a reader sees the old file or the whole new one, never half of it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pickle
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import StoreError


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
        StoreError: the file is missing, truncated, or holds anything but tensors and plain containers.
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
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises pickle, zip, runtime and even OS errors for foreign bytes
            said = str(error).strip().splitlines()
            # Torch's advice for this one is to load the file all the same.
            refused = isinstance(error, pickle.UnpicklingError) or not said
            reason = type(error).__name__ if refused else said[0]
            raise StoreError(
                f"{what} {path} cannot be read as a tensor file (truncated, foreign, or pickled code): {reason}"
            ) from error


_TENSOR_TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensor_pieces(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """A safetensors file of `tensors` that says what it is in JSON, in pieces; equal values give equal bytes.

    The pieces share the tensors' memory. The description is one metadata key, whose order nobody else decides.
    """
    # Large elements first, so that everything is aligned.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"pad_fast": json.dumps(described)}}
    start = 0
    for name in ordered:
        tensor = tensors[name]
        stop = start + tensor.numel() * tensor.element_size()
        kind = _TENSOR_TYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in ordered:
        yield tensor_bytes(tensors[name])


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a CPU tensor; of a contiguous one they are its own memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def pack_tensors(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> bytes:
    """:func:`tensor_pieces` in one."""
    return b"".join(tensor_pieces(tensors, described))


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says about itself.

    Attributes:
        described: its description, see :func:`tensor_pieces`.
        tensors: name -> (dtype as the format spells it, shape, first byte in the file, byte behind the last).
    """

    described: dict[str, Any]
    tensors: dict[str, tuple[str, list[int], int, int]]


def read_tensor_header(path: str | os.PathLike[str]) -> TensorHeader:
    """Read the first bytes of a file of ours and check that the file is as long as they say.

    Raises:
        OSError, KeyError, TypeError, ValueError: missing, truncated or foreign; the caller knows what it was meant
            to be.
    """
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= length - 8:
            raise ValueError("truncated or foreign")
        header = json.loads(file.read(size))
    described = json.loads(header.pop("__metadata__")["pad_fast"])
    tensors = {}
    end = size + 8
    for name, entry in header.items():
        start, stop = (8 + size + int(offset) for offset in entry["data_offsets"])
        tensors[name] = str(entry["dtype"]), [int(side) for side in entry["shape"]], start, stop
        end = max(end, stop)
    if end != length:
        raise ValueError(f"{length:,} bytes long instead of {end:,}")
    return TensorHeader(described, tensors)


def seal(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description with a checksum of itself (CRC-32 of its JSON), as it comes back from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return {**plain, "checksum": _checksum(plain)}


def unseal(sealed: Any) -> dict[str, Any]:
    """The description in :func:`seal`.

    Raises:
        ValueError: it is not what it was.
    """
    if not isinstance(sealed, dict):
        raise ValueError("no description")
    plain = {key: value for key, value in sealed.items() if key != "checksum"}
    if sealed.get("checksum") != _checksum(plain):
        raise ValueError("the checksum of its description is wrong")
    return plain


def _checksum(plain: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def unpack_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of :func:`pack_tensors`.

    Raises:
        SafetensorError, KeyError, TypeError, ValueError: truncated or foreign bytes; the caller knows what they were
            meant to be.
    """
    from safetensors.torch import load

    tensors = load(data)
    size = int.from_bytes(data[:8], "little")
    return tensors, json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["pad_fast"])


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
