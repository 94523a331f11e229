"""The compiled extension in tests."""

from __future__ import annotations

import pytest

from pad_fast.runtime import extension


def require_native() -> None:
    """Skip, with the reason, where the extension could not be built."""
    if not extension.available():
        pytest.skip(f"no compiled extension: {extension.unavailable_reason()}")
