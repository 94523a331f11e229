"""What is compared: one small computation for every family of kernels, by the engine and by torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import DSA
from ..engines import Task, select
from ..engines.triton.kernel_forms import on
from ..engines.triton.operations import Operations
from ..matching import ParameterMask, trajectory_matching_loss
from ..matching.gradients import channels_of, match_gradients
from ..models import ConvNet, FlatNetwork

TOLERANCES = {"float64": 1e-9, "ieee": 1e-2, "tf32": 1e-1}
"""Relative L2. In float32 a ReLU whose sign rounding turns around moves a small problem's gradient by up to 1e-2."""

_REPEATED = 1e-6


@dataclass(frozen=True)
class Sizes:
    """Networks and images of a check: enough to reach every kernel, small enough for seconds.

    Attributes:
        blocks: of the first network, whose images have three channels.
        gray: of the second one, whose images have one channel and an odd side.
        bands: of the third one, whose images have so many channels that its first block is like the others.
        images: synthetic ones.
    """

    blocks: dict[str, Any]
    gray: dict[str, Any]
    bands: dict[str, Any]
    images: int


LARGE = Sizes(
    {"channels": 3, "classes": 10, "width": 32, "depth": 3, "resolution": 32},
    {"channels": 1, "classes": 7, "width": 17, "depth": 2, "resolution": 28},
    {"channels": 12, "classes": 4, "width": 16, "depth": 2, "resolution": 16},
    9,
)
SMALL = Sizes(
    {"channels": 3, "classes": 3, "width": 4, "depth": 2, "resolution": 8},
    {"channels": 1, "classes": 2, "width": 3, "depth": 1, "resolution": 9},
    {"channels": 9, "classes": 2, "width": 3, "depth": 1, "resolution": 6},
    5,
)
"""For a CPU, where kernels are interpreted."""


@dataclass(frozen=True)
class Family:
    """One computation.

    Attributes:
        name: kernels and shapes, for the user.
        compute: results by a backend, in a dtype and precision.
        tolerance: relative L2 that replaces the precision's.
        recorded: the results of one call after the other, the first of which runs plainly, are to be equal.
    """

    name: str
    compute: Callable[[str, torch.dtype, str], list[Tensor]]
    tolerance: float | None = None
    recorded: bool = False


def families(device: torch.device, sizes: Sizes) -> Iterator[Family]:
    """All of them, each with results that no other reaches."""
    blocks, gray, bands = sizes.blocks, sizes.gray, sizes.bands
    yield Family(f"a training run, soft labels {_shape(blocks)}", _unroll(device, sizes, blocks, stacked=1))
    yield Family(f"two runs, hard labels {_shape(gray)}", _unroll(device, sizes, gray, stacked=2))
    yield Family(f"a training run, many channels {_shape(bands)}", _unroll(device, sizes, bands, stacked=1))
    yield Family(f"stacked training {_shape(blocks)}", _stacked(device, sizes, blocks))
    yield Family(f"matching of gradients {_shape(gray)}", _matched_gradients(device, sizes, gray))
    yield Family(f"augmentation {_shape(blocks)}", _augment(device, sizes, blocks))
    yield Family(
        f"recorded runs {_shape(gray)}",
        _unroll(device, sizes, gray, stacked=1),
        tolerance=_REPEATED,
        recorded=True,
    )


def _shape(net: dict[str, Any]) -> str:
    return f"({net['channels']}x{net['resolution']}x{net['resolution']}, D{net['depth']} W{net['width']})"


class _Problem:
    """Numbers of a computation, the same in every dtype."""

    def __init__(self, device: torch.device, sizes: Sizes, net: dict[str, Any], stacked: int) -> None:
        self.device, self.net, self.stacked = device, net, stacked
        draws = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draws, dtype=torch.float64)

        sides = (net["channels"], net["resolution"], net["resolution"])
        start = self.network(torch.float64).initial().cpu()
        self.theta = start + 0.3 * start.abs().mean() * normal(stacked, len(start))
        self.target = self.theta + 0.05 * self.theta.abs().mean() * normal(stacked, len(start))
        self.images = normal(sizes.images, *sides) + 0.3
        self.batch = normal(stacked, sizes.images, *sides)
        self.logits = 1.5 * normal(sizes.images, net["classes"])
        self.classes = torch.randint(0, net["classes"], (stacked, sizes.images), generator=draws)
        half = (sizes.images + 1) // 2
        self.batches = [torch.randperm(sizes.images, generator=draws), torch.arange(half)]

    def network(self, dtype: torch.dtype) -> FlatNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return FlatNetwork(ConvNet(**self.net).to(self.device, dtype))

    def there(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)


def _unroll(
    device: torch.device, sizes: Sizes, net: dict[str, Any], *, stacked: int
) -> Callable[[str, torch.dtype, str], list[Tensor]]:
    """The matching loss and its gradients: blocks, first block, head, updates, loss."""
    problem = _Problem(device, sizes, net, stacked)
    soft = stacked == 1

    def compute(backend: str, dtype: torch.dtype, precision: str) -> list[Tensor]:
        given: dict[str, Any] = {
            "theta_start": problem.there(problem.theta, dtype),
            "theta_target": problem.there(problem.target, dtype),
            "images": problem.there(problem.images, dtype).requires_grad_(),
            "labels": problem.there(problem.logits if soft else problem.classes[0], dtype),
            "lr": torch.tensor(0.03, dtype=dtype, device=device, requires_grad=True),
        }
        learned = [given["images"], given["lr"]]
        if soft:
            learned.append(given["labels"].requires_grad_())
        loss = trajectory_matching_loss(
            problem.network(dtype),
            **given,
            batches=problem.batches,
            mask=ParameterMask.depth(0.3) if soft else ParameterMask.loss(0.4),
            backend=backend,
            precision=precision,
        )
        weights = torch.linspace(1, -0.5, len(loss), dtype=dtype, device=device)
        return [loss.detach(), *torch.autograd.grad(loss, learned, weights)]

    return compute


def _stacked(
    device: torch.device, sizes: Sizes, net: dict[str, Any]
) -> Callable[[str, torch.dtype, str], list[Tensor]]:
    """Plain steps of two networks with images of their own, their optimisers and augmentation: as experts train."""
    problem = _Problem(device, sizes, net, stacked=2)

    def compute(backend: str, dtype: torch.dtype, precision: str) -> list[Tensor]:
        task = Task(problem.network(dtype), device, dtype, precision=precision)
        engine = select(backend, task)
        given = [problem.there(each, dtype) for each in (problem.theta, problem.batch, problem.classes)]
        theta, images, _ = given
        losses, g, logits = engine.stacked_loss_grad_logits(task, *given)
        lr = torch.tensor([0.05, 0.02], dtype=dtype, device=device)
        updates, buffer = engine.updates, g.clone()
        draws = [DSA(each).draw(images.shape[1], images.shape[2:], seed=5) for each in ("scale", "crop")]
        # Each step from the same numbers, so that no error grows from one to the next.
        return [
            losses,
            g,
            logits,
            engine.stacked_forward(task, theta, images),
            updates.momentum_sgd(theta, g, buffer, lr, momentum=0.9, weight_decay=5e-3) - theta,
            buffer,
            updates.gsam_ascent(theta, g, rho=0.5) - theta,
            updates.gsam_step(theta, g, g.roll(1, 1), lr, alpha=0.4) - theta,
            engine.augment_each(images, draws),
        ]

    return compute


def _matched_gradients(
    device: torch.device, sizes: Sizes, net: dict[str, Any]
) -> Callable[[str, torch.dtype, str], list[Tensor]]:
    """The distance of gradient matching and its gradient in the synthetic images, of two classes."""
    problem = _Problem(device, sizes, net, stacked=2)

    def compute(backend: str, dtype: torch.dtype, precision: str) -> list[Tensor]:
        network = problem.network(dtype)
        task = Task(network, device, dtype, precision=precision)
        real = problem.there(problem.batch, dtype)
        theta, synthetic = problem.there(problem.theta, dtype)[0], real.flip(0)[:, :2] + 0.5
        channels = channels_of(network, ParameterMask.none())
        return [*match_gradients(select(backend, task), task, theta, list(real), synthetic, channels)]

    return compute


def _augment(
    device: torch.device, sizes: Sizes, net: dict[str, Any]
) -> Callable[[str, torch.dtype, str], list[Tensor]]:
    """Every operation of DSA, and its transpose. The draws are of the engine's own kind, so torch's are its twins'."""
    problem = _Problem(device, sizes, net, stacked=1)

    def compute(backend: str, dtype: torch.dtype, precision: str) -> list[Tensor]:
        augment = Operations(naive=backend != "triton").augment
        images = problem.there(problem.images, dtype)
        found = []
        with on(device):
            for operation in ("color", "crop", "cutout", "flip", "scale", "rotate"):
                table = augment.draw(
                    torch.tensor(3, device=device),
                    steps=1,
                    batch=sizes.images,
                    shape=tuple(images.shape[1:]),
                    strategy=operation,
                    siamese=False,
                )
                found += [augment.apply(images, table[0, 0]), augment.transpose(images, table[0, 0])]
        return found

    return compute
