"""The version, stated once: pyproject.toml reads it from here without importing anything."""

__version__ = "0.1.0"
