"""What goes along with a tree that is carried to another machine: golden files, and kernels that are compiled already.

Both lie in an ignored folder of the tree, `build/carried`. Triton's cache writes down where its files are, and finds
none where the tree lies elsewhere: :func:`settle` mends that.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from benchmarks.gpu_check.results import replace
from benchmarks.gpu_check.tree import ROOT

FOLDER = ROOT / "build" / "carried"
GOLDEN, KERNELS = "golden", "triton"
NEEDED = "unroll_*.npz"
"""The golden files that `gpu` tests read; a test says so."""
_SHARED = (ROOT / "shared" / "golden", ROOT.parent / "shared" / "golden")
"""Folders that may have all golden files."""


def golden_sources() -> list[Path]:
    """Folders that may have the complete set, as `tests/support/golden.py` looks for it."""
    named = os.environ.get("PAD_FAST_GOLDEN")
    folders = [Path(named)] if named else []
    folders += [*_SHARED, ROOT / "tests" / "golden"]
    return [folder for folder in folders if folder.is_dir()]


def bundle(sources: list[Path] | None = None, folder: Path | None = None) -> str:
    """Copy the golden files that `gpu` tests read; says how many there are."""
    folder = folder or FOLDER / GOLDEN
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in sources if sources is not None else golden_sources():
        for path in sorted(source.glob(NEEDED)):
            if not (folder / path.name).exists():
                shutil.copy2(path, folder / path.name)
    return f"{folder}: {size_of(folder)}"


def size_of(folder: Path) -> str:
    """Files and their size."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 2**20:.1f} MiB"


def slim(folder: Path) -> None:
    """Leave machine code and its description: a launch needs no more, and the rest is half of it."""
    for path in folder.glob("*/*.source"):
        path.unlink()


def settle(folder: Path | None = None) -> int:
    """Tell Triton's cache where it lies now; returns how many kernels it holds."""
    count = 0
    for group in (folder or FOLDER / KERNELS).glob("*/__grp__*.json"):
        held: dict[str, str] = json.loads(group.read_text(encoding="utf-8"))["child_paths"]
        here = {name: str(group.parent / name) for name in held}
        if here != held:
            replace(group, json.dumps({"child_paths": here}).encode())
        count += 1
    return count


def environment(folder: Path = FOLDER) -> dict[str, str]:
    """Environment variables by which tests and Triton find what was carried; what is set already stays."""
    found: dict[str, str] = {}
    for golden in (folder / GOLDEN, *_SHARED):
        if golden.is_dir():
            found.setdefault("PAD_FAST_GOLDEN", str(golden))
    if (folder / KERNELS).is_dir():
        found["TRITON_CACHE_DIR"] = str(folder / KERNELS)
    return {name: value for name, value in found.items() if name not in os.environ}
