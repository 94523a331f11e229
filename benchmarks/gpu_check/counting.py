"""The list of the `gpu` tests, with the kernel variants that each compiles: counted without a GPU.

    python -m benchmarks.gpu_check.counting --update

pytest runs the tests on CPU tensors with kernels that do nothing (:mod:`benchmarks.gpu_check.variants`). A test that
finds that out, asks for more of a GPU or takes longer than :data:`LIMIT` ends early, and its number is a lower bound;
one that launches nothing until then has none.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import carried, dealing, tree
from benchmarks.gpu_check.results import read_json, write_json
from benchmarks.gpu_check.variants import CPU, Twice, launched, taken_down
from pad_fast.engines.triton.operations import Operations

FILE, CAPABILITY = "GPU_CHECK_COUNTS", 90
LIMIT = 15.0
"""Seconds of a test."""
_counts: dict[str, int] = {}
_open = ExitStack()


def pytest_collection(session: pytest.Session) -> None:
    """Behind the conftest and ahead of the tests' modules: the GPU of their problems is a CPU, and errors are none."""
    os.environ["TRITON_INTERPRET"] = "0"
    gpu: Any = importlib.import_module("tests.support.gpu")
    gpu.GPU = CPU
    gpu.needs_gpu[:] = [pytest.mark.gpu]
    gpu.assert_same = lambda *given, **named: None
    engine: Any = importlib.import_module("pad_fast.engines.triton.engine").TritonEngine
    really = engine.__init__
    engine.__init__ = lambda self, *given, **named: really(self, Operations(), recorder=Twice)
    _open.enter_context(taken_down(CAPABILITY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No comparison of results fails, but for those of single kernels, whose oracles take long."""
    for item in items:
        module: Any = item.getparent(pytest.Module)
        if hasattr(module.obj, "relative_error") and not module.name.endswith("test_kernels.py"):
            module.obj.relative_error = lambda *given, **named: 0.0


def _late(number: int, frame: Any) -> None:
    raise TimeoutError


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a test has launched."""
    launched().clear()
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _counts[item.nodeid] = len(launched())


def pytest_sessionfinish() -> None:
    """For the program below."""
    _open.close()
    write_json(Path(os.environ[FILE]), _counts)


def counted(folder: Path, tests: list[str]) -> dict[str, int | None]:
    """Variants by test, from a process in a copy of the tree."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "counts.json"
        environment = {**os.environ, **carried.environment(), "PYTHONPATH": str(folder), FILE: str(file)}
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-o", "addopts=", "-p", "no:cacheprovider"]
        command += ["-p", "benchmarks.gpu_check.counting", *tests]
        subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr)
        found = read_json(file)
    return {name: found.get(name) or None for name in tests}


def main() -> None:
    """Collect, count, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the list that gpu_check uses")
    options = parser.parse_args()
    tree.copy_sources()
    tests = dealing.collect(folder=tree.TREE, environment={**os.environ, "PYTHONPATH": str(tree.TREE)})
    found = counted(tree.TREE, tests)
    known = [count for count in found.values() if count is not None]
    print(f"{len(found)} tests, {len(known)} of them with {sum(known)} variants")
    if options.update:
        write_json(dealing.LIST, dealing.as_files(found))


if __name__ == "__main__":
    main()
