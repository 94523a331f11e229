"""3x3 convolutions with weights of their own for each trajectory: operations, their naive twins, and what they take.

Engines look operations and `naive_*` names up here; nothing outside imports the modules but the compiler's report,
tests and benchmarks.
"""

from .layer import Layer, Weights
from .naive import (
    naive_data_grad,
    naive_data_grad_dual,
    naive_forward,
    naive_pack,
    naive_pack_all,
    naive_tangent,
    naive_weight_grad,
    naive_weight_grad_dual,
)
from .operations import data_grad, data_grad_dual, forward, pack, pack_all, tangent, weight_grad, weight_grad_dual
from .production import production

__all__ = [
    "Layer",
    "Weights",
    "data_grad",
    "data_grad_dual",
    "forward",
    "naive_data_grad",
    "naive_data_grad_dual",
    "naive_forward",
    "naive_pack",
    "naive_pack_all",
    "naive_tangent",
    "naive_weight_grad",
    "naive_weight_grad_dual",
    "pack",
    "pack_all",
    "production",
    "tangent",
    "weight_grad",
    "weight_grad_dual",
]
