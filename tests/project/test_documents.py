"""Documents can be typed and followed: links lead somewhere, commands are understood, flags exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pad_fast.cli.parser import build_parser, parse
from pad_fast.settings.families import published_keys
from pad_fast.settings.yaml_files import known_keys

from ..support.paths import ROOT

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4}(?=pad-fast |torchrun |srun )(.*)$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"}


def typed(text: str) -> Iterator[list[str]]:
    """The words behind `pad-fast` of every command in a block of a document."""
    blocks = [body for language, body in FENCED.findall(text) if language in ("", "bash", "text")]
    # Words at a distance from an indented command say what it does.
    blocks += [re.split(r" {2,}", line)[0] for line in INDENTED.findall(FENCED.sub("", text))]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["pad-fast"]:
                yield words[1:]
            elif "pad_fast.cli" in words:
                yield words[words.index("pad_fast.cli") + 1 :]


COMMANDS = [(name, words) for name, text in TEXTS.items() for words in typed(text)]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 20
    assert {words[0] for _, words in COMMANDS} >= {
        "distill",
        "score",
        "experts",
        "evaluate",
        "sweep",
        "report",
        "compare",
    }


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[f"{name} {words[0]}" for name, words in COMMANDS])
def test_commands_are_understood(name: str, words: list[str]) -> None:
    parse([word for word in words if word != "..."])  # "and so on"


def test_flags_exist() -> None:
    known = {flag for action in build_parser()._actions for flag in action.option_strings} | TORCHRUN
    for command in build_parser()._subparsers._group_actions[0].choices.values():  # type: ignore[union-attr]
        known |= {flag for action in command._actions for flag in action.option_strings}
    for source in (ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r"\"(--[a-z-]+)\"", source.read_text(encoding="utf-8")))
    # Published programs' flags are words of ours too.
    known |= {f"--{key}" for key in {*published_keys(), *known_keys(), "cfg"}}
    for name, text in TEXTS.items():
        for code in INLINE.findall(FENCED.sub("", text)):
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", code):
                assert flag in known, f"{name}: {code}"


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("name", TEXTS)
def test_files_and_modules_exist(name: str) -> None:
    text = TEXTS[name]
    for module in re.findall(r"python -m (benchmarks(?:\.\w+)?)", text):
        place = ROOT / Path(*module.split("."))
        assert place.is_dir() or place.with_suffix(".py").exists(), module
    for file in re.findall(r"`((?:pad_fast|kernels|csrc|benchmarks|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / file).exists(), file
