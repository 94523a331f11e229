"""Shared fixtures: the golden files, the device of kernel tests and its poisoned memory, Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import sys

# One thread per process, before torch starts any: the networks here are tiny, and on a busy machine threads that wait
# for each other make them up to forty times slower. Set for the processes that tests start, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._device import _device_constructors

from .support import shapes  # isort: skip  # ahead of whatever imports pad_fast
from .support.golden import golden_path

# Without a GPU, kernels run in Triton's interpreter, which must be chosen before any of them is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure() -> None:
    """Refuse versions that cannot interpret a kernel: hundreds of failures would hide what is wrong."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        raise pytest.UsageError(
            f"the interpreter of Triton {version('triton')} fails with NumPy {version('numpy')}, which no longer turns "
            "arrays of one number into numbers: pip install 'numpy<2.4', or Triton 3.7"
        )


def pytest_report_header() -> str:
    """Say whether the shapes in signatures are checked."""
    return f"shapes: {'checked' if shapes.CHECKED else 'unchecked, jaxtyping or beartype is not installed'}"


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """For a test that passes wrong shapes on purpose, to see what pad_fast itself says."""
    with shapes.unchecked():
        yield


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Load a golden `.npz` into a plain dict of arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(golden_path(name)) as data:
            return {key: data[key] for key in data.files}

    return load


@pytest.fixture
def kernel_device() -> torch.device:
    """Where kernel tests put their tensors: the GPU, or the CPU with the kernels interpreted."""
    pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def on_kernel_device(kernel_device: torch.device) -> Iterator[None]:
    """Put whatever a test makes without naming a device on the kernels'."""
    with kernel_device:
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> Iterator[None]:
    """Leave out of Triton's interpreter what costs most of its time and shows nothing.

    It computes whether each integer operation overflows and, with debugging off, drops the answer. And it is traced
    for a coverage report that leaves the bodies of kernels out.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    run = interpreter.GridExecutor.__call__

    def untraced(self: Any, *args: Any, **options: Any) -> None:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            run(self, *args, **options)
        finally:
            sys.settrace(tracer)

    with pytest.MonkeyPatch.context() as patch:
        options = interpreter.InterpreterOptions(sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)
        patch.setattr(interpreter.GridExecutor, "__call__", untraced)
        yield


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written is NaN, or a large number."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **options: Any) -> Tensor:
            tensor = make(*args, **options)
            return tensor if tensor.is_meta else tensor.fill_(torch.nan if tensor.is_floating_point() else 0x55)

        return made

    # `with torch.device(...)` knows the functions it redirects by identity, from a list made at its first use: one made
    # with these in place would leave it without torch.empty for the rest of the process.
    _device_constructors()
    for place, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(place, name, poison(getattr(place, name)))
