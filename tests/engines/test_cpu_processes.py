"""The native engine beside itself: forked children, workers of a data loader, several Python threads at once."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pad_fast import ConvNet, trajectory_matching_loss
from pad_fast.models import FlatNetwork

from ..support.native import require_native

STEPS = [torch.arange(40), torch.arange(40).flip(0), torch.arange(7)]


@pytest.fixture(autouse=True)
def _two_threads():
    require_native()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradient(seed: int = 0) -> Tensor:
    """In the images; large enough for the engine's own threads."""
    draws = torch.Generator().manual_seed(seed)
    network = FlatNetwork(ConvNet(width=32, depth=2, resolution=16))
    theta = 0.1 * torch.randn(network.parameter_count, generator=draws)
    target = theta + 0.1 * torch.randn(theta.shape, generator=draws)
    images = torch.randn(40, 3, 16, 16, generator=draws).requires_grad_()
    labels = torch.randn(40, 10, generator=draws)
    loss = trajectory_matching_loss(network, theta, target, images, labels, 0.1, batches=STEPS, backend="cpu")
    return torch.autograd.grad(loss.sum(), images)[0]


def put(results: Any, seed: int) -> None:
    torch.set_num_threads(2)
    results.put(gradient(seed).numpy())


def test_a_forked_child_computes_what_its_parent_does():
    """Whose threads it has not; its own are started, in a child of a child as well."""
    expected = gradient()
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def again() -> None:
        put(results, 0)
        grandchild = context.Process(target=put, args=(results, 0))
        grandchild.start()
        grandchild.join()

    child = context.Process(target=again)
    child.start()
    found = [torch.from_numpy(results.get(timeout=120)) for _ in range(2)]
    child.join(120)
    assert child.exitcode == 0 and all(torch.equal(each, expected) for each in found)
    assert torch.equal(gradient(), expected), "and the parent goes on"


class Gradients(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return gradient(index)


def test_workers_of_a_data_loader():
    """They have one thread each, so sums are in another order."""
    expected = [gradient(seed) for seed in range(4)]
    found = list(DataLoader(Gradients(), batch_size=None, num_workers=2))
    for got, truth in zip(found, expected, strict=True):
        assert float((got - truth).norm() / truth.norm()) < 1e-5


def test_calls_from_several_python_threads_at_once_are_those_in_turn():
    expected = [gradient(seed) for seed in range(4)]
    found: queue.Queue[tuple[int, Tensor]] = queue.Queue()

    def run(seed: int) -> None:
        torch.set_num_threads(2)  # a setting of each thread
        for _ in range(5):
            found.put((seed, gradient(seed)))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [found.get_nowait() for _ in range(20)]
    assert all(torch.equal(got, expected[seed]) for seed, got in results)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to choose cores here")
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_who_takes_a_list_of_images_makes_no_difference(threads):
    """One core for all threads, as many as there are, and others who want them: the same bits."""
    torch.set_num_threads(threads)
    cores = os.sched_getaffinity(0)
    expected = gradient()
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert torch.equal(gradient(), expected)
    finally:
        os.sched_setaffinity(0, cores)
    busy = [multiprocessing.get_context("spawn").Process(target=keep_busy, daemon=True) for _ in cores]
    for process in busy:
        process.start()
    try:
        assert all(torch.equal(gradient(), expected) for _ in range(3))
    finally:
        for process in busy:
            process.kill()


def keep_busy() -> None:
    while True:
        pass
