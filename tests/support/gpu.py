"""Problems for the Triton engine on a GPU, and the mark of the tests that need one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pad_fast import ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.models import FlatNetwork

from .comparison import describe_difference, relative_error


def _missing() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return None


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(_missing() is not None, reason=str(_missing()))]

GPU = torch.device("cuda")

# Relative L2 by dtype and precision. Single float32 steps, against the same step in float64: one ReLU whose sign
# rounding turns around moves a small problem's gradients by up to 1e-2; the coarser the precision, the more there are.
DOUBLE = 1e-9

STEP = {"ieee": 1e-2, "tf32": 1e-1, "bf16": 3e-1}

SOME = ("images", "labels", "lr")

CIFAR: dict[str, Any] = {"width": 128, "depth": 3}

SMALL: dict[str, Any] = {"channels": 1, "resolution": 8, "depth": 2, "width": 16}


def problem_of(
    net: dict[str, Any],
    *,
    count: int = 9,
    steps: int = 4,
    stacked: int = 1,
    hard: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Arguments of one call with nothing degenerate, on the GPU; batches of uneven sizes."""
    torch.manual_seed(seed)
    network = FlatNetwork(ConvNet(**net).to(GPU, dtype))
    draws = torch.Generator().manual_seed(seed + 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64).to(GPU, dtype)

    theta = network.initial()
    theta = theta + 0.3 * theta.abs().mean() * normal(stacked, len(theta))
    config = ConvNet(**net).config
    labels = torch.randint(0, config.classes, (count,), generator=draws).to(GPU)
    return {
        "model": network,
        "theta_start": theta,
        "theta_target": theta + 0.05 * theta.abs().mean() * normal(*theta.shape),
        "images": normal(count, config.channels, config.resolution, config.resolution) + 0.3,
        "labels": labels if hard else 1.5 * normal(count, config.classes),
        "lr": torch.tensor(0.02 + 0.001 * seed, dtype=dtype, device=GPU),
        "batches": [
            torch.randperm(count, generator=draws)[: max(1, count - step % 3 * (count // 3))] for step in range(steps)
        ],
        "mask": ParameterMask.depth(0.3),
    }


def gradients(problem: dict[str, Any], **options: Any) -> list[Tensor]:
    problem = {**problem, **options}
    wanted = [name for name in SOME if problem[name].is_floating_point()]
    for name in wanted:
        problem[name] = problem[name].detach().clone().requires_grad_()
    loss = trajectory_matching_loss(problem.pop("model"), **problem)
    weight = torch.linspace(1, -0.5, len(loss), dtype=loss.dtype, device=loss.device)
    return [loss.detach(), *torch.autograd.grad(loss, [problem[name] for name in wanted], weight)]


def assert_same(ours: list[Tensor], truth: list[Tensor], tolerance: float) -> None:
    for index, (got, expected) in enumerate(zip(ours, truth, strict=True)):
        assert float(expected.norm()) > 0, "a zero gradient proves nothing"
        assert relative_error(got, expected) < tolerance, f"{index}: " + describe_difference(got, expected)
