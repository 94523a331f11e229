"""Shapes in signatures: jaxtyping's annotations, or plain ones where it is not installed.

Nothing is checked outside the tests, so a machine that only runs what is installed on it does without.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or find_spec("jaxtyping") is not None:
    from jaxtyping import Bool, Float, Int
else:

    class _Plain:
        """`Float[Tensor, "K P"]` is `Tensor`."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int = _Plain

__all__ = ["Bool", "Float", "Int"]
