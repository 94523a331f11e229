"""Engines by name: `auto` takes the first that can serve and says so once, a name that cannot serve raises."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import BackendError, nearest
from ..settings.choices import GRADIENTS
from .autograd import AutogradEngine
from .base import Engine, Task
from .cpu import CpuEngine
from .triton.engine import TritonEngine

logger = logging.getLogger("pad_fast")

_engines: dict[str, Engine] = {}
_said: set[str] = set()
_recorders: list[list[str]] = []


def register(engine: Engine) -> None:
    """Make an engine selectable under its name. `auto` tries the engine registered last first."""
    _engines[engine.name] = engine


def backends() -> tuple[str, ...]:
    """Names accepted as `backend=`."""
    return ("auto", *reversed(_engines))


def select(backend: str, task: Task) -> Engine:
    """The engine that will run `task`.

    Raises:
        BackendError: unknown name, or the named engine cannot serve the task (with its reason).
    """
    if task.gradient == "unroll":
        if backend not in ("auto", "autograd"):
            raise BackendError(
                f"gradient='unroll' is plain autograd through the whole loop, so backend={backend!r} cannot run it; "
                "use backend='autograd', or gradient='exact' for the same result in constant memory"
            )
        backend = "autograd"
    if backend == "auto":
        reasons: list[str] = []
        for name in reversed(_engines):
            reason = _engines[name].refuse(task) or _engines[name].hesitate(task)
            if reason is None:
                how = _engines[name].arithmetic(task)
                _say_once(f"backend: {name}" + f", {how}" * bool(how) + "".join(f" ({text})" for text in reasons))
                return _used(_engines[name])
            reasons.append(f"{name}: {reason}")
        raise BackendError("no backend can serve this: " + "; ".join(reasons))
    if backend not in _engines:
        known = ", ".join(backends())
        raise BackendError(f"unknown backend {backend!r}; this build has {known}.{nearest(backend, backends())}")
    reason = _engines[backend].refuse(task)
    if reason is not None:
        raise BackendError(f"backend={backend!r} cannot serve this: {reason}")
    return _used(_engines[backend])


@contextmanager
def record_backends() -> Iterator[list[str]]:
    """Collect the names of the engines selected inside the block, so that a test can assert which one ran.

    Example:
        >>> with record_backends() as used:
        ...     pass
        >>> used
        []
    """
    used: list[str] = []
    _recorders.append(used)
    try:
        yield used
    finally:
        _recorders.remove(used)


def _used(engine: Engine) -> Engine:
    for recorder in _recorders:
        recorder.append(engine.name)
    return engine


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.info(message)


def require_gradient(gradient: str) -> None:
    """Reject an unknown gradient name.

    Raises:
        BackendError: with the nearest known name.
    """
    if gradient not in GRADIENTS:
        raise BackendError(
            f"unknown gradient {gradient!r}; use one of {', '.join(GRADIENTS)}.{nearest(gradient, GRADIENTS)}"
        )


register(AutogradEngine())
register(TritonEngine())
register(CpuEngine())
