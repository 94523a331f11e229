"""The CUDA side of scoring without a GPU: its source compiles, and what its kernels run is right on the CPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from pad_fast.scoring.formulas import el2n_naive

from ..support.build import load_build
from ..support.paths import ROOT
from ..support.scores import problem

build = load_build()
try:
    NVCC = build.find_nvcc()
except build.BuildFailure as failure:
    NVCC, NO_NVCC = None, str(failure)
CXX = os.environ.get("CXX", "c++").split()

# What a kernel does with one row, by every path that a launch may choose. A warp or block is simulated by its lanes one
# after the other, once per reduction: what a reduction gives is known when all lanes have come to it.
PROGRAM = r"""
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "scoring/arithmetic.h"
using namespace pad_fast::scoring;

struct Lane {
  int lane, lanes, round;  // the reduction that this round is about; those before it are known
  double *known, *next;
  mutable int step = 0;
  int rank() const { return lane; }
  int size() const { return lanes; }
  template <class F> F max(F value) const { return F(reduce(double(value), true)); }
  double sum(double value) const { return reduce(value, false); }
  double reduce(double value, bool largest) const {
    const int at = step++;
    if (at == round) *next = largest ? (value > *next ? value : *next) : *next + value;
    return known[at];
  }
};

template <class Score> double by_group(int lanes, const Score& score) {
  double known[3] = {};  // the largest logit, and the two sums
  for (int round = 0; round < 3; ++round) {
    double next = round == 0 ? -INFINITY : 0;
    for (int lane = 0; lane < lanes; ++lane) score(Lane{lane, lanes, round, known, &next});
    known[round] = next;
  }
  return score(Lane{lanes - 1, lanes, -1, known, nullptr});
}

template <class T> void run(int64_t rows, int64_t classes) {
  std::vector<T> z(rows * classes);
  std::vector<int64_t> labels(rows);
  if (fread(z.data(), sizeof(T), z.size(), stdin) != z.size()) exit(2);
  if (fread(labels.data(), 8, labels.size(), stdin) != labels.size()) exit(2);
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = z.data() + i * classes;
    using F = typename Computed<T>::type;
    double out[4];
    out[0] = el2n_of_row<F>(row, labels[i], classes, Alone());
    out[1] = by_group(32, [&](const auto& g) { return el2n_of_short_row<4>(row, labels[i], classes, g); });
    out[2] = by_group(256, [&](const auto& g) { return el2n_of_row<double>(row, labels[i], classes, g); });
    double mean = NAN, deviations = NAN;  // of the first three, as one network after the other
    for (int k = 0; k < 3; ++k) accumulate(mean, deviations, out[k], k);
    out[3] = mean;
    fwrite(out, 8, 4, stdout);
  }
}

int main(int, char** argv) {
  const int64_t rows = atoll(argv[2]), classes = atoll(argv[3]);
  if (argv[1][0] == 'd') run<double>(rows, classes);
  if (argv[1][0] == 'f') run<float>(rows, classes);
  if (argv[1][0] == 'b') run<BFloat16>(rows, classes);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header compiled for the CPU in a program of its own."""
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"no C++ compiler ({CXX[0]})")
    folder = tmp_path_factory.mktemp("header")
    (folder / "main.cpp").write_text(PROGRAM)
    command = [*CXX, "-O1", "-std=c++17", f"-I{ROOT / 'csrc'}", "main.cpp", "-o", "program"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "program"


def scores_by(program: Path, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[rows, 4]: one thread, a warp, a block, and their running mean."""
    kind = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "bfloat16"}[logits.dtype]
    raw = logits.contiguous().view(torch.uint8).numpy().tobytes() + labels.numpy().tobytes()
    command = [str(program), kind, *map(str, logits.shape)]
    done = subprocess.run(command, input=raw, capture_output=True, check=True)
    return torch.from_numpy(np.frombuffer(done.stdout).copy()).view(-1, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 10, 31, 33, 128])
def test_every_path_of_the_kernels_gives_the_formula(program: Path, dtype: torch.dtype, classes: int) -> None:
    logits, _, labels = problem(23, classes, dtype)
    found = scores_by(program, logits, labels)
    expected = el2n_naive(logits.double(), labels)
    # Scores come back as doubles, so float32's last rounding is not in them.
    tolerance = 1e-13 if dtype == torch.float64 else 1.5 * torch.finfo(torch.float32).eps
    for path in range(4):
        torch.testing.assert_close(
            found[:, path], expected, rtol=tolerance, atol=1e-300, msg=lambda m, p=path: f"{p} {m}"
        )
    if classes > 2 and dtype != torch.float64:
        assert not torch.equal(found[:, 0], found[:, 2]), "the block sums in double, the thread in float"


def test_the_paths_agree_on_extreme_logits(program: Path) -> None:
    inf, nan = float("inf"), float("nan")
    rows = [
        ([1e4, -1e4, -1e4], 0, 0.0),
        ([1e4, -1e4, -1e4], 1, 2**0.5),
        ([-1e4, -1e4, -1e4], 2, (2 / 3) ** 0.5),
        ([0.0, 0.0, -inf], 0, 0.5**0.5),
        ([-inf, 0.0, 0.0], 0, 1.5**0.5),
        ([0.0, -inf, -inf], 0, 0.0),
        ([-inf, -inf, -inf], 0, nan),
        ([0.0, nan, 1.0], 0, nan),
        ([nan, 0.0, 1.0], 0, nan),
        ([inf, 0.0, 0.0], 0, nan),
        ([inf, 0.0, 0.0], 1, nan),
    ]
    labels = torch.tensor([label for _, label, _ in rows])
    expected = torch.tensor([score for _, _, score in rows], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        found = scores_by(program, torch.tensor([row for row, _, _ in rows], dtype=dtype), labels)
        for path in range(4):
            torch.testing.assert_close(found[:, path], expected, rtol=2e-7, atol=0, equal_nan=True)


@pytest.mark.skipif(NVCC is None, reason="no nvcc: " + ("" if NVCC else NO_NVCC))
def test_the_kernels_compile_without_spilling(tmp_path: Path) -> None:
    source = ROOT / "csrc" / "scoring" / "scoring.cu"
    command = [NVCC, *build.NVCC_FLAGS, f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-c", str(source), "-o", "object.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warning" not in said, said
    kernels = re.findall(r"Compiling entry function '(\S+)' for '(sm_\d+)'", said)
    assert {architecture for _, architecture in kernels} == {"sm_80", "sm_90"}
    # 3 dtypes and 2 label dtypes of one thread, five warps (by length of the row) and one block.
    assert len(kernels) == 2 * 6 * 7
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    assert len(spills) == 2 * len(kernels) and not any(spills), said


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("rows", "classes"), [(1_000_000, 10), (100_000, 1000)])
def test_bandwidth_is_near_that_of_a_copy(rows: int, classes: int) -> None:
    from benchmarks.scoring import time_cuda

    _, ours = time_cuda(rows, classes, rounds=20)
    assert ours["share_of_copy"]["median"] >= 0.8, ours
