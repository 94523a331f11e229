"""FIEm: which entries of the flat parameter vector enter the matching loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError, nearest
from ..models.flat import FlatNetwork
from ..settings.choices import MASKS


@dataclass(frozen=True)
class ParameterMask:
    """A rule that drops shallow (or badly matched) parameters from the loss; PAD, "filtering information embedding".

    Make one with :meth:`none`, :meth:`depth`, :meth:`loss` or :meth:`layers`.

    Example:
        >>> ParameterMask.depth(0.5)
        ParameterMask.depth(0.5)
        >>> ParameterMask.depth(1.0)
        Traceback (most recent call last):
        ...
        pad_fast.errors.InputError: mask ratio is 1.0; it must lie in [0, 1), the fraction of parameters left out
    """

    kind: str = "none"
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in MASKS:
            raise InputError(f"unknown mask {self.kind!r}; use one of {', '.join(MASKS)}.{nearest(self.kind, MASKS)}")
        if self.kind == "layers":
            if int(self.amount) != self.amount or self.amount < 0:
                raise InputError(f"mask drops {self.amount} layers; it must be a whole number >= 0")
        elif not (math.isfinite(self.amount) and 0 <= self.amount < 1):
            raise InputError(f"mask ratio is {self.amount}; it must lie in [0, 1), the fraction of parameters left out")

    @classmethod
    def none(cls) -> ParameterMask:
        """Match every parameter."""
        return cls()

    @classmethod
    def depth(cls, ratio: float) -> ParameterMask:
        """Drop the first `int(ratio * P)` entries: the shallow layers (the paper's rule, the default)."""
        return cls("depth", float(ratio))

    @classmethod
    def loss(cls, ratio: float) -> ParameterMask:
        """Drop the `int(ratio * P)` entries with the smallest `(theta_T - theta*)^2`, chosen anew in every call."""
        return cls("loss", float(ratio))

    @classmethod
    def layers(cls, count: int) -> ParameterMask:
        """Drop the first `count` whole layers (a convolution with its bias and norm counts as one)."""
        return cls("layers", float(count))

    def __repr__(self) -> str:
        if self.kind == "none":
            return "ParameterMask.none()"
        amount = int(self.amount) if self.kind == "layers" else self.amount
        return f"ParameterMask.{self.kind}({amount})"

    def first_kept(self, network: FlatNetwork) -> int:
        """Entries in front of this offset are out; 0 for `none` and for `loss`, which has no fixed prefix.

        Raises:
            InputError: nothing would be left to match.
        """
        if self.kind == "depth":
            return int(self.amount * network.parameter_count)
        if self.kind == "layers" and self.amount:
            starts = network.layer_starts()
            if self.amount >= len(starts):
                raise InputError(
                    f"mask drops {int(self.amount)} layers and leaves nothing to match; "
                    f"this network has {len(starts)}, so drop at most {len(starts) - 1}"
                )
            return starts[int(self.amount)]
        return 0

    def dropped_entries(self, parameter_count: int) -> int:
        """How many entries the `loss` rule leaves out; 0 for the others."""
        return int(self.amount * parameter_count) if self.kind == "loss" else 0
