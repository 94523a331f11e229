"""The command line `pad-fast`: the parser, and one file per command. Nothing imports it."""

from .main import main

__all__ = ["main"]
