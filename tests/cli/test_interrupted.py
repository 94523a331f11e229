"""Ctrl-C: the hint of every command is one that this command understands."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pad_fast.cli import parser
from pad_fast.cli.command import CONTINUED
from pad_fast.cli.commands import COMMANDS
from pad_fast.cli.main import main

from ..support.paths import ROOT

WORDS = {
    "score": ["--out", "scores"],
    "experts": ["--out", "experts"],
    "experts info": ["store"],
    "experts verify": ["store"],
    "experts convert": ["a", "b"],
    "sweep": ["--out", "sweep"],
    "evaluate": ["set"],
    "resume": ["run"],
    "export": ["set", "--to", "npz", "--out", "there"],
    "report": ["run"],
    "compare": ["a", "b"],
    "bench": ["unroll"],
    "check": [],
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_hint_is_understood(command, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    stopped = [replace(each, run=interrupted) for each in COMMANDS]
    monkeypatch.setattr(parser, "COMMANDS", stopped)
    words = [*command.name.split(), *WORDS.get(command.name, [])]
    assert main(words) == 130
    said = capsys.readouterr().err
    assert said.startswith("pad-fast: interrupted")
    assert "--resume" not in said, "repeating the command is enough"
    keeps = command.name in ("distill", "resume", "sweep", "score", "experts", "experts convert", "evaluate")
    assert ("repeat the command" in said) == keeps


@pytest.mark.parametrize(
    ("words", "said"),
    [(["distill"], "interrupted; what is finished is kept; repeat the command"), (["env"], "interrupted")],
)
def test_an_interruption_of_the_first_imports(words, said, tmp_path):
    """Torch takes seconds to import; Ctrl-C meanwhile ends as it does later."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "pad_fast.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr.startswith(f"pad-fast: {said}") and done.stderr.count("\n") == 1
    script = "import sys; from pad_fast.cli import main; sys.exit(main())"  # as the installed command does
    done = subprocess.run([sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.count("\n") == 1


def test_the_package_imports_what_is_asked_for():
    """Every public name, and rooms that scripts reach through the package, without an import of their own."""
    code = (
        "import sys, pad_fast; assert 'torch' not in sys.modules; assert set(pad_fast.__all__) <= set(dir(pad_fast));"
        "[getattr(pad_fast, name) for name in pad_fast.__all__];"
        "pad_fast.data.fit_normalization, pad_fast.engines.backends, pad_fast.training.Trainer, pad_fast.errors;"
        "print(hasattr(pad_fast, 'nothing'), pad_fast.distill.__module__, pad_fast.resume.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "pad_fast.pipeline.distill", "resume"]


def test_commands_that_are_continued_exist():
    assert set(CONTINUED) <= {command.name for command in COMMANDS}
