"""Dataset distillation by trajectory matching: the exact PAD gradient in constant memory."""

from ._version import __version__

__all__ = ["__version__"]
