"""What an autograd graph tells: tensors that a gradient would reach, operations without a second one, precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

from ..errors import InputError

_MARK = once_differentiable(lambda ctx: None).__code__  # of whatever it decorates


def leaves_of(output: Tensor) -> list[Tensor]:
    """Leaves that a gradient of `output` would reach, in the order they are met."""
    if output.grad_fn is None:
        return [output] if output.requires_grad else []
    return [leaf for leaf in map(_leaf, _nodes(output.grad_fn)) if leaf is not None]


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


def refuse_single_derivatives(gradient: Tensor, loss: Tensor, known: Sequence[Tensor], who: str) -> None:
    """Refuse a gradient, of a loss, through an operation that is differentiable once (torch's `once_differentiable`).

    Torch hangs its error on a leaf of its own, which is not on the way to any tensor that was asked for: a second
    derivative would silently leave out what passes through the operation.

    Raises:
        InputError: there is one; named where its mark is not hidden by another decorator.
    """
    if gradient.grad_fn is None:
        return
    for node in _nodes(gradient.grad_fn):
        if type(node).__name__ != "Error":
            continue
        for behind, _ in node.next_functions:
            leaf = None if behind is None else _leaf(behind)
            if leaf is not None and not any(leaf is each for each in known):
                assert loss.grad_fn is not None  # or it had no gradient
                names = sorted({name for each in _nodes(loss.grad_fn) if (name := _marked_once(each))})
                raise InputError(not_twice(who, f"{', '.join(names) or 'it'} is marked once_differentiable"))


def rounding_of(output: Tensor) -> float:
    """Spacing near 1 of the coarsest floating numbers between `output` and its leaves: autocast's, wherever it is."""
    dtypes = {output.dtype}
    if output.grad_fn is not None:
        # A private name of torch: without it, mixed precision would be held to the precision of the result.
        dtypes |= {each.dtype for node in _nodes(output.grad_fn) for each in getattr(node, "_input_metadata", ())}
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)


def not_twice(who: str, said: str) -> str:
    """What is said of an operation without a second derivative."""
    return (
        f"an operation of {who} cannot be differentiated twice, which the gradient through a training step takes "
        f"({said}); replace it by operations that can"
    )


def _marked_once(node: Node) -> str | None:
    """Name of the `torch.autograd.Function` that a node is of, where its backward pass is marked; else None."""
    function: Any = getattr(type(node), "_forward_cls", None)
    backward = getattr(function, "backward", None)
    while backward is not None:
        if getattr(backward, "__code__", None) is _MARK:
            return str(function.__name__)
        backward = getattr(backward, "__wrapped__", None)
    return None


def _nodes(root: Node) -> Iterator[Node]:
    waiting, seen = [root], {root}
    while waiting:
        node = waiting.pop()
        yield node
        for further, _ in node.next_functions:
            if further is not None and further not in seen:
                seen.add(further)
                waiting.append(further)


def _leaf(node: Node) -> Tensor | None:
    variable = getattr(node, "variable", None)  # of AccumulateGrad nodes
    return variable if isinstance(variable, Tensor) else None
