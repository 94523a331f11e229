"""Hooks and workflows run the same commands as here, on versions that are supported."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from ..support.paths import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOLS = SETTINGS["project"], SETTINGS["tool"]


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
    assert versions[0] == PROJECT["requires-python"].removeprefix(">=") and versions == ["3.11", "3.12", "3.13", "3.14"]
    listed = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert listed == versions


def test_wheels_are_built_for_every_python_and_tried_with_the_extension() -> None:
    settings = TOOLS["cibuildwheel"]
    versions = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert settings["build"].split() == [f"cp{version.replace('.', '')}-*" for version in versions]
    assert settings["environment"]["PAD_FAST_REQUIRE_EXTENSION"] == "1"
    assert any("extension.available()" in command for command in settings["test-command"])
    job = read(".github/workflows/wheels.yml")["jobs"]["wheels"]
    assert job["strategy"]["matrix"]["machine"] == ["ubuntu-latest", "ubuntu-24.04-arm", "macos-14"]
    assert any(step.get("uses", "").startswith("pypa/cibuildwheel@") for step in job["steps"])


def test_the_citation_names_every_paper_that_the_readme_names() -> None:
    cited = " ".join(paper["notes"] for paper in read("CITATION.cff")["references"])
    numbers = set(re.findall(r"\b\d{4}\.\d{5}\b", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert numbers and numbers <= set(re.findall(r"\d{4}\.\d{5}", cited))
