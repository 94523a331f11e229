"""A flag on the command line beats the file, also where it gives the default: every flag of every command."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from pad_fast import Config
from pad_fast.cli.main import main
from pad_fast.cli.parser import build_parser
from pad_fast.pipeline.checks import PATHS
from pad_fast.settings.yaml_files import known_keys

from ..support.settings import changed_everywhere

# What a file may say, as it says it here and as the flag then gives it. The device's default is "auto".
FILE: dict[str, Any] = {**changed_everywhere(), "device": "cuda:7", "data_dir": "theirs"}
FLAG: dict[str, Any] = {**{item.name: item.default for item in fields(Config)}, "device": "auto", "data_dir": "ours"}
# `sweep` takes several values of these, and a ratio with its mask.
SWEPT = {"seeds": "seed"}
SWEPT_MASK = {"mask": "none"}


class Resolved(Exception):
    """Raised in place of what a command does, with what it would have done it with."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings


def commands() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(subparsers.choices)


PARSERS = commands()
WITH_A_FILE = [name for name, parser in PARSERS.items() if "--config" in parser._option_string_actions]
CASES = [
    (command, action.dest)
    for command in WITH_A_FILE
    for action in PARSERS[command]._actions
    # `family` is no setting: it says how others are read.
    if action.option_strings and SWEPT.get(action.dest, action.dest) in set(known_keys()) - {"family"}
]


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command raises :class:`Resolved` where it has put its settings together."""

    class Stopped:
        def __init__(self, config: Config, out: Path, device: str, *_: Any, **__: Any) -> None:
            self.settings = {**config.describe(), "device": device}

        def require_usable(self, data_dir: Any) -> None:
            raise Resolved(**self.settings, data_dir=data_dir)

        def run(self, dataset: Any, data_dir: Any, *, download: bool = False) -> None:
            raise Resolved(**self.settings, data_dir=data_dir)

    for name in ("distill", "sweep"):
        module = importlib.import_module(f"pad_fast.pipeline.{name}")
        monkeypatch.setattr(module, "Pipeline", Stopped)
        monkeypatch.setattr(module, "resolve_device", lambda device: device)
    sweep = importlib.import_module("pad_fast.pipeline.sweep")
    monkeypatch.setattr(sweep, "_own_gpu", lambda device: device)
    monkeypatch.setattr(sweep, "load_dataset", lambda *_, data_dir, **__: data_dir)

    asked: list[str] = []

    def stop(config: Config, dataset: Any, data_dir: Any, *, download: bool, progress: Any) -> None:
        raise Resolved(**config.describe(), data_dir=data_dir, device=asked[-1])

    monkeypatch.setattr("pad_fast.runtime.device.resolve_device", asked.append)
    monkeypatch.setattr("pad_fast.pipeline.configured.configured_data", stop)


def resolved(*arguments: str) -> dict[str, Any]:
    with pytest.raises(Resolved) as stop:
        main(arguments)
    return stop.value.settings


def typed(action: argparse.Action, value: Any) -> list[str]:
    """The words that give an option a value."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return [action.option_strings[0 if value else 1]]
    return [action.option_strings[0], "none" if value is None else str(value)]


def test_there_are_cases() -> None:
    assert set(WITH_A_FILE) == {"distill", "sweep", "score", "experts"}
    assert {dest for command, dest in CASES if command == "distill"} == set(FLAG)
    swept = {SWEPT.get(dest, dest) for command, dest in CASES if command == "sweep"}
    assert swept == set(FLAG) - {"mask_ratio"}


def test_the_help_of_a_setting_shows_its_default() -> None:
    for command, dest in CASES:
        action = next(action for action in PARSERS[command]._actions if action.dest == dest)
        if action.help == argparse.SUPPRESS:  # without a use here
            continue
        if dest != "data_dir" and not (command == "sweep" and dest in ("seeds", "prune", "mask")):
            default = "none" if FLAG[dest] is None else FLAG[dest]
            assert f"(default: {default})" in str(action.help), (command, dest)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(("command", "dest"), CASES)
def test_a_flag_beats_the_file_with_the_default_too(tmp_path: Path, command: str, dest: str) -> None:
    name = SWEPT.get(dest, dest)
    action = next(action for action in PARSERS[command]._actions if action.dest == dest)
    flag = SWEPT_MASK.get(name, FLAG[name]) if command == "sweep" else FLAG[name]
    assert FILE[name] != flag
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({name: FILE[name]}), encoding="utf-8")
    file = ["--config", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    # A run records where its files are, from wherever it is continued.
    absolute = name in PATHS and command in ("distill", "sweep")
    assert resolved(command, *file)[name] == (str(Path(FILE[name]).absolute()) if absolute else FILE[name])
    assert resolved(command, *file, *typed(action, flag))[name] == flag


def plain_options() -> Iterator[tuple[str, argparse.Action]]:
    """Options with a value that no file can say instead."""
    for command, parser in PARSERS.items():
        for action in parser._actions:
            if action.option_strings and (command, action.dest) not in CASES and action.nargs != 0:
                yield command, action


PLAIN = list(plain_options())


@pytest.mark.parametrize(("command", "action"), PLAIN, ids=[f"{name} {action.dest}" for name, action in PLAIN])
def test_other_options_are_what_was_typed(command: str, action: argparse.Action) -> None:
    """Also the default, whose presence on the command line changes nothing."""
    parser = PARSERS[command]
    required = {other.dest: ["x"] if other.nargs != "+" else ["x", "x"] for other in parser._actions if other.required}
    words = [
        word
        for other in parser._actions
        if other.required and other is not action
        for word in [*other.option_strings[:1], *required[other.dest]]
    ]
    value = FLAG.get(action.dest) if action.default in (None, argparse.SUPPRESS) else action.default
    kind = getattr(action.type, "__name__", "")
    value = {"float": 0.5, "int": 3}.get(kind, "x") if value is None or isinstance(value, list) else value
    options = parser.parse_args([*words, *typed(action, value)])
    assert getattr(options, action.dest) in (value, [value])


def test_evaluate_passes_every_flag_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads no file of settings, and the settings of the set's own run say nothing about how it is evaluated."""

    class Distilled:
        config = Config(**changed_everywhere()).describe()

    given: dict[str, Any] = {}

    def stop(distilled: Any, data: Any, **options: Any) -> None:
        given.update(options, data=data)
        raise Resolved

    monkeypatch.setattr("pad_fast.data.distilled.load", lambda path, **kinds: Distilled())
    monkeypatch.setattr(
        "pad_fast.data.load_dataset",
        lambda name, **options: (name, options["data_dir"], options["resolution"]),
    )
    monkeypatch.setattr("pad_fast.pipeline.configured.evaluate", stop)
    mine = {a.dest: a for a in PARSERS["evaluate"]._actions if a.dest in FLAG and a.dest != "model"}
    words = [word for dest, action in mine.items() for word in typed(action, FLAG[dest])]
    assert resolved("evaluate", "somewhere", "--quiet", *words) == {}
    assert given["data"] == ("digits", "ours", FILE["resolution"]), "the set's own, where none is given"
    resolved("evaluate", "somewhere", "--quiet", *words, "--resolution", "12")
    assert given["data"] == ("digits", "ours", 12)
    names = {"eval_networks": "repeats", "eval_epochs": "epochs", "eval_full_epochs": "full_epochs"}
    for dest in mine.keys() - {"dataset", "data_dir", "resolution"}:
        assert given[names.get(dest, dest.removeprefix("eval_"))] == FLAG[dest], dest
