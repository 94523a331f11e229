"""Ordinary training on a GPU: epochs, several networks at once, experts, no waiting."""

from __future__ import annotations

import pytest
import torch

from pad_fast import DSA, ConvNet, train_experts
from pad_fast.engines import Task, select
from pad_fast.models import FlatNetwork
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import generator
from pad_fast.scoring.forgetting import Forgetting
from pad_fast.training.optimizers import GSAM, SGD
from pad_fast.training.trainer import Trainer, TrainingStreams

from ...support.comparison import relative_error
from ...support.gpu import DOUBLE, GPU, STEP, assert_same, needs_gpu
from ...support.small import QUIET, small_data

pytestmark = needs_gpu


@pytest.mark.parametrize("make", [lambda: GSAM(0.05), lambda: SGD(0.05, momentum=0.9, weight_decay=5e-4)])
def test_whole_epochs(engine, make):
    draws = torch.Generator().manual_seed(3)
    images = torch.randn(70, 3, 32, 32, generator=draws).to(GPU)
    labels = torch.randint(0, 10, (70,), generator=draws).to(GPU)
    ends = []
    for backend in ("triton", "autograd"):
        torch.manual_seed(0)
        net = FlatNetwork(ConvNet(width=32))
        trainer = Trainer(net, device=GPU, backend=backend, precision="ieee" if backend == "triton" else "auto")
        start, optimizer = trainer.theta, make()
        for _ in range(3):
            trainer.epoch(images, labels, torch.arange(70, device=GPU).split(32), optimizer)
        ends.append(trainer.theta - start)
        logits = trainer.logits(images)
        assert list(logits.shape) == [70, 10]
    assert relative_error(ends[0], ends[1]) < 1e-2


@pytest.mark.parametrize("shared", [False, True], ids=["own images", "shared images"])
def test_networks_trained_together_equal_one_by_one(engine, shared):
    network = FlatNetwork(ConvNet(width=32).to(GPU, torch.float64))
    task = Task(network, GPU, torch.float64)
    draws = torch.Generator().manual_seed(4)
    theta = network.initial() + 0.01 * torch.randn(3, network.parameter_count, generator=draws).to(GPU)
    images = torch.randn(1 if shared else 3, 17, 3, 32, 32, generator=draws).to(GPU).expand(3, -1, -1, -1, -1).double()
    labels = torch.randint(0, 10, (3, 17), generator=draws).to(GPU)
    alone = [select("autograd", task).loss_grad_logits(task, *one) for one in zip(theta, images, labels, strict=True)]
    truth = [torch.stack(parts) for parts in zip(*alone, strict=True)]
    for _ in range(3):  # plainly, recorded, replayed
        assert_same(list(engine.stacked_loss_grad_logits(task, theta, images, labels)), truth, DOUBLE)
    assert relative_error(engine.stacked_forward(task, theta, images), truth[2]) < DOUBLE


@pytest.mark.parametrize("optimizer", ["gsam", "sgd"])
def test_experts_together_equal_one_by_one(engine, tmp_path, monkeypatch, optimizer):
    """With augmentation by one kernel, against torch."""
    monkeypatch.setattr("pad_fast.engines.triton.engine.PRECISIONS", {"auto": "ieee"})
    settings = {"model": "ConvNetD2W32", "experts": 5, "epochs": 2, "batch": 10, "lr": 0.02, "optimizer": optimizer}
    stores = [
        train_experts(small_data(), out=tmp_path / name, device="cuda", backend=name, progress=QUIET, **settings)
        for name in ("triton", "autograd")
    ]
    for index in range(5):
        moved = [store.snapshot(index, 2) - store.snapshot(index, 0) for store in stores]
        assert relative_error(*moved) < STEP["ieee"]
    assert len(engine._limits) == 1, "the engine trained them"


def test_training_together_does_not_wait_for_the_gpu(engine):
    spec = NetworkSpec("ConvNetW32", 3, 10, 32)
    draws = torch.Generator().manual_seed(3)
    images = torch.randn(70, 3, 32, 32, generator=draws).to(GPU)
    labels = torch.randint(0, 10, (70,), generator=draws).to(GPU)
    for count in (1, 4):
        trainer = Trainer([spec.build(0, k) for k in range(count)], device=GPU, backend="triton")
        drawn = TrainingStreams(trainer, [generator(0, k) for k in range(count)], DSA())
        forgetting = Forgetting(labels, 4, networks=count if trainer.stacked else None)
        everything, optimizer = torch.arange(70, device=GPU), GSAM(0.05)
        for epoch in range(12):
            if epoch == 11:  # every operation of DSA was seen, and every shape recorded
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                batches = drawn.batches(everything, 32)
                trainer.epoch(images, labels, batches, optimizer, drawn.augment, forgetting.observe)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert bool(trainer.theta.isfinite().all())
