"""The sizes that published settings launch kernels with, for the lists of what is compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH = 128
_FIRST = 3 * 9 * WIDTH + 3 * WIDTH  # parameters of the first block: filters, bias, scale and shift
_LATER = WIDTH * 9 * WIDTH + 3 * WIDTH


@dataclass(frozen=True)
class Sizes:
    """A ConvNet of 128 channels on as many colour images at once.

    Attributes:
        side: of the images, 32 (three blocks) or 64 (four).
        batch: images at a time, of each of the trajectories or networks.
        training: whether these are plain steps alone, of networks that have images of their own.
        hard: whether labels are classes.
    """

    side: int
    classes: int
    batch: int
    trajectories: int = 1
    precision: str = "tf32"
    training: bool = False
    hard: bool = False

    @property
    def name(self) -> str:
        """In a few words."""
        many = f"{self.trajectories} {'networks' if self.training else 'trajectories'}, " * (self.trajectories > 1)
        otherwise = f", {self.precision}" * (self.precision != "tf32") + ", training" * self.training
        return f"{self.side} px, {self.classes} classes, {many}batch {self.batch}{otherwise}"

    @property
    def maps(self) -> tuple[int, ...]:
        """Sides of the later blocks' maps."""
        return (16, 8) if self.side == 32 else (32, 16, 8)

    @property
    def later(self) -> tuple[int, ...]:
        """Where the later blocks' parameters begin."""
        return tuple(_FIRST + block * _LATER for block in range(len(self.maps)))

    @property
    def classifier(self) -> int:
        """Where the classifier begins; its features are maps of 4 x 4."""
        return _FIRST + len(self.maps) * _LATER

    @property
    def parameters(self) -> int:
        """Of a network."""
        return self.classifier + self.classes * (16 * WIDTH + 1)


UNROLLED = (
    *(Sizes(32, 10, batch) for batch in (10, 100, 500, 1000)),
    *(Sizes(32, 100, batch) for batch in (100, 1000)),
    *(Sizes(64, 200, batch) for batch in (200, 500)),
    Sizes(32, 10, 10, 8),
    *(Sizes(32, 10, batch, precision="bf16") for batch in (10, 100)),
    Sizes(32, 10, 10, precision="ieee"),
)
"""CIFAR-10, CIFAR-100 and Tiny ImageNet in the default precision, and what the GPU benchmark has besides."""

TRAINED = (
    Sizes(32, 10, 256, training=True, hard=True),
    Sizes(32, 10, 256, 8, training=True, hard=True),
    Sizes(32, 10, 128, training=True),
    Sizes(32, 10, 10, 20, training=True),
)
"""Experts and evaluation networks for CIFAR-10, alone and together."""

EVERY = UNROLLED + TRAINED

NEWEST = (90,)
"""Compute capabilities that further sizes are compiled for: the same kernels in other sizes are on the list for all."""
