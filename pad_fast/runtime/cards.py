"""Graphics cards, and what findings about one depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from .._version import __version__


def card_and_versions(device: torch.device) -> dict[str, str]:
    """Card, compute capability, driver, and the versions of what drives it; "none" where there is no card."""
    if device.type == "cuda":
        card = torch.cuda.get_device_name(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        # A private name of torch; without it, a new driver is not noticed.
        of_torch = getattr(torch._C, "_cuda_getDriverVersion", None)
        driver = "unknown" if of_torch is None else str(of_torch())
    else:
        card, capability, driver = str(device), "none", "none"
    return {
        "card": card,
        "capability": capability,
        "driver": driver,
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "pad_fast": __version__,
    }


def digest_of_sources(folders: Iterable[Path]) -> str:
    """Digest of all Python files in some folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def file_name(subject: Mapping[str, str]) -> str:
    """Name of the file of what was found out about `subject`."""
    return hashlib.sha256(json.dumps(dict(subject), sort_keys=True).encode()).hexdigest()[:16] + ".json"
