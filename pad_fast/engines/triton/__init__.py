"""The engine of NVIDIA GPUs: student steps out of the kernels in `pad_fast.kernels`, recorded as CUDA graphs.

Registered by `pad_fast.engines`; nothing else imports it.
"""

from .engine import TritonEngine

__all__ = ["TritonEngine"]
