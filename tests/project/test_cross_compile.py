"""The C++ sources compile for another architecture: no x86 intrinsic may slip in unguarded."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from ..support.paths import ROOT

COMPILER = os.environ.get("PAD_FAST_CROSS_CXX", "aarch64-linux-gnu-g++")
# bindings.cpp and module.cpp need the headers of a Python for that machine.
SOURCES = sorted(path for path in (ROOT / "csrc").rglob("*.cpp") if path.name not in ("bindings.cpp", "module.cpp"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER}; PAD_FAST_CROSS_CXX names another")
@pytest.mark.parametrize("source", SOURCES, ids=[path.name for path in SOURCES])
def test_it_compiles_for_aarch64(tmp_path, source):
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{ROOT / 'csrc'}"]
    command = [COMPILER, *flags, "-c", str(source), "-o", str(tmp_path / "object.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
