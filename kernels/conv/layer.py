"""A 3x3 convolution layer of K trajectories: its sizes, and its filters as kernels read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

TAPS = 9


class Weights(NamedTuple):
    """One layer's filters as the kernels read them; the taps of `backward` run in reverse.

    Attributes:
        forward: `[K, O, 9, I]`, which is also the memory of a channels-last `[K O, I, 3, 3]`.
        backward: `[K, I, 9, O]`.
    """

    forward: Tensor
    backward: Tensor


@dataclass(frozen=True)
class Layer:
    """One batch of convolutions: all that tiles, costs and the choice of an implementation depend on."""

    trajectories: int
    batch: int
    height: int
    width: int
    inputs: int
    outputs: int
    precision: str = "tf32"
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")

    @property
    def positions(self) -> int:
        """Positions of one trajectory."""
        return self.batch * self.height * self.width

    @property
    def kind(self) -> str:
        """Arithmetic of the products: one of `PRECISIONS`, or "float64"."""
        return "float64" if self.dtype == torch.float64 else self.precision

    @property
    def flops(self) -> int:
        """Of one convolution."""
        return 2 * TAPS * self.trajectories * self.positions * self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Filter weights of one trajectory."""
        return TAPS * self.inputs * self.outputs

    def bytes(self, *, inputs: int = 0, outputs: int = 0, weights: int = 0) -> int:
        """Of so many maps with the layer's input and output channels, and so many sets of filters."""
        entries = self.positions * (inputs * self.inputs + outputs * self.outputs) + weights * self.parameters
        return entries * self.trajectories * self.dtype.itemsize

    def transposed(self) -> Layer:
        """The layer whose forward convolution is this one's data gradient."""
        return replace(self, inputs=self.outputs, outputs=self.inputs)
