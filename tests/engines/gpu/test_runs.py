"""Whole runs on a GPU: the engine by its name, the pipeline, and the criteria of single batches."""

from __future__ import annotations

import json

import pytest
import torch

import pad_fast
from pad_fast import ConvNet, ParameterMask
from pad_fast.engines import Task, record_backends, select
from pad_fast.kernels.launch import counting
from pad_fast.matching.distributions import match_distributions
from pad_fast.matching.gradients import channels_of, match_gradients
from pad_fast.models import FlatNetwork

from ...support.comparison import describe_difference, relative_error
from ...support.gpu import DOUBLE, GPU, needs_gpu
from ...support.settings import SMALL as SETTINGS

pytestmark = needs_gpu


def test_it_must_be_asked_for():
    task = Task(FlatNetwork(ConvNet(width=4)), GPU, torch.float32)
    with record_backends() as used:
        select("auto", task)
        select("triton", task)
    assert used == ["autograd", "triton"]


def test_distilling_on_the_gpu(tmp_path):
    results = []
    for name in ("a", "b"):
        with record_backends() as used:
            results.append(
                pad_fast.distill("digits", out=tmp_path / name, device="cuda", backend="triton", seed=1, **SETTINGS)
            )
        assert set(used) == {"triton"}
    assert relative_error(results[0].images, results[1].images) < 1e-4, "the same seed gives the same images"
    assert bool(results[0].images.isfinite().all())


@pytest.mark.parametrize("backend", ["autograd", "triton"])
def test_gradient_and_distribution_matching_on_the_gpu(backend):
    torch.manual_seed(0)
    module = ConvNet(width=16, depth=2, resolution=16, classes=3).double()
    network = FlatNetwork(module)
    theta, channels = network.initial(), channels_of(network, ParameterMask.layers(1))
    real = [torch.randn(6, 3, 16, 16, dtype=torch.float64) for _ in range(3)]
    made = torch.randn(3, 2, 3, 16, 16, dtype=torch.float64)
    task = Task(network, torch.device("cpu"), torch.float64, "exact")
    engine = select("autograd", task)
    truth = match_gradients(engine, task, theta, real, made, channels)
    truth += match_distributions(engine, task, theta, real, made, (1, 2))
    module.to(GPU)
    there = Task(FlatNetwork(module), GPU, torch.float64, "exact")
    engine = select(backend, there)
    moved = (theta.to(GPU), [images.to(GPU) for images in real], made.to(GPU))
    with counting() as count:
        mine = match_gradients(engine, there, *moved, channels)
    assert "_distance_kernel" in [name for name, _ in count.launches]
    mine += match_distributions(engine, there, *moved, (1, 2))
    for actual, expected in zip(mine, truth, strict=True):
        assert relative_error(actual, expected) < DOUBLE, describe_difference(actual, expected)


@pytest.mark.parametrize("method", ["dsa", "dm"])
def test_distilling_by_batches_on_the_gpu(tmp_path, method):
    settings = {"method": method, "model": "ConvNetD2W16", "ipc": 2, "iterations": 12, "eval_networks": 1}
    result = pad_fast.distill(out=tmp_path, device="cuda", eval_epochs=20, eval_baselines=False, **settings)
    assert [row["iteration"] for row in result.history] == list(range(12))  # some are begun before others are settled
    assert result.images.device.type == "cpu" and bool(result.images.isfinite().all())


def test_metrics_do_not_depend_on_when_losses_are_looked_at(tmp_path, monkeypatch):
    for late in (0, 8):
        monkeypatch.setattr("pad_fast.distillation.trajectory_matching.LATE", late)
        pad_fast.distill("digits", out=tmp_path / str(late), device="cuda", backend="triton", seed=2, **SETTINGS)
    early, late = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("0", "8")
    )
    assert len(early) == SETTINGS["iterations"]
    for a, b in zip(early, late, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
