"""Imports go one way: rooms may import only those below them, and no module can reach itself again."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from ..support.paths import ROOT

# From the ground up. A room may import those on lower floors, never its neighbours on the same one. Imports inside
# functions and for type checkers count as well: they are late, not absent.
FLOORS = (
    ("pad_fast._C", "pad_fast._version", "pad_fast.errors"),
    ("pad_fast.runtime",),
    ("pad_fast.data", "pad_fast.models"),
    ("pad_fast.kernels", "pad_fast.settings"),
    ("pad_fast.engines",),
    ("pad_fast.matching", "pad_fast.training"),
    ("pad_fast.scoring", "pad_fast.verification"),
    ("pad_fast.experts",),
    ("pad_fast.distillation", "pad_fast.evaluation"),
    ("pad_fast.runs",),
    ("pad_fast.reporting",),
    ("pad_fast.pipeline",),
    ("pad_fast", "pad_fast.distributed"),
    ("benchmarks",),
    ("pad_fast.cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package, of the kernels under their installed name, and of the benchmarks."""
    found = {}
    for folder, name in (("pad_fast", "pad_fast"), ("kernels", "pad_fast.kernels"), ("benchmarks", "benchmarks")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Modules that one imports, each with its line; of `from package import name` the package where it defines it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield (inner if inner in known or inner in FLOOR else source), node.lineno


def room_of(name: str) -> str:
    """The room of a module: its folder, or itself where it lies loose."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "pad_fast" else parts[0]


def complaints(root: Path) -> list[str]:
    """Imports that go up or sideways, rooms without a floor, and circles of modules."""
    known = modules(root)
    graph: dict[str, set[str]] = {name: set() for name in known}
    found = []
    for name, path in known.items():
        here = room_of(name)
        if here not in FLOOR:
            found.append(f"{here} has no floor in FLOORS")
            continue
        for target, line in imported(name, path, known):
            there = room_of(target)
            if there not in FLOOR:
                continue
            if there != here and FLOOR[there] >= FLOOR[here]:
                found.append(f"{path.relative_to(root)}:{line}: {here} may not import {there}")
            if target in known and target != name:
                graph[name].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a circle: {' <- '.join(error.args[1])}")
    return found


def test_imports_go_down() -> None:
    assert complaints(ROOT) == []


@pytest.mark.parametrize(
    ("where", "line", "said"),
    [
        ("pad_fast/runtime/rng.py", "from ..settings.config import Config", "pad_fast.runtime may not import"),
        ("pad_fast/data/arrays.py", "import pad_fast.models", "pad_fast.data may not import pad_fast.models"),
        ("pad_fast/pipeline/sweep.py", "def f():\n    from ..cli import main", "may not import pad_fast.cli"),
        ("benchmarks/harness.py", "from benchmarks import report", "a circle"),
        ("pad_fast/runtime/files.py", "from .tensor_files import read_tensors", "a circle"),
    ],
)
def test_an_import_that_goes_up_or_round_is_found(tmp_path: Path, where: str, line: str, said: str) -> None:
    for path in modules(ROOT).values():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert complaints(tmp_path) == []
    changed = tmp_path / where
    changed.write_text(changed.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert any(said in complaint for complaint in complaints(tmp_path))


@pytest.mark.parametrize("name", [name for name, path in modules(ROOT).items() if path.name == "__init__.py"])
def test_every_room_says_what_it_is_for(name: str) -> None:
    said = ast.get_docstring(ast.parse(modules(ROOT)[name].read_text(encoding="utf-8")))
    assert said and len(said.splitlines()) >= 3, f"{name}: two or three lines on its purpose and on who may import it"


def test_the_package_holds_folders_and_few_files() -> None:
    tracked = {"__init__.py", "_version.py", "errors.py", "distributed.py", "_C.pyi", "py.typed"}
    loose = {path.name for path in (ROOT / "pad_fast").iterdir() if path.is_file()}
    assert {name for name in loose if not name.startswith(("_C.cpython", "_build"))} <= tracked
