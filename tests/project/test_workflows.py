"""Hooks and workflows run the same commands as here, on versions that are supported."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from ..support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_hooks_are_the_linters_of_make_lint_in_pinned_versions() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    commands = [hook["entry"] for hook in repository["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint, types = (makefile.partition(f"\n{target}:")[2].partition("\n\n")[0] for target in ("lint", "types"))
    assert "make types" in commands and " types" in lint.splitlines()[0] and "$(BIN)/mypy" in types
    tools = {command.split()[0].removeprefix(".venv/bin/") for command in commands} - {"make"}
    assert tools == set(re.findall(r"\$\(BIN\)/([\w-]+)", lint))
    tools.add("mypy")
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert tools <= set(pinned) and tools <= set(PROJECT["optional-dependencies"]["test"])


def test_continuous_integration_calls_the_script_on_every_python_from_the_oldest() -> None:
    job = read(".github/workflows/ci.yml")["jobs"]["test"]
    assert {"run": "bash .ci/run"} in job["steps"] and (ROOT / ".ci" / "run").is_file()
    versions = job["strategy"]["matrix"]["python"]
    assert versions[0] == PROJECT["requires-python"].removeprefix(">=") and versions == ["3.11", "3.12", "3.13"]
    built = read(".github/workflows/wheels.yml")["jobs"]["linux-x86_64"]["steps"][1]["env"]["CIBW_BUILD"]
    assert built.split() == [f"cp{version.replace('.', '')}-manylinux_x86_64" for version in versions]


def test_the_citation_names_every_paper_that_the_readme_names() -> None:
    cited = " ".join(paper["notes"] for paper in read("CITATION.cff")["references"])
    numbers = set(re.findall(r"\b\d{4}\.\d{5}\b", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert numbers and numbers <= set(re.findall(r"\d{4}\.\d{5}", cited))
