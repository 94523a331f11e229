"""Engines compute student steps and their adjoints; the recursion over steps lives in `pad_fast.matching`.

Imported by training, matching and everything above; stands on models, data and the kernels.
"""

from .base import (
    Adjoint,
    Augment,
    Augmentation,
    Engine,
    GradientDistance,
    Inputs,
    Passes,
    Student,
    Task,
    Wants,
    cross_entropy,
)
from .registry import backends, record_backends, register, require_gradient, select

__all__ = [
    "Adjoint",
    "Augment",
    "Augmentation",
    "Engine",
    "GradientDistance",
    "Inputs",
    "Passes",
    "Student",
    "Task",
    "Wants",
    "backends",
    "cross_entropy",
    "record_backends",
    "register",
    "require_gradient",
    "select",
]
