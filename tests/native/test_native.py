"""The C++ engine outside Python: every compiler at hand takes the sources, and golden cases come out right."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ..support.paths import ROOT
from . import cases

COMMON = ["-std=c++17", "-pthread", "-ffp-contract=fast", "-Wno-psabi", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
FLAGS = {"baseline": [], "avx2": AVX2, "avx512": AVX512, "amx": [*AVX512, "-mamx-tile", "-mamx-bf16"]}
SOURCES = [
    *(("unroll/isa", isa) for isa in FLAGS),
    *(("scoring", isa) for isa in ("baseline", "avx2", "avx512")),
]


def require(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")


def compiled(compiler: str, *arguments: str | Path) -> None:
    done = subprocess.run([compiler, *COMMON, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("folder", "isa"), SOURCES)
@pytest.mark.parametrize("compiler", ["g++", "clang++", "aarch64-linux-gnu-g++"])
def test_every_compiler_takes_every_source(compiler: str, folder: str, isa: str) -> None:
    require(compiler)
    if compiler.startswith("aarch64") and isa != "baseline":
        pytest.skip("an instruction set of x86")
    compiled(compiler, *FLAGS[isa], "-fsyntax-only", f"csrc/{folder}/isa_{isa}.cpp")


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_golden_cases_without_python(compiler: str, tmp_path: Path) -> None:
    """The committed ones, in float64 to 1e-9, by the driver that `make aarch64` emulates."""
    require(compiler)
    names = cases.write(tmp_path / "cases.bin")
    driver = tmp_path / "unroll"
    sources = ("csrc/unroll/isa/isa_baseline.cpp", "csrc/unroll/runtime.cpp", "tests/native/unroll.cpp")
    compiled(compiler, "-O1", *sources, "-o", driver)
    done = subprocess.run([driver, tmp_path / "cases.bin"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(names) >= 2 and done.stdout.count("images") == 2 * len(names)
    wrong = bytearray((tmp_path / "cases.bin").read_bytes())
    wrong[-2] ^= 1  # the last gradient expected of the last case, in its first digits
    (tmp_path / "wrong.bin").write_bytes(wrong)
    assert subprocess.run([driver, tmp_path / "wrong.bin"], capture_output=True).returncode == 1
