"""The user's cache folder: what is found out about a machine once and may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$PAD_FAST_CACHE_DIR`, else `pad_fast` in `$XDG_CACHE_HOME` or `~/.cache`; it need not exist."""
    own = os.environ.get("PAD_FAST_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path("~/.cache").expanduser()) / "pad_fast"
