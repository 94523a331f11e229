"""The command line `pad-fast`: the parser, the options that commands share, and one file per command.

The top of the house: it may import every room, and nothing imports it.
"""

from .main import main

__all__ = ["main"]
