"""Leaves of an autograd graph: which tensors a gradient would reach, and which of them nobody asked about."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError


def leaves_of(output: Tensor) -> list[Tensor]:
    """Leaves that a gradient of `output` would reach, in the order they are met."""
    if output.grad_fn is None:
        return [output] if output.requires_grad else []
    found: list[Tensor] = []
    waiting, seen = [output.grad_fn], {output.grad_fn}
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)  # of AccumulateGrad nodes
        if isinstance(leaf, Tensor):
            found.append(leaf)
        for further, _ in node.next_functions:
            if further is not None and further not in seen:
                seen.add(further)
                waiting.append(further)
    return found


def refuse_unknown_leaves(output: Tensor, known: Sequence[Tensor], who: str) -> None:
    """Refuse what would get no gradient although autograd through the whole loop would give it one.

    Raises:
        InputError: names the tensor's shape and the ways out.
    """
    for leaf in leaves_of(output):
        if not any(leaf is each for each in known):
            raise InputError(
                f"{who} uses a tensor of shape {list(leaf.shape)} that requires a gradient and would get none. Name it "
                "in parameters= if augment uses it, make it a parameter of the network, or detach() it; "
                "gradient='unroll' also reaches it"
            )
