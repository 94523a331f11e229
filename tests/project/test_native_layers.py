"""The folders of csrc/unroll build on each other in one direction, as their main headers say."""

from __future__ import annotations

import re

from ..support.paths import ROOT

CSRC = ROOT / "csrc"
# Lower to higher; a file may include its own layer and those before it. Folders, and the single files between them.
LAYERS = [
    ("cpu.h", "join.h", "parallel.h"),
    ("unroll/network.h",),
    ("unroll/vector",),
    ("unroll/conv",),
    ("unroll/blocks",),
    ("unroll/layout.h", "unroll/engine.h"),
    ("unroll/step.h", "unroll/runtime.cpp"),
    ("unroll/isa", "unroll/bindings.h", "unroll/bindings.cpp", "scoring", "parallel.cpp"),
    ("module.cpp",),
]


def layer(name: str) -> int:
    (found,) = (i for i, places in enumerate(LAYERS) if any(name == p or name.startswith(f"{p}/") for p in places))
    return found


def includes() -> dict[str, list[str]]:
    """Each source and the files of csrc/ that it includes, by path from csrc/."""
    found = {}
    for path in sorted(CSRC.rglob("*")):
        if not path.is_file():
            continue
        names = re.findall(r'^\s*#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
        places = [next((p for p in (path.parent / name, CSRC / name) if p.is_file()), None) for name in names]
        assert None not in places, f"{path}: {names}"
        found[path.relative_to(CSRC).as_posix()] = [p.relative_to(CSRC).as_posix() for p in places if p is not None]
    return found


def test_includes_go_downwards():
    graph = includes()
    assert len(graph) > 40
    upwards = [(source, name) for source, names in graph.items() for name in names if layer(name) > layer(source)]
    assert upwards == []


def test_scoring_and_the_engine_know_nothing_of_each_other():
    graph = includes()
    sides = {source: source.split("/")[0] for source in graph if "/" in source}
    mixed = [(a, b) for a, names in graph.items() for b in names if sides.get(a) and sides.get(b, sides[a]) != sides[a]]
    assert mixed == []


def test_includes_form_no_circle():
    graph = includes()
    while graph:
        leaves = [source for source, names in graph.items() if not any(name in graph for name in names)]
        assert leaves, f"a circle among {sorted(graph)}"
        for source in leaves:
            del graph[source]
