"""Devices that tensors live on, and their memory."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import InputError, nearest
from . import distributed


def resolve_device(device: str | torch.device) -> torch.device:
    """`"auto"` is a GPU when there is one, else the CPU; anything else is taken literally.

    The GPU is the first, or, of several processes, the one with the number of the process on this machine; its number
    is part of what is returned.

    Raises:
        InputError: a device that torch does not know or that this machine does not have.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return _numbered(torch.device("cuda")) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise InputError(
                f"device {device!r} was asked for, but torch {torch.__version__} sees {count} GPUs here; "
                "use device='auto' or 'cpu'"
            )
        group = distributed.group()
        other = resolved.index is not None and resolved != _numbered(torch.device("cuda"))
        if group.size > 1 and (other or group.local_rank >= count):
            raise InputError(
                f"every process takes a GPU of its own, and this one, {group.local_rank} on its machine, cannot take "
                f"{device!r} of {count}; use device='auto' and --nproc-per-node {count}"
            )
        return _numbered(resolved)
    elif resolved.type != "cpu":
        raise InputError(f"device {device!r} is not supported; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return resolved


def _numbered(device: torch.device) -> torch.device:
    """`cuda` with the number that its tensors name: to torch, `cuda` and `cuda:0` are not equal."""
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; from the CPU to a GPU through pinned memory, without waiting for what that is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def cache_bytes(cache: int | str, device: torch.device) -> int:
    """Bytes of activations that a run may keep between its passes.

    Args:
        cache: a number of bytes (an int, or digits in a string); 0 recomputes everything; "auto" takes half of what is
            free on `device` now.

    Raises:
        InputError: anything else.

    Example:
        >>> cache_bytes("0", torch.device("cpu"))
        0
    """
    if cache == "auto":
        return free_bytes(device) // 2
    text = str(cache)
    if isinstance(cache, bool) or not text.isdigit():
        raise InputError(
            f"cache is {cache!r}; use a number of bytes, 0 to recompute, or 'auto'.{nearest(text, ['auto'])}"
        )
    return int(text)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on `device`, as far as the system tells; 0 when it does not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_AVPHYS_PAGES" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 0
