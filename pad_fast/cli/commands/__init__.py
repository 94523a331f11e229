"""One file per command: its flags, and what it does with them.

Imported by the parser alone; commands import what they need when they run, so that `--help` stays quick.
"""

from ..command import Command
from .bench import BENCH
from .check import CHECK
from .compare import COMPARE
from .distill import DISTILL
from .env import ENV
from .evaluate import EVALUATE
from .experts import CONVERT, EXPERTS, INFO, VERIFY
from .export import EXPORT
from .report import REPORT
from .resume import RESUME
from .score import SCORE
from .sweep import SWEEP

COMMANDS: tuple[Command, ...] = (
    DISTILL,
    RESUME,
    SWEEP,
    SCORE,
    EXPERTS,
    INFO,
    VERIFY,
    CONVERT,
    EVALUATE,
    EXPORT,
    REPORT,
    COMPARE,
    BENCH,
    CHECK,
    ENV,
)
"""All commands, in the order of the help."""

__all__ = ["COMMANDS"]
