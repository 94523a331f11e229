"""The command line `pad-fast`: parsing, and one function per command. Nothing imports it."""

from .main import main

__all__ = ["main"]
