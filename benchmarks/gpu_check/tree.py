"""A copy of the sources in which `pad_fast.kernels` lies where imports look for it, without installing anything."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "gpu-check"
LOGS = ROOT / "build" / "gpu-check-logs"
NEEDED = ("torch", "triton", "numpy", "safetensors", "PIL", "yaml", "tqdm", "pytest")
USEFUL = ("torchvision", "sklearn", "jaxtyping", "pybind11", "setuptools")


def importable(names: tuple[str, ...]) -> dict[str, bool]:
    """Presence of these modules in this Python, by name."""
    return {name: importlib.util.find_spec(name) is not None for name in names}


def copy_sources() -> None:
    """Make the copy anew."""
    shutil.rmtree(TREE, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("pad_fast", "tests", "benchmarks", "csrc"):
        shutil.copytree(ROOT / name, TREE / name, ignore=unwanted)
    shutil.copytree(ROOT / "kernels", TREE / "pad_fast" / "kernels", ignore=unwanted)
    shutil.copytree(ROOT / "kernels", TREE / "kernels", ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, TREE / name)


def built_with_cuda() -> bool:
    """Whether the extension in the copy scores on GPUs."""
    try:
        described = json.loads((TREE / "pad_fast" / "_build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(described.get("extension") and described.get("cuda"))
