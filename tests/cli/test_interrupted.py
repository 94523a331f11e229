"""Ctrl-C: the hint of every command is one that this command understands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pad_fast.cli import parser
from pad_fast.cli.commands import COMMANDS
from pad_fast.cli.main import main
from pad_fast.cli.parser import parse

WORDS = {
    "score": ["--out", "scores"],
    "experts": ["--out", "experts"],
    "experts info": ["store"],
    "experts verify": ["store"],
    "experts convert": ["a", "b"],
    "sweep": ["--out", "sweep"],
    "evaluate": ["set"],
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
    if "--resume" in said:
        assert parse([*words, "--resume"]).resume
    elif command.name != "bench":  # which hands its words on
        with pytest.raises(SystemExit):
            parse([*words, "--resume"])
    keeps = command.name in ("distill", "sweep", "score", "experts", "experts convert", "evaluate")
    assert ("repeat the command" in said) == keeps
