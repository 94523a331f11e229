"""The command that a page shows gives exactly the settings it was made of, through the real command line."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from pad_fast import Config
from pad_fast.cli.options import given
from pad_fast.cli.parser import parse
from pad_fast.errors import ConfigError
from pad_fast.settings.command import command_of
from pad_fast.settings.resolve import make_settings

from ..support.settings import changed_everywhere


def repeated(config: Config) -> Config:
    """The settings that somebody gets who copies the command into a shell."""
    words = shlex.split(shlex.join(command_of(config.describe())))
    assert words[:2] == ["pad-fast", "distill"]
    return make_settings(overrides=given(parse(words[1:]))).config


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "imagefolder:/a b/it's $HOME", "hf:owner/name,label=fine"])
@pytest.mark.parametrize("method", ["pad", "mtt", "dm", "dsa"])
def test_usual_settings_come_back(dataset: str, method: str) -> None:
    config = make_settings(overrides={"dataset": dataset, "method": method, "ipc": 10, "seed": 4}).config
    assert repeated(config) == config
    assert len(command_of(config.describe())) == 10, "nothing is named that is usual"


@pytest.mark.parametrize("name", changed_everywhere())
def test_every_setting_comes_back(name: str) -> None:
    values = changed_everywhere()
    usual = make_settings(overrides={"dataset": "digits", "method": "mtt"}).config
    try:
        config = replace(usual, **{name: values[name]})
    except ConfigError:
        # One that means nothing without others.
        config = replace(usual, **values)
    assert getattr(config, name) == values[name] or name == "model"
    assert repeated(config) == config


def test_words_that_begin_with_a_dash_stay_values() -> None:
    config = make_settings(overrides={"keep": "-1,0:20"}).config
    assert "--keep=-1,0:20" in command_of(config.describe())
    assert repeated(config) == config


def test_settings_of_another_version_have_no_command() -> None:
    with pytest.raises(ConfigError):
        command_of({**Config().describe(), "method": "unknown"})
    assert command_of({**Config().describe(), "of_a_later_version": 3}) == command_of(Config().describe())
