"""Ordinary training on the Triton engine with the kernels' naive twins: steps, logits, several networks at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pad_fast import ConvNet
from pad_fast.engines import Engine, Task, select
from pad_fast.models import FlatNetwork
from pad_fast.runtime import extension
from pad_fast.training.optimizers import GSAM, SGD
from pad_fast.training.trainer import Trainer

from ...support.comparison import describe_difference, relative_error
from ...support.small import NETS
from ...support.triton import (
    CPU,
    STEP,
    batch_of,
    make,
)

pytest.importorskip("triton", reason="the kernels' modules import Triton")


def test_training_steps_and_logits(recording):
    network, theta = make("gray28")
    task = Task(network, CPU, torch.float64)
    ours, truth = select("triton", task), select("autograd", task)
    for hard in (True, False):
        for seed in range(4):
            images, labels = batch_of("gray28", 5, hard=hard, seed=seed)
            loss, gradient = ours.loss_and_grad(task, theta[0], images, labels)
            expected_loss, expected = truth.loss_and_grad(task, theta[0], images, labels)
            assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
            assert relative_error(gradient, expected) < STEP
            logits = ours.loss_grad_logits(task, theta[0], images, labels)[2]
            assert relative_error(logits, truth.forward(task, theta[0], images)) < STEP
    assert recording.graphs.recorded == 2
    assert relative_error(ours.forward(task, theta[0], images), truth.forward(task, theta[0], images)) < STEP


def stacked_step_of(engine: Engine, task: Task, *, shared: bool, hard: bool) -> list[tuple[Tensor, Tensor]]:
    """(together, one by one) for losses, gradients and logits of a step and for the logits of a forward pass."""
    theta = task.network.initial()
    theta = torch.stack([theta + 0.1 * k * theta.abs().mean() * torch.randn_like(theta) for k in range(3)])
    batches = [batch_of("gray28", 5, hard=hard, seed=0 if shared else k) for k in range(3)]
    images = batches[0][0].expand(3, -1, -1, -1, -1) if shared else torch.stack([x for x, _ in batches])
    labels = torch.stack([y for _, y in batches])
    together = (
        *engine.stacked_loss_grad_logits(task, theta, images, labels),
        engine.stacked_forward(task, theta, images),
    )
    truth = select("autograd", task)
    alone = [
        (*truth.loss_grad_logits(task, *one), truth.forward(task, *one[:2]))
        for one in zip(theta, images, labels, strict=True)
    ]
    return list(zip(together, (torch.stack(parts) for parts in zip(*alone, strict=True)), strict=True))


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("shared", [False, True], ids=["own images", "shared images"])
def test_networks_trained_together_equal_one_by_one(recording, monkeypatch, shared, hard):
    network, _ = make("gray28")
    task = Task(network, CPU, torch.float64)
    for part in (1 << 40, recording._steps(task).working_bytes(3, 3, 8)):
        monkeypatch.setattr("pad_fast.engines.triton.engine._WORKING_BYTES", part)
        for _ in range(3):  # plainly, recorded, replayed
            for ours, truth in stacked_step_of(recording, task, shared=shared, hard=hard):
                assert ours.shape == truth.shape
                for got, expected in zip(ours, truth, strict=True):
                    assert relative_error(got, expected) < STEP, describe_difference(got, expected)
        recording.graphs.clear()
    assert recording._part(task, torch.empty(3, 5, 1, dtype=torch.float64)) == 3, "the second time in parts of 3 and 2"


def test_every_engine_trains_networks_together():
    network, _ = make("gray28")
    for backend in ("cpu", "autograd"):
        if backend == "cpu" and not extension.available():
            continue
        task = Task(network, CPU, torch.float64)
        for ours, truth in stacked_step_of(select(backend, task), task, shared=False, hard=True):
            assert relative_error(ours, truth) < STEP


@pytest.mark.parametrize("optimizer", [GSAM(0.05, rho=0.02, alpha=0.4), SGD(0.05, momentum=0.9, weight_decay=1e-3)])
def test_whole_epochs(recording, monkeypatch, optimizer):
    images, labels = batch_of("digits", 11, hard=True)
    ends = []
    for backend in ("triton", "autograd"):
        torch.manual_seed(0)
        net = FlatNetwork(ConvNet(**NETS["digits"]))
        trainer = Trainer(net, device=CPU, backend=backend)
        optimizer._buffer = None
        for _ in range(6):
            batches = torch.arange(11).split(4)
            trainer.epoch(images.float(), labels, batches, optimizer)
        ends.append(trainer.theta - net.initial())
    assert relative_error(ends[0], ends[1]) < 1e-4
    assert recording.graphs.recorded == 2, "the usual batch and the short last one"
