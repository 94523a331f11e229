"""Description of this installation and its machine: the content of `pad-fast env` and of bug reports."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from . import extension


def environment() -> dict[str, Any]:
    """Versions, hardware and the state of the optional parts, ready for JSON. Triton is not imported.

    Returns:
        A dict with the keys `pad_fast`, `python`, `platform`, `torch`, `triton`, `torchvision`, `numpy`
        (versions, None where not installed), `cpu` (name), `cpu_instructions` (the set the CPU engine runs with;
        torch's where the extension is missing), `torch_instructions` (the widest set torch uses), `threads`,
        `extension` and `cuda` (dicts with `available` and `detail`).

    Raises:
        BackendError: PAD_FAST_ISA names an instruction set this machine lacks.

    Example:
        >>> sorted(environment()["extension"])
        ['available', 'detail']
    """
    by_torch = torch.backends.cpu.get_cpu_capability()
    return {
        "pad_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "cpu": cpu_name(),
        "cpu_instructions": extension.engine_instructions().upper() if extension.available() else by_torch,
        "torch_instructions": by_torch,
        "threads": torch.get_num_threads(),
        "extension": _extension(),
        "cuda": _cuda(),
    }


def format_environment(values: dict[str, Any]) -> str:
    """The dict of :func:`environment` as aligned lines for a terminal.

    Example:
        >>> print(format_environment({"python": "3.12.1", "triton": None}))
        python  3.12.1
        triton  not installed
    """
    width = max(len(key) for key in values)
    return "\n".join(f"{key.replace('_', ' '):<{width}}  {value}" for key, value in flat(values).items())


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """The dict of :func:`environment` with every value as a few words."""
    return {key: _show(value) for key, value in values.items()}


def cpu_name() -> str:
    """The processor's name as the system gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return f"{'yes' if value['available'] else 'no'}: {value['detail']}"
    return "not installed" if value is None else str(value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extension() -> dict[str, Any]:
    if not extension.available():
        return {"available": False, "detail": extension.unavailable_reason()}
    info = extension.build_info()
    record = extension.build_record() or {}
    kernels = "with CUDA kernels" if info["cuda"] else f"no CUDA kernels ({record.get('cuda_reason') or 'not built'})"
    return {
        "available": True,
        "detail": f"{info['compiler']}, {info['standard']}, scores by {info['instructions']}, {kernels}",
    }


def _cuda() -> dict[str, Any]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return {"available": True, "detail": f"CUDA {torch.version.cuda}, {', '.join(names)}"}
    built = torch.version.cuda
    return {
        "available": False,
        "detail": "no CUDA device found" if built else "this torch was built without CUDA",
    }
