"""Several processes, for scripts of one's own that are started by torchrun; see docs/distributed.md."""

from .runtime.distributed import join

__all__ = ["join"]
