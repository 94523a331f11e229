"""Shapes in signatures, checked while tests run: jaxtyping's import hook, with beartype behind it.

Imported ahead of anything of pad_fast. Only annotations that state a shape are checked: the others are mypy's business,
and a test may well stand something of its own in for an engine or an operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, get_args

PACKAGES = ("pad_fast.matching", "pad_fast.engines", "pad_fast.training", "pad_fast.models")
# A machine with a GPU may have no more than what kernels need.
CHECKED = find_spec("jaxtyping") is not None and find_spec("beartype") is not None
if CHECKED:
    import jaxtyping


def states_shape(hint: Any) -> bool:
    """Whether an annotation, or a part of it, is a tensor of some shape."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(states_shape(part) for part in get_args(hint))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The type checker that jaxtyping's hook puts around every function."""
    from beartype import beartype

    hints = {name: hint for name, hint in function.__annotations__.items() if states_shape(hint)}
    if not hints:
        return function
    function.__annotations__ = {name: hints.get(name, Any) for name in function.__annotations__}
    return beartype(function)


@contextmanager
def unchecked() -> Iterator[None]:
    """Nothing is checked inside of the block."""
    if not CHECKED:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


if CHECKED:
    jaxtyping.install_import_hook(PACKAGES, "tests.support.shapes.checked")
