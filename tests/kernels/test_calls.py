"""The one way to launch: in the source, and what a call does."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pad_fast.kernels.aot import Production
from pad_fast.kernels.calls import Call, capability, distinct, moved, run_all, shared_memory, with_further
from pad_fast.kernels.launch import OPTIONS, TARGETS, Cost, counting, dry_run

from ..support.paths import ROOT


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every file of kernels/ as a path from there."""
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        yield path.relative_to(ROOT / "kernels").as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def files_with(found: Callable[[ast.AST], bool]) -> set[str]:
    return {name for name, tree in sources() if any(found(node) for node in ast.walk(tree))}


def test_kernels_are_launched_in_one_place() -> None:
    def on_a_grid(node: ast.AST) -> bool:
        """`kernel[grid](...)`; `by` is a table of functions."""
        subscripted = isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
        return subscripted and ast.unparse(node.func.value) != "by"

    def by_launch(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "launch"

    assert files_with(on_a_grid) == {"launch.py"}
    assert files_with(by_launch) == {"calls.py"}


def test_jitted_functions_alone_are_left_out_of_type_checking() -> None:
    seen = 0
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                jitted = any(decorator.startswith("triton.jit") for decorator in decorators)
                assert jitted == ("no_type_check" in decorators), f"{name}: {node.name}"
                seen += jitted
    assert seen > 70


class FakeKernel:
    """Notes how it is launched."""

    __name__ = "fake_kernel"

    def __init__(self) -> None:
        self.launched: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.launched.append((grid, args, options))


def test_a_call_runs_and_is_counted() -> None:
    kernel, x = FakeKernel(), torch.ones(3)
    bound = Call(kernel, (2, 1), (x, 3), Cost(12, 5), {"BLOCK": 8})
    shared = Call(kernel, (4,), (7,), Cost(1), {})  # made once, for whatever tensors it is given
    with counting() as count:
        run_all([bound])
        shared.run(x, x)
    with dry_run():
        bound.run()
    assert kernel.launched == [((2, 1), (x, 3), {**OPTIONS, "BLOCK": 8}), ((4,), (x, x, 7), OPTIONS)]
    assert count.launches == [("fake_kernel", Cost(12, 5)), ("fake_kernel", Cost(1))]


def test_moved_counts_every_tensor_once() -> None:
    assert moved(torch.empty(3), torch.empty(2, dtype=torch.float64), flops=4) == Cost(28, 4)


def test_without_a_gpu_tiles_are_those_of_the_newest() -> None:
    assert capability(torch.device("cpu")) == capability(torch.device("meta")) == 90
    assert shared_memory(torch.device("cpu")) == shared_memory(torch.device("meta")) == TARGETS[90]


def test_a_card_has_the_shared_memory_that_its_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(shared_memory_per_block=48 * 1024, shared_memory_per_block_optin=99 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    assert shared_memory(torch.device("cuda:0")) == 99 * 1024
    del told.shared_memory_per_block_optin
    assert shared_memory(torch.device("cuda:0")) == 48 * 1024


def test_equal_programs_are_one_production() -> None:
    one = Production("first", FakeKernel(), {"n": "i32"}, {}, Cost(1), targets=(90,))
    other = replace(one, name="other", constexprs={"BLOCK": 8})
    found = distinct([one, other, replace(one, name="again", targets=(80,), cost=Cost(2))])
    assert [(item.name, item.targets) for item in found] == [("first", (80, 90)), ("other", (90,))]


def test_further_sizes_are_listed_where_they_compile_to_something_else() -> None:
    one = Production("first", FakeKernel(), {"n": "i32"}, {}, Cost(1))
    other = replace(one, name="other", constexprs={"BLOCK": 8})
    listed = [one, replace(one, name="the same for more bytes", cost=Cost(2))]
    found = with_further(listed, [replace(one, name="again"), other, replace(other, name="and again")])
    assert found == [*listed, other]


def test_files_are_of_a_size_to_read() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in Path(ROOT, "kernels").rglob("*.py")}
    assert max(lines.values()) <= 700, {str(path): count for path, count in lines.items() if count > 700}
