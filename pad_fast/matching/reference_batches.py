"""Student batches as published scripts draw them: on the way, so that other draws fall in between."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..runtime.shapes import Int


class ReferenceBatches:
    """Index tensors, each drawn when it is first asked for; see :func:`reference_batches`.

    Not a `Sequence`, of which checkers of types look at any element.

    Attributes:
        sizes: images of every step, known without drawing.
    """

    def __init__(
        self, count: int, batch_size: int, steps: int, samples: int, generator: torch.Generator | None
    ) -> None:
        self._count, self._size, self._samples, self._generator = count, batch_size, samples, generator
        self._left: list[Tensor] = []  # of the permutation under way
        self._drawn: list[Tensor] = []
        whole, rest = divmod(count, batch_size)
        popped = [rest] * bool(rest) + [batch_size] * whole
        self.sizes = tuple(samples * popped[step % len(popped)] for step in range(steps))

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Int[Tensor, " B"]]:
        return (self[step] for step in range(len(self)))

    def __getitem__(self, step: int) -> Int[Tensor, " B"]:
        step = range(len(self))[step]
        while len(self._drawn) <= step:
            if not self._left:
                order = torch.randperm(self._count, generator=self._generator)
                self._left = list(order.split(self._size))
            # From the end: what is left over from whole batches comes first.
            self._drawn.append(self._left.pop().repeat(self._samples))
        return self._drawn[step]


def reference_batches(
    count: int,
    batch_size: int | None,
    steps: int,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> ReferenceBatches:
    """The batches of one iteration, in the order in which MTT, FTD, DATM, PAD and TESLA draw them.

    A permutation of all images is cut into batches, which are taken from its end until none is left; then the next one
    is drawn. In these scripts the augmentation draws from the same generator in between. So does
    :func:`trajectory_matching_loss` with these batches: with the same seed, and an augmentation that draws what theirs
    draws, every iteration sees what the script sees. What was drawn is kept: another call with the same batches repeats
    it.

    Args:
        count: synthetic images.
        batch_size: images of a student step (`batch_syn`); None takes all of them.
        steps: of the student (`syn_steps`).
        samples: how often every image is in its batch, one whole batch behind another (`canvas_samples`), for an
            augmentation that makes something else of it each time.
        generator: of the permutations; torch's default one when None.

    Raises:
        InputError: a number below 1.

    Example:
        >>> batches = reference_batches(5, 2, 4)
        >>> batches.sizes
        (1, 2, 2, 1)
        >>> sorted(torch.cat([batches[0], batches[1], batches[2]]).tolist())
        [0, 1, 2, 3, 4]
    """
    size = count if batch_size is None else batch_size
    for name, number in (("count", count), ("batch_size", size), ("steps", steps), ("samples", samples)):
        if number < 1:
            raise InputError(f"{name} of reference_batches is {number}; it counts from 1")
    return ReferenceBatches(count, size, steps, samples, generator)
