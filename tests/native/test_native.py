"""The C++ engine outside Python: every compiler at hand takes the sources, and golden cases come out right."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ..support.build import load_build
from ..support.paths import ROOT
from . import cases

BUILD = load_build()
COMMON = [*BUILD.CXX_FLAGS, *BUILD.VECTOR, "-Werror", "-Icsrc"]
SOURCES = {
    path.relative_to(ROOT).as_posix(): [*flags, *BUILD.OPTIONAL_FLAGS.get(path.relative_to(ROOT).as_posix(), [])]
    for path, flags in BUILD.sources(".cpp").items()
    if path.name.startswith("isa_")
}


def require(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")


def compiled(compiler: str, *arguments: str | Path) -> None:
    done = subprocess.run([compiler, *COMMON, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("compiler", ["g++", "clang++", "aarch64-linux-gnu-g++"])
def test_every_compiler_takes_every_source(compiler: str, source: str) -> None:
    require(compiler)
    if compiler.startswith("aarch64") and not source.endswith("isa_baseline.cpp"):
        pytest.skip("an instruction set of x86")
    compiled(compiler, *SOURCES[source], "-fsyntax-only", source)


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_golden_cases_without_python(compiler: str, tmp_path: Path) -> None:
    """The committed ones, in float64 to 1e-9, by the driver that `make aarch64` emulates."""
    require(compiler)
    names = cases.write(tmp_path / "cases.bin")
    driver = tmp_path / "unroll"
    sources = (
        "csrc/unroll/isa/isa_baseline.cpp",
        "csrc/unroll/runtime.cpp",
        "csrc/parallel.cpp",
        "tests/native/unroll.cpp",
    )
    compiled(compiler, "-O1", *sources, "-o", driver)
    done = subprocess.run([driver, tmp_path / "cases.bin"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(names) >= 2 and done.stdout.count("images") == 2 * len(names)
    wrong = bytearray((tmp_path / "cases.bin").read_bytes())
    wrong[-2] ^= 1  # the last gradient expected of the last case, in its first digits
    (tmp_path / "wrong.bin").write_bytes(wrong)
    assert subprocess.run([driver, tmp_path / "wrong.bin"], capture_output=True).returncode == 1
