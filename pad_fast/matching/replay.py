"""A step evaluated again in the reverse pass sees what it saw in the forward pass, or the run is refused.

Everything is written into tensors made at the start: small ones that outlive the large temporaries around them would
pin the heap and make memory grow with T after all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..engines import Augment, Augmentation, Wants
from ..errors import InputError


class RewoundGenerators:
    """The states of torch's default generators at every step, which its second evaluation starts from again."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device = device
        self.states = [torch.empty(steps, len(state), dtype=torch.uint8) for state in self._state()]

    def remember(self, step: int) -> None:
        """Ahead of a step's first evaluation."""
        for kept, state in zip(self.states, self._state(), strict=True):
            kept[step] = state

    def rewind(self, step: int) -> None:
        """Ahead of its second one."""
        # torch ignores the offset of a view here, hence the clones.
        self._set([kept[step].clone() for kept in self.states])

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The caller's generators continue afterwards as if nothing had been drawn inside."""
        present = self._state()
        try:
            yield
        finally:
            self._set(present)

    def _state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)


class RecordedAugmentation(Augmentation):
    """Any differentiable callable, pulled back by autograd.

    A callable that draws from anywhere but torch's default generators would silently give a wrong gradient; a weighted
    sum of every augmented batch exposes it.
    """

    def __init__(self, augment: Augment, device: torch.device, steps: int) -> None:
        self.augment = augment
        self.graph: tuple[Tensor, Tensor] | None = None
        self.sums = torch.zeros(steps, dtype=torch.float64, device=device)
        self.again_sums = torch.zeros_like(self.sums)
        self.tolerances = torch.zeros_like(self.sums)

    def forward(self, step: int, images: Float[Tensor, "N ..."], batch: Int[Tensor, " B"]) -> Tensor:
        augmented = self.augment(images.index_select(0, batch), step)
        self.sums[step] = self.again_sums[step] = _weighted_sum(augmented)
        self.tolerances[step] = 1e-6 * (augmented.numel() + 1)
        return augmented

    def again(self, step: int, images: Float[Tensor, "N ..."], batch: Int[Tensor, " B"], wants: Wants) -> Tensor:
        with torch.set_grad_enabled(wants.images):
            images = images.index_select(0, batch).detach().requires_grad_(wants.images)
            augmented = self.augment(images, step)
        if wants.images and not augmented.requires_grad:
            raise InputError(
                "augment returned images that do not depend on its input (detached, or computed without autograd); "
                "it must be differentiable for gradients to reach the images"
            )
        self.graph = augmented, images
        self.again_sums[step] = _weighted_sum(augmented)
        return augmented.detach()

    def pull(self, step: int, grad: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        assert self.graph is not None  # again() ran
        (augmented, images), self.graph = self.graph, None
        return torch.autograd.grad(augmented, images, grad)[0]

    def end(self) -> None:
        """One comparison for all steps, because looking at a value on a GPU waits for it.

        Raises:
            InputError: a step's images were not the same the second time.
        """
        wrong = (self.again_sums - self.sums).abs() > self.tolerances
        if bool(wrong.any()):
            raise InputError(
                f"augment gave other images when step {int(wrong.nonzero()[0])} was evaluated again for the gradient; "
                "it must be a pure function of (images, step), or draw only from torch's default generators"
            )


def _weighted_sum(images: Tensor) -> Float[Tensor, ""]:
    values = images.detach().reshape(-1).double()
    # Unequal weights, because a mirrored image has the same plain sum.
    return values @ torch.linspace(0.5, 1.5, len(values), dtype=values.dtype, device=values.device)
