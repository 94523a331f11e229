"""Names of files are spelled once in the package: whoever needs one imports it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pad_fast
from pad_fast.runs import folder

PACKAGE = Path(pad_fast.__file__).parent
FILE = re.compile(r"[\w*-][\w.*-]*\.(json|jsonl|yaml|safetensors|pt|png|html|md|lock)")


def spelled(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Strings that are a file's name, or that a path is joined with."""
    joined = {id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in joined or FILE.fullmatch(node.value):
                yield node.value, node.lineno


def test_no_file_name_is_spelled_twice() -> None:
    places = defaultdict(list)
    for path in sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "data" / "imagenet.py"}):  # its publishers' folders
        for name, line in spelled(ast.parse(path.read_text(encoding="utf-8"))):
            places[name].append(f"{path.relative_to(PACKAGE)}:{line}")
    assert {folder.DESCRIPTION, folder.METRICS, folder.DISTILLED, folder.PAGE} <= set(places)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_names_of_a_run_are_those_of_earlier_versions() -> None:
    """Runs of earlier versions are read, and people's own scripts read runs."""
    named = {name: getattr(folder, name) for name in folder.__all__ if name.isupper()}
    assert named == {
        "CACHE": "cache",
        "CONVOLUTIONS": "convolutions.json",
        "CHECKPOINT": "checkpoint",
        "CONFIG": "config.yaml",
        "DESCRIPTION": "run.json",
        "DISTILLED": "distilled.safetensors",
        "EVALUATION": "evaluation.json",
        "EVALUATION_CACHE": "evaluation",
        "FILM": "film.safetensors",
        "LAST": "last",
        "LOCK": "run.lock",
        "METRICS": "metrics.jsonl",
        "PAGE": "report.html",
        "PICTURE": "images.png",
        "PLACE": "place.json",
        "PREVIEW": "preview.safetensors",
        "RUNS": "runs",
        "TIMING": "timing.json",
        "VALIDATION": "validation.json",
    }
