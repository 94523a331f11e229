"""Kernels in the place of what the other engines do in plain torch: distances, updates, augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...data.augment import SeededDSA
from ...models.flat import Channels
from ...models.updates import Updates
from ...runtime.device import sent
from ...runtime.shapes import Float, Int
from ..base import Augmentation, Wants
from .operations import AugmentOperations, Operations


class KernelDistance:
    """The matching loss by the kernels of `pad_fast.kernels.matching`."""

    def __init__(self, operations: Callable[[], Operations]) -> None:
        self.operations = operations

    def value(
        self,
        end: Float[Tensor, "K P"],
        start: Float[Tensor, "K P"],
        target: Float[Tensor, "K P"],
        *,
        first_kept: int,
        dropped: int,
    ) -> Float[Tensor, " K"]:
        """`[K]`."""
        with on(end.device):
            return self.operations().matching.distance(end, start, target, first_kept=first_kept, dropped=dropped)

    def gradients(
        self,
        end: Float[Tensor, "K P"],
        start: Float[Tensor, "K P"],
        target: Float[Tensor, "K P"],
        grad: Float[Tensor, " K"],
        wants: Wants,
        *,
        first_kept: int,
        dropped: int,
    ) -> tuple[Float[Tensor, "K P"], Float[Tensor, "K P"] | None, Float[Tensor, "K P"] | None]:
        """Gradients in `end`, `start` and `target`."""
        with on(end.device):
            v, for_start, for_target = self.operations().matching.distance_gradients(
                end,
                start,
                target,
                grad,
                first_kept=first_kept,
                dropped=dropped,
                wants=(True, wants.theta, wants.target),
            )
        assert v is not None  # it was asked for
        return v, for_start, for_target


class KernelGradientDistance:
    """The distance of gradient matching by the kernel of `pad_fast.kernels.gradient_distance`."""

    def __init__(self, operations: Callable[[], Operations]) -> None:
        self.operations = operations

    def value_and_direction(
        self, real: Float[Tensor, "G P"], synthetic: Float[Tensor, "G P"], channels: Sequence[Channels]
    ) -> tuple[Float[Tensor, " G"], Float[Tensor, "G P"]]:
        """One launch reads both gradients and writes the direction."""
        from ...kernels.gradient_distance import table  # here, so that only its use imports Triton

        where = table(tuple(channels), real.shape[1], real.device)
        with on(real.device):
            distance, v = self.operations().gradient_distance.distance_and_direction(
                real.contiguous(), synthetic.contiguous(), where
            )
        return distance, v


class KernelUpdates(Updates):
    """Steps on parameter vectors by the kernels of `pad_fast.kernels.update`."""

    def __init__(self, operations: Callable[[], Operations]) -> None:
        self.operations = operations

    def sgd(self, theta: Tensor, *args: Any, **options: Any) -> Tensor:
        """One pass."""
        return self._run("sgd", theta, *args, **options)

    def momentum_sgd(self, theta: Tensor, *args: Any, **options: Any) -> Tensor:
        """One pass."""
        return self._run("momentum_sgd", theta, *args, **options)

    def gsam_ascent(self, theta: Tensor, *args: Any, **options: Any) -> Tensor:
        """A pass for the norm and one for the point."""
        return self._run("gsam_ascent", theta, *args, **options)

    def gsam_step(self, theta: Tensor, *args: Any, **options: Any) -> Tensor:
        """A pass for the norms and one for the step."""
        return self._run("gsam_step", theta, *args, **options)

    def _run(self, name: str, theta: Tensor, *args: Any, **options: Any) -> Tensor:
        with on(theta.device):
            result: Tensor = getattr(self.operations().update, name)(theta, *args, **options)
        return result


class KernelDSA(Augmentation):
    """DSA drawn on the device from one number, so that nothing of it changes the operations of a run."""

    def __init__(
        self, operations: AugmentOperations, augment: SeededDSA, sizes: Sequence[int], images: Float[Tensor, "N C H W"]
    ) -> None:
        self.operations, self.dsa = operations, augment.augmentation
        self.sizes, self.shape, self.device = tuple(sizes), tuple(images.shape[1:]), images.device
        self.places = [augment.place(size, step) for step, size in enumerate(sizes)]
        self.key = ("dsa", self.dsa.operations, self.dsa.siamese)
        self.seed = sent(torch.tensor(augment.seed, dtype=torch.int64), images.device)

    def begin(self, seed: Int[Tensor, ""] | None) -> None:
        assert seed is not None  # it is this object's own
        with on(self.device):
            self.table = self.operations.draw(
                seed,
                steps=len(self.sizes),
                batch=max(whole for whole, _ in self.places),
                shape=self.shape,
                strategy=self.dsa.strategy,
                siamese=self.dsa.siamese,
            )

    def forward(
        self, step: int, images: Float[Tensor, "N C H W"], batch: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        with on(self.device):
            return self.operations.apply(images, self._row(step), index=batch)

    def again(
        self, step: int, images: Float[Tensor, "N C H W"], batch: Int[Tensor, " B"], wants: Wants
    ) -> Float[Tensor, "B C H W"]:
        return self.forward(step, images, batch)

    def pull(self, step: int, grad: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        with on(self.device):
            return self.operations.transpose(grad, self._row(step))

    def _row(self, step: int) -> Tensor:
        first = self.places[step][1]
        return self.table[step, 0, first : first + self.sizes[step]]


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels start on torch's current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
