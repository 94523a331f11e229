"""A folder without git on a machine that has torch, Triton and a few packages: `benchmarks.gpu_check` runs there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.gpu_check import results, tree

from ..support.paths import copy_tree

pytest.importorskip("triton", reason="the stages import the kernels")

INSTALLED = ("torch", "triton", "numpy", "pytest", "safetensors", "pyyaml", "pillow", "tqdm", "scikit-learn")

# Found by every process of the check before it imports anything.
CUSTOMIZE = """
import importlib.machinery as machinery, sys

class Bare:
    find_distributions = staticmethod(machinery.PathFinder.find_distributions)

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else machinery.PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter, Bare]
for name in [name for name in sys.modules if name.partition(".")[0] in BLOCKED]:
    del sys.modules[name]
"""


def needed(names: tuple[str, ...]) -> set[str]:
    """Distributions that come with these, in the form of their names in which they are compared."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        waiting += [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
    return found


def blocked() -> list[str]:
    """Modules of everything else that is installed here."""
    allowed = needed(INSTALLED)
    owners = metadata.packages_distributions().items()
    return sorted(
        module for module, names in owners if not {re.sub(r"[-_.]+", "-", name).lower() for name in names} & allowed
    )


@pytest.mark.slow
def test_stages_run_in_a_bare_folder(tmp_path: Path) -> None:
    names = blocked()
    assert {"jaxtyping", "beartype", "ruff", "pad_fast"} & {*names} >= {"jaxtyping", "beartype"}
    assert not {"torch", "triton", "numpy", "yaml", "PIL", "sklearn", "jinja2"} & {*names}
    copy_tree(tmp_path / "tree", ".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "_build.json", "golden")
    (tmp_path / "site").mkdir()
    names = [name for name in names if name not in ("benchmarks", "pad_fast", "tests")]
    (tmp_path / "site" / "sitecustomize.py").write_text(f"BLOCKED = {set(names)!r}\n{CUSTOMIZE}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PAD_FAST", "TRITON"))}
    environment = {**kept, "PYTHONPATH": str(tmp_path / "site"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    parts = {}
    for stages in ("compile,matching", "headline,profile,routes,tests,scores,sanitizer,reproduce"):
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--stage", stages]
        command += ["--out", str(tmp_path / "out"), "--scale", "4"]  # whatever else the machine is doing
        done = subprocess.run(command, cwd=tmp_path / "tree", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads((tmp_path / "out" / results.REPORT).read_text())
        parts |= {part["name"]: part for part in report["parts"]}
    assert not any(report["importable"][name] for name in ("jaxtyping", "pybind11"))
    assert all(report["importable"][name] for name in tree.NEEDED)
    skipped = {"routes", "extension", "tests", "scores", "sanitizer", "reproduce"}
    assert {name for name, part in parts.items() if part["state"] == "skipped"} == skipped
    assert {part["state"] for name, part in parts.items() if name not in skipped} == {"ok"}
    assert parts["profile"]["table"][-1] == "no GPU: counted, not timed"
    assert parts["compile"]["table"][-1].startswith("0 were compiled already, ")
