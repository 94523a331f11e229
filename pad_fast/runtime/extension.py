"""The compiled extension `pad_fast._C`: whether it is there, why not, and what it was built with."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BackendError

_BUILD_RECORD = Path(__file__).parents[1] / "_build.json"


def _load() -> tuple[ModuleType | None, str]:
    try:
        from .. import _C
    except ImportError as error:
        return None, _explain(error, build_record())
    return _C, ""


def _explain(error: ImportError, record: dict[str, Any] | None) -> str:
    """The reason that the extension cannot be imported, as far as the record of its build tells."""
    if record is None:
        return "pad_fast was never built here (no _build.json beside it); run: pip install -e ."
    if not record["extension"]:
        return f"it was not built when pad_fast was installed: {record['reason']}"
    return f"it was built for Python {record['python']}, but cannot be loaded: {error}"


def build_record() -> dict[str, Any] | None:
    """Record of building the extension, None where nothing was installed.

    Keys: `extension` (built or not), `reason` (why not), `python`, `compiler`, `cuda` (nvcc's version or
    None) and `cuda_reason`.
    """
    try:
        return dict(json.loads(_BUILD_RECORD.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


_module, _reason = _load()


def available() -> bool:
    """Whether the compiled extension is loaded."""
    return _module is not None


def unavailable_reason() -> str:
    """The reason that the extension is not loaded; empty when it is."""
    return _reason


def build_info() -> dict[str, str | bool]:
    """Compiler, C++ standard, instruction set the scores use on this machine, and whether CUDA kernels are in.

    Raises:
        BackendError: the extension is not loaded.
    """
    return dict(loaded().build_info())


def instruction_sets() -> list[str]:
    """Instruction sets the student engine can use on this machine, best first.

    Raises:
        BackendError: the extension is not loaded.
    """
    return list(loaded().instruction_sets())


def engine_instructions() -> str:
    """The instruction set the student engine runs with: the best one, or what PAD_FAST_ISA names.

    Raises:
        BackendError: the extension is not loaded, or PAD_FAST_ISA names a set this machine lacks.
    """
    extension = loaded()
    try:
        return str(extension.engine_instructions())
    except ValueError as error:
        raise BackendError(str(error)) from error


def loaded() -> Any:
    """The extension itself, whose functions take addresses: for the wrappers that check what they stand for.

    Raises:
        BackendError: it is not loaded.
    """
    if _module is None:
        raise BackendError(f"the compiled extension pad_fast._C is not available: {_reason}")
    return _module
