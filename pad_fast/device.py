"""Where tensors live."""

from __future__ import annotations

import torch

from .errors import InputError


def resolve_device(device: str | torch.device) -> torch.device:
    """`"auto"` is the first GPU when there is one, else the CPU; anything else is taken literally.

    Raises:
        InputError: a device that torch does not know or that this machine does not have.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    elif resolved.type != "cpu":
        raise InputError(f"device {device!r} is not supported; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return resolved
