"""The matching loss layer by layer: it adds up to the loss of the loop, and looking changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pad_fast import DSA, ParameterMask, network, trajectory_matching_loss
from pad_fast.matching import layer_distances, student_end
from pad_fast.models import FlatNetwork

BATCHES = [torch.tensor([0, 3, 5]), torch.tensor([1, 2]), torch.tensor([4, 0, 6, 2])]


def problem(dtype: torch.dtype = torch.float64):
    torch.manual_seed(3)
    draws = torch.Generator().manual_seed(3)
    net = FlatNetwork(network("ConvNetD2W5", channels=1, classes=3, resolution=8).to(dtype))
    start = net.initial() + 0.1 * torch.randn(net.parameter_count, generator=draws, dtype=dtype)
    target = start + 0.02 * torch.randn(net.parameter_count, generator=draws, dtype=dtype)
    images = torch.randn(7, 1, 8, 8, generator=draws, dtype=dtype)
    labels = torch.randn(7, 3, generator=draws, dtype=dtype)
    return net, start, target, images, labels, torch.tensor(0.03, dtype=dtype)


@pytest.mark.parametrize("backend", ["autograd", "auto"])
def test_the_layers_make_up_the_matching_loss(backend):
    """Weighted by what the expert moved in each layer, the distances sum to the loss; a mask keeps its layers."""
    net, start, target, images, labels, lr = problem()
    augment = DSA("crop_flip_scale").seeded(11)
    options = {"batches": BATCHES, "augment": augment, "backend": backend}
    end = student_end(net, start, images, labels, lr, **options)
    distances = layer_distances(net, end, start, target)
    assert list(distances) == ["features.0", "features.4", "classifier"]
    assert len({round(value, 3) for value in distances.values()}) == 3, "the layers should differ"
    bounds = [*net.layer_starts(), net.parameter_count]
    moved = [float((start - target)[a:b].square().sum()) for a, b in zip(bounds, bounds[1:], strict=False)]
    for dropped in (0, 1, 2):
        loss = trajectory_matching_loss(
            net, start, target, images, labels, lr, mask=ParameterMask.layers(dropped), **options
        )
        kept = list(zip(distances.values(), moved, strict=True))[dropped:]
        assert sum(d * m for d, m in kept) / sum(m for _, m in kept) == pytest.approx(float(loss), rel=1e-9)


def test_looking_leaves_generators_and_buffers_alone():
    """A network that draws (dropout) and counts (batch norm) gives the same run whether or not it was looked at."""
    draws = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    net = FlatNetwork(module.train())
    images, labels = torch.randn(7, 1, 3, 3, generator=draws), torch.randn(7, 3, generator=draws)
    mean, state = module[2].running_mean.clone(), torch.get_rng_state()
    end = student_end(net, net.initial(), images, labels, torch.tensor(0.1), batches=BATCHES, backend="autograd")
    assert not torch.equal(end, net.initial())
    assert torch.equal(module[2].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_the_expert_did_not_move_is_left_out():
    net, start, target, *_ = problem()
    first, second, _ = net.layer_starts()
    target = target.clone()
    target[first:second] = start[first:second]
    assert list(layer_distances(net, target + 0.5, start, target)) == ["features.4", "classifier"]
