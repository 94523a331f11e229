"""The first block with its convolution: the operations and their naive twins.

Engines look them up here by name; no other kernel imports this package.
"""

from .naive import naive_adjoint, naive_backward, naive_forward, naive_tangent
from .operations import MOST_CHANNELS, FirstBlock, Statistics, adjoint, backward, forward, production, tangent

__all__ = [
    "MOST_CHANNELS",
    "FirstBlock",
    "Statistics",
    "adjoint",
    "backward",
    "forward",
    "naive_adjoint",
    "naive_backward",
    "naive_forward",
    "naive_tangent",
    "production",
    "tangent",
]
