r"""Batches divided over processes: the only place where the numbers of a step cross from one process to another.

Symbols and equation numbers continue those of `exact.py`.

A student's loss is a mean over its batch, and so are its gradient g and `phi = <v, g>`. With B_r of the batch's B
images on rank r, and g_r the gradient of the mean over these,

    g = sum_r (B_r / B) g_r,   phi = sum_r (B_r / B) phi_r,   dphi/dtheta likewise           (4)

while dphi/dx and dphi/dy of an image are known, but for the factor B_r / B, to the rank that has the image. So a step
adds up g in the forward pass and dphi/dtheta in the reverse pass, both `[K, P]`: every rank then holds the same
theta_{t+1} and the same v_t. Images, labels and phi are added up once, when all steps are pulled back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..data.augment import SeededDSA
from ..engines import Adjoint, Augment, Student, Wants
from ..engines.base import Labels
from ..errors import InputError
from ..models.flat import FlatNetwork
from ..runtime.distributed import Group
from ..runtime.shapes import Float, Int


class WholeBatches:
    """Every process has whole batches, so nothing is added up between them.

    Attributes:
        recordable: whether the passes may be recorded and replayed.
    """

    recordable = True

    def student(self, student: Student) -> Student:
        """`student`, with gradients of whole batches."""
        return student

    def sum_(self, *tensors: Tensor | None) -> None:
        """Nothing: there are no other parts to sum over."""
        return None


@dataclass(frozen=True)
class SplitBatches:
    """A part of every batch is here, the others are on the other ranks of `group`; sums over them make the whole.

    Attributes:
        rows: for every step, which rows of its batch are here: never none. Where a batch has fewer images than there
            are ranks, those left over take its first one with weight 0; they would be idle otherwise.
        weights: B_r / B of every step.
    """

    group: Group
    rows: tuple[range, ...]
    weights: tuple[float, ...]
    # Adding up waits for other processes, which a replay on the device knows nothing of.
    recordable = False

    @classmethod
    def of(cls, group: Group, sizes: Sequence[int]) -> SplitBatches:
        """The part of batches of these `sizes` that belongs to `group.rank`."""
        rows, weights = [], []
        for size in sizes:
            # Dealt one by one, so that a batch smaller than the group still gives one image to each of the first ranks.
            own = group.part(size) if size >= group.size else range(min(group.rank, size), min(group.rank + 1, size))
            weights.append(len(own) / size)
            rows.append(own if len(own) else range(1))
        return cls(group, tuple(rows), tuple(weights))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Images here, per step."""
        return tuple(map(len, self.rows))

    def indices(self, indices: Int[Tensor, " indices"], sizes: Sequence[int]) -> Int[Tensor, " here"]:
        """Of the whole batches behind each other, what is here."""
        batches = indices.split(list(sizes))
        return torch.cat([batch[own.start : own.stop] for batch, own in zip(batches, self.rows, strict=True)])

    def augment(self, augment: Augment | None, sizes: Sequence[int]) -> Augment | None:
        """Draws for whole batches of these `sizes`, and applies them to what is here.

        Raises:
            InputError: a callable that might mix the images of a batch.
        """
        if augment is None:
            return None
        if not isinstance(augment, SeededDSA):
            raise InputError(
                "a batch that is divided over processes can be augmented by pad_fast.DSA(...).seeded(...), which draws "
                f"for every image by itself, not by {augment!r}"
            )
        return replace(augment, parts=tuple((size, own.start) for size, own in zip(sizes, self.rows, strict=True)))

    def student(self, student: Student) -> Student:
        """`student`, with gradients of whole batches."""
        return _SplitStudent(student, self)

    def sum_(self, *tensors: Tensor | None) -> None:
        """Sums over the ranks, in place, of what is only needed at the end."""
        self.group.sum_(*tensors)


class _SplitStudent(Student):
    """A student that sees a part of every batch. Its adjoints are parts, but for dphi/dtheta, which a step needs."""

    def __init__(self, student: Student, split: SplitBatches) -> None:
        self.inner, self.split = student, split
        self.random = student.random

    def gradient(
        self, step: int, theta: Float[Tensor, "K P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> Float[Tensor, "K P"]:
        gradient = self.inner.gradient(step, theta, images, labels).mul_(self.split.weights[step])
        self.split.group.sum_(gradient)
        return gradient

    def adjoint(
        self,
        step: int,
        theta: Float[Tensor, "K P"],
        direction: Float[Tensor, "K P"],
        images: Float[Tensor, "B ..."],
        labels: Labels,
        wants: Wants,
    ) -> Adjoint:
        own = self.inner.adjoint(step, theta, direction, images, labels, wants)
        for tensor in (own.phi, own.theta, own.images, own.labels):
            if tensor is not None:
                tensor.mul_(self.split.weights[step])
        self.split.group.sum_(own.theta)
        return own


def require_divisible(network: FlatNetwork, gradient: str) -> None:
    """Prove that a step of this network is a mean over its images.

    Raises:
        InputError: layers that mix or randomise the images of a batch, or autograd through the whole loop.
    """
    if gradient == "unroll":
        raise InputError(
            "gradient='unroll' is recorded in one process, so its batches cannot be divided over several; "
            "use gradient='exact' for the same result, or split='trajectories'"
        )
    for name, module in network.module.named_modules():
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (mixes or isinstance(module, nn.modules.dropout._DropoutNd)):
            raise InputError(
                f"batches of a network with {type(module).__name__} ({name}) cannot be divided over processes, since "
                "what it does to an image depends on the batch; use split='trajectories'"
            )
