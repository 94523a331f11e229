"""Scripts keep the loss of every iteration, to log it: what it keeps in turn, before and after it was pulled back."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from pad_fast import ConvNet, trajectory_matching_loss
from pad_fast.models import FlatNetwork

from ..support.native import require_native
from .test_loss import make_problem


def large_tensors(numbers: int) -> int:
    """Storages of at least so many float64 numbers that some living tensor has."""
    gc.collect()
    living = [each for each in gc.get_objects() if type(each) is Tensor and each.dtype == torch.float64]
    return len({t.untyped_storage().data_ptr() for t in living if t.untyped_storage().nbytes() >= 8 * numbers})


@pytest.mark.parametrize("backend", ["cpu", "autograd"])
@pytest.mark.parametrize("cache", [0, "auto"])
def test_a_loss_that_was_pulled_back_keeps_no_trajectory(backend, cache):
    """A second pull needs `retain_graph`, as anywhere in torch."""
    if backend == "cpu":
        require_native()
    steps, network = 40, FlatNetwork(ConvNet(channels=1, width=4, depth=1, resolution=4, classes=3))
    count = network.parameter_count
    draws = torch.Generator().manual_seed(0)
    start, target = (0.3 * torch.randn(count, generator=draws, dtype=torch.float64) for _ in range(2))
    images = torch.randn(6, 1, 4, 4, generator=draws, dtype=torch.float64).requires_grad_()
    labels = torch.randn(6, 3, generator=draws, dtype=torch.float64)

    def loss() -> Tensor:
        batches = [torch.arange(6)] * steps
        options = {"batches": batches, "backend": backend, "cache": cache}
        return trajectory_matching_loss(network, start, target, images, labels, 0.1, **options).sum()

    before = large_tensors(steps * count)
    kept = loss()
    kept.backward(retain_graph=True)
    once, images.grad = images.grad.clone(), None
    kept.backward()
    # What was cached for the first pull is recomputed for the second.
    torch.testing.assert_close(images.grad, once, rtol=1e-12, atol=0)
    assert large_tensors(steps * count) == before
    with pytest.raises(RuntimeError, match="second time"):
        kept.backward()


@pytest.mark.parametrize("backend", ["cpu", "autograd"])
def test_a_loss_that_was_pulled_back_keeps_no_network(backend):
    """Scripts build a new one in every iteration; a retained graph needs it, also where hooks copy what is saved."""
    if backend == "cpu":
        require_native()
    problem = make_problem()
    module, alive = problem.pop("model"), []
    x = problem["images"].requires_grad_()
    (expected,) = torch.autograd.grad(trajectory_matching_loss(module, **problem, backend=backend), x)
    for hooks in (nullcontext, torch.autograd.graph.save_on_cpu):
        fresh = copy.deepcopy(module)
        gone = weakref.ref(fresh)
        with hooks():
            loss = trajectory_matching_loss(fresh, **problem, backend=backend)
        del fresh
        for retain in (True, True, False):
            assert gone() is not None
            assert torch.equal(torch.autograd.grad(loss, x, retain_graph=retain)[0], expected)
        gc.collect()
        alive.append(gone() is not None)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, x)
    assert not alive[0]
