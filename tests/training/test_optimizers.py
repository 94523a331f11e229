"""SGD against torch's, GSAM against the reference's own trajectory and against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pad_fast import ConvNet
from pad_fast.engines import Task, backends, record_backends, registry, select
from pad_fast.errors import BackendError, ConfigError
from pad_fast.models import FlatNetwork
from pad_fast.training.optimizers import GSAM, SGD, make_optimizer

from ..support.comparison import relative_error

GSAM_TOLERANCE = 1e-9  # relative L2 of the parameters and of the change in each step, float64; worst seen 5e-15


def problem(seed: int = 0, size: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    features = torch.randn(24, size, generator=draws, dtype=torch.float64)
    targets = torch.randn(24, generator=draws, dtype=torch.float64)
    return features, targets, torch.randn(size, generator=draws, dtype=torch.float64)


def least_squares(features: Tensor, targets: Tensor):
    def loss_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
        leaf = theta.detach().requires_grad_()
        loss = (features @ leaf - targets).tanh().square().mean()
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    return loss_and_grad


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 5e-2), (0.9, 5e-2)])
def test_sgd_is_torchs_sgd(momentum, weight_decay):
    features, targets, theta = problem()
    loss_and_grad = least_squares(features, targets)
    leaf = theta.clone().requires_grad_()
    theirs = torch.optim.SGD([leaf], lr=0.3, momentum=momentum, weight_decay=weight_decay)
    ours = SGD(0.3, momentum=momentum, weight_decay=weight_decay)
    start = theta.clone()
    for _ in range(6):
        before, given = theta, theta.clone()
        theta, loss = ours.step(theta, loss_and_grad)
        assert torch.equal(before, given), "the old parameters were written to"
        assert float(loss) == pytest.approx(float(loss_and_grad(given)[0]), rel=1e-12)
        theirs.zero_grad()
        (features @ leaf - targets).tanh().square().mean().backward()
        theirs.step()
        assert relative_error(theta - start, leaf.detach() - start) < 1e-12


def test_momentum_and_decay_change_the_result():
    features, targets, theta = problem()
    ends = []
    for momentum, decay in ((0.0, 0.0), (0.9, 0.0), (0.0, 0.05)):
        optimizer, now = SGD(0.1, momentum=momentum, weight_decay=decay), theta
        for _ in range(3):
            now, _ = optimizer.step(now, least_squares(features, targets))
        ends.append(now - theta)
    assert relative_error(ends[1], ends[0]) > 0.1
    assert relative_error(ends[2], ends[0]) > 0.01


@pytest.mark.parametrize("backend", [name for name in backends() if name != "auto"])
def test_gsam_follows_the_reference(golden, backend, monkeypatch):
    if backend == "triton":
        # Interpreted, its kernels would take ten minutes for these sizes; the next test has a smaller network for them.
        triton = pytest.importorskip("pad_fast.engines.triton.engine", reason="the kernels' modules import Triton")
        monkeypatch.setitem(registry._engines, "triton", triton.TritonEngine(triton.Operations(naive=True)))
    case = golden("gsam.npz")
    network = FlatNetwork(ConvNet(width=int(case["width"]), depth=int(case["depth"]), classes=10).double())
    task = Task(network, torch.device("cpu"), torch.float64)
    try:
        with record_backends() as used:
            engine = select(backend, task)
    except BackendError as error:
        pytest.skip(str(error))
    assert used == [backend]
    path = torch.from_numpy(case["theta"])
    images, labels = torch.from_numpy(case["images"]), torch.from_numpy(case["labels"])
    optimizer = GSAM(float(case["lr"]), rho=float(case["rho"]), alpha=float(case["alpha"]))
    theta = path[0]
    assert len(path) == 5
    for step in range(4):
        new, _ = optimizer.step(theta, lambda at, step=step: engine.loss_and_grad(task, at, images[step], labels[step]))
        assert relative_error(new - theta, path[step + 1] - path[step]) < GSAM_TOLERANCE, f"step {step}"
        assert relative_error(new, path[step + 1]) < GSAM_TOLERANCE, f"step {step}"
        theta = new


def test_gsam_with_the_kernels_of_triton(kernel_device):
    module = ConvNet(channels=2, resolution=6, width=5, depth=1, classes=3).double().to(kernel_device)
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 6, 6, generator=draws, dtype=torch.float64).to(kernel_device)
    labels = torch.tensor([2, 0, 1], device=kernel_device)
    task = Task(FlatNetwork(module), kernel_device, torch.float64)
    changes = []
    for backend in ("triton", "autograd"):
        engine, theta = select(backend, task), task.network.initial()
        new, _ = GSAM(0.1, rho=0.3, alpha=0.4).step(
            theta, lambda at, engine=engine: engine.loss_and_grad(task, at, images, labels)
        )
        changes.append(new - theta)
    assert relative_error(*changes) < GSAM_TOLERANCE


def test_gsam_is_its_formula_and_not_sgd():
    features, targets, theta = problem(1)
    loss_and_grad = least_squares(features, targets)
    rho, alpha, lr = 0.7, 0.4, 0.2
    new, loss = GSAM(lr, rho=rho, alpha=alpha).step(theta, loss_and_grad)
    value, g1 = loss_and_grad(theta)
    e = rho * theta**2 * g1 / ((theta.abs() * g1).norm() + 1e-12)
    g2 = loss_and_grad(theta + e)[1]
    c = (g1 @ g2) / (g1.norm() * g2.norm() + 1e-12)
    g = g2 - alpha * (g1 - c * g1.norm() * g2 / (g2.norm() + 1e-12))
    assert relative_error(new - theta, -lr * g) < 1e-12
    assert float(loss) == float(value)
    assert relative_error(new - theta, -lr * g1) > 0.05, "the perturbation does nothing here"
    without_gap = GSAM(lr, rho=rho, alpha=0.0).step(theta, loss_and_grad)[0]
    assert relative_error(new - theta, without_gap - theta) > 0.01, "alpha does nothing here"


def test_gsam_at_a_stationary_point_stays():
    theta = torch.randn(5, dtype=torch.float64)
    new, _ = GSAM(0.1).step(theta, lambda at: (at.sum() * 0, torch.zeros_like(at)))
    assert torch.equal(new, theta)


@pytest.mark.parametrize("make", [lambda: GSAM(0.1, rho=0.3), lambda: SGD(0.1, momentum=0.9, weight_decay=0.05)])
def test_stacked_vectors_step_each_for_itself(make):
    features, targets, _ = problem(2)
    loss_and_grad = least_squares(features, targets)
    start = 0.2 * torch.randn(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def stacked(theta: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = zip(*(loss_and_grad(row) for row in theta), strict=True)
        return torch.stack(losses), torch.stack(gradients)

    optimizer, alone, together = make(), [make() for _ in start], start
    expected = list(start)
    for _ in range(3):
        together, losses = optimizer.step(together, stacked)
        expected, single = zip(
            *(o.step(row, loss_and_grad) for o, row in zip(alone, expected, strict=True)), strict=True
        )
        assert relative_error(losses, torch.stack(single)) < 1e-14
    for row, ours, truth in zip(start, together, expected, strict=True):
        assert relative_error(ours - row, truth - row) < 1e-13
    assert relative_error(together[0] - start[0], together[1] - start[1]) > 0.1


def test_optimizer_by_name():
    gsam, sgd = make_optimizer("gsam", 0.1, rho=0.02, alpha=0.4), make_optimizer("sgd", 0.1)
    assert isinstance(gsam, GSAM) and (gsam.lr, gsam.rho, gsam.alpha) == (0.1, 0.02, 0.4)
    assert isinstance(sgd, SGD) and (sgd.lr, sgd.momentum, sgd.weight_decay) == (0.1, 0.0, 0.0)
    with pytest.raises(ConfigError, match="'gsma'.*Did you mean 'gsam'"):
        make_optimizer("gsma", 0.1)
