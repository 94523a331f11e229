"""Instance norm, ReLU and pooling: the operations and their naive twins.

Engines look them up here by name. Imported by kernels/first, which has the same block behind its own convolution.
"""

from .naive import naive_adjoint, naive_backward, naive_forward, naive_tangent
from .operations import adjoint, backward, forward, production, sum_images, tangent

__all__ = [
    "adjoint",
    "backward",
    "forward",
    "naive_adjoint",
    "naive_backward",
    "naive_forward",
    "naive_tangent",
    "production",
    "sum_images",
    "tangent",
]
