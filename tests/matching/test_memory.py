"""Constant memory is a claim, so it is measured: peak of one gradient at T and at 8 T, each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ..support.native import require_native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc"),
]

SCRIPT = """
import sys, torch, pad_fast
torch.set_num_threads(1)

def peak():  # of this program alone: getrusage would count the process that started it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

steps, gradient = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
net = pad_fast.ConvNet()
theta = torch.cat([p.detach().flatten() for p in net.parameters()])
target = theta + 0.01 * torch.randn_like(theta)
images = torch.randn(10, 3, 32, 32, requires_grad=True)
labels, lr = torch.randn(10, 10, requires_grad=True), torch.tensor(0.01, requires_grad=True)
before = peak()
loss = pad_fast.trajectory_matching_loss(
    net, theta, target, images, labels, lr, batches=[torch.randperm(10) for _ in range(steps)],
    gradient=gradient, backend=sys.argv[3])
loss.backward()
assert float(images.grad.norm()) > 0
print(peak() - before, theta.numel() * 4 / 1024)
"""


# Blocks of their own for whatever is large: the peak is then what is held at once. In glibc's heap it would also be
# what lies between blocks, some tens of MiB that differ from run to run.
MAPPED = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}


def peak_kib(steps: int, gradient: str, backend: str) -> tuple[float, float]:
    """Peak above what import and inputs took, and the size of one parameter vector, in KiB."""
    arguments = [sys.executable, "-c", SCRIPT, str(steps), gradient, backend]
    peak, vector = subprocess.run(arguments, capture_output=True, text=True, check=True, env=MAPPED).stdout.split()
    return float(peak), float(vector)


@pytest.mark.parametrize("backend", ["autograd", "cpu"])
def test_memory_of_the_exact_gradient_does_not_grow_with_t(backend):
    if backend == "cpu":
        require_native()
    short, vector = peak_kib(4, "exact", backend)
    long, _ = peak_kib(32, "exact", backend)
    # T vectors are kept by design.
    assert long <= 1.05 * short + 28 * vector, (short, long, vector)


def test_the_measurement_sees_the_oracles_growth():
    short, vector = peak_kib(2, "unroll", "autograd")
    long, _ = peak_kib(10, "unroll", "autograd")
    assert long > 1.05 * short + 8 * vector, (short, long, vector)
