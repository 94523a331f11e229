"""`pad_fast.distill` and everything between its arguments and a finished run folder; grids of runs.

Imported by the command line and by users; may import every room but the command line.
"""

from .distill import distill
from .pipeline import Pipeline
from .sweep import sweep

__all__ = ["Pipeline", "distill", "sweep"]
