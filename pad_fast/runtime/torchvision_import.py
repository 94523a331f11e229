"""The one place that imports torchvision, and the reason why that takes care."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

# Operators whose shapes torchvision's Python code registers on import, whether or not its binary loaded.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def import_torchvision(part: str) -> Any:
    """The module `torchvision.PART`.

    torchvision's wheel is linked against one build of torch. Beside another one (a CPU torch with the default
    CUDA wheel is common) its binary does not load, and `import torchvision` then fails because it registers shape
    functions for operators which that binary should have defined. Data sets and networks use none of them, so the
    missing names are declared first, without an implementation. Where the binary loads, nothing is declared.

    Raises:
        ImportError: torchvision is not installed or cannot be imported; says what to install.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise ImportError("torchvision is not installed: pip install torchvision")
    if not _binary_loads(Path(found.origin).parent):
        _declare_operators()
    try:
        return importlib.import_module(f"torchvision.{part}")
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"torchvision cannot be imported beside torch {torch.__version__} ({error}); "
            "install the matching torchvision"
        ) from error


def _binary_loads(package: Path) -> bool:
    for binary in (*package.glob("_C*.so"), *package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(binary)
            return True
        except (ImportError, OSError):
            continue
    return False


@functools.cache
def _declare_operators() -> list[torch.library.Library]:
    """Declare what is missing; the cache keeps the libraries, which undo their declarations when collected."""
    libraries = []
    for schema in _OPERATORS:
        name = schema.partition("(")[0]
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            libraries.append(library)
    return libraries
