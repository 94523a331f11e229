"""Difficulty of training images: EL2N, GraNd and forgetting, and the easy-to-hard order they give.

Imported by experts (the curriculum), evaluation (the easiest images as a baseline) and the pipeline.
"""

from .difficulty import Difficulty
from .formulas import class_order, el2n, el2n_naive, grand, grand_naive
from .score import score

__all__ = ["Difficulty", "class_order", "el2n", "el2n_naive", "grand", "grand_naive", "score"]
