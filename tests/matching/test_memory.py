"""Constant memory is a claim, so it is measured, each time in a process of its own.

The peak of one gradient at T and at 8 T, and that of a script's iterations, one and fifty.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ..support.native import require_native
from ..support.paths import ROOT

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


# A new wrapper in every iteration and the losses kept, as scripts have it; sys.argv: iterations, what else is kept.
ITERATIONS = """
import sys, torch, pad_fast
from pad_fast.engines import record_backends
from tests.support.convnets import Reparametrised
torch.set_num_threads(1)

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def student():
    layers = [torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.GroupNorm(64, 64), torch.nn.ReLU(), torch.nn.AvgPool2d(2)]
    return Reparametrised(torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(16 * 64, 160)))

torch.manual_seed(0)
theta = student().flat_param.detach().clone()
target = theta + 0.01 * torch.randn_like(theta)
images = torch.randn(10, 3, 8, 8, requires_grad=True)
labels, lr = torch.randn(10, 160, requires_grad=True), torch.tensor(0.01, requires_grad=True)
optimizers = [torch.optim.SGD([images], lr=10.0, momentum=0.5), torch.optim.SGD([labels, lr], lr=1e-6)]
before, losses = peak(), []
for iteration in range(int(sys.argv[1])):
    with record_backends() as used:
        loss = pad_fast.trajectory_matching_loss(
            student(), theta, target, images, labels, lr, batches=[torch.randperm(10)[:4] for _ in range(80)])
    assert used == ["cpu"]
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward(retain_graph=sys.argv[2] == "graphs")
    for optimizer in optimizers:
        optimizer.step()
    losses.append(loss)
assert len({float(loss.detach()) for loss in losses}) == len(losses)
print(peak() - before, theta.numel() * 4 / 1024)
"""


def peak_of_iterations(iterations: int, kept: str) -> tuple[float, float]:
    arguments = [sys.executable, "-c", ITERATIONS, str(iterations), kept]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=MAPPED, cwd=ROOT)
    peak, vector = done.stdout.split()
    return float(peak), float(vector)


def test_fifty_iterations_of_a_script_need_the_memory_of_one():
    require_native()
    one, vector = peak_of_iterations(1, "losses")
    fifty, _ = peak_of_iterations(50, "losses")
    assert one > 80 * vector, "the vectors of the student's path are not seen: the test proves nothing"
    assert fifty <= 1.05 * one, (one, fifty, vector)


def test_the_measurement_sees_what_a_script_keeps():
    require_native()
    one, vector = peak_of_iterations(1, "graphs")
    three, _ = peak_of_iterations(3, "graphs")
    assert three > one + 2 * 80 * vector, (one, three, vector)
