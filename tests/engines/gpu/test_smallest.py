"""The smallest cases on a GPU by themselves, and watched by compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from ...support.gpu import needs_gpu
from ...support.paths import ROOT

pytestmark = needs_gpu

SMALLEST = """
import torch
import pad_fast
from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
torch.manual_seed(0)
net = ConvNet(channels=2, classes=3, width=5, depth=2, resolution=7).cuda()
theta = torch.stack([torch.cat([p.detach().flatten() for p in net.parameters()])] * 2)
images = torch.randn(3, 2, 7, 7, device="cuda", requires_grad=True)
labels = torch.randn(3, 3, device="cuda", requires_grad=True)
lr = torch.tensor(0.1, device="cuda", requires_grad=True)
for precision in ("tf32", "bf16"):
    for mask in (ParameterMask.depth(0.3), ParameterMask.loss(0.4)):
        loss = trajectory_matching_loss(net, theta, theta + 0.01 * torch.randn_like(theta), images, labels, lr,
                                        batches=[torch.tensor([0, 2]), torch.arange(3)], augment=DSA().seeded(1),
                                        mask=mask, backend="triton", precision=precision)
        loss.sum().backward()
torch.cuda.synchronize()
print("done")
"""


def run_smallest(*tool: str, seconds: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PAD_FAST_GRAPHS": "0", "PAD_FAST_CONV": "triton", "PYTHONPATH": os.getcwd()}
    environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # otherwise accesses beyond a tensor stay inside a big block
    command = [*tool, sys.executable, "-c", SMALLEST]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds)


def test_smallest_cases_by_themselves():
    """Also compiles what the tools then only have to watch."""
    done = run_smallest(seconds=150)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool):
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(program):
        pytest.skip("compute-sanitizer is not installed")
    done = run_smallest(program, "--tool", tool, "--error-exitcode", "9", seconds=150)
    said = (done.stdout + done.stderr)[-3000:]
    if "not supported" in said or "Unable to" in said:
        pytest.skip(f"compute-sanitizer cannot watch this device: {said.splitlines()[0]}")
    assert done.returncode == 0 and "done" in done.stdout, said
