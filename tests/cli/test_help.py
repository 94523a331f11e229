"""The help: defaults that apply, choices by name, and no flag that a command has no use for."""

from __future__ import annotations

import re

import pytest

from pad_fast.cli.main import main
from pad_fast.data.augment import OPERATIONS
from pad_fast.data.named import NAMES
from pad_fast.engines import backends
from pad_fast.engines.cpu import _PRECISIONS
from pad_fast.engines.triton.engine import PRECISIONS
from pad_fast.models.registry import network
from pad_fast.settings.config import Config
from pad_fast.settings.presets import preset_names
from pad_fast.settings.resolve import make_settings

CHOSEN = ("backend", "precision")


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # lines break behind hyphens


def defaults_in(text: str) -> dict[str, str]:
    """What the help says each setting is where nobody gives it."""
    found = {}
    for name in Config.__dataclass_fields__:
        said = re.search(rf" --{name.replace('_', '-')}[ ,].*?\(default: ([^()]*)\)", text)
        if said:
            found[name] = said.group(1)
    return found


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], {}),
        (["--dataset", "cifar10", "--ipc", "10"], {"dataset": "cifar10", "ipc": 10}),
        (["--method", "dm"], {"method": "dm"}),
        (["--preset=cifar100-ipc50"], {"preset_name": "cifar100-ipc50"}),
    ],
)
def test_the_defaults_are_those_that_apply(words, settings, capsys):
    config = make_settings(**settings).config
    shown = defaults_in(help_of(capsys, "distill", *words))
    expected = {name: "none" if value is None else str(value) for name, value in config.describe().items()}
    assert shown == expected
    assert shown["model"] == config.model and (shown["lr_img"] != str(Config.lr_img) or "10" in words)


def test_a_file_of_settings_counts(capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("iterations: 77\nipc: 10\n")
    text = help_of(capsys, "distill", "--config", str(tmp_path / "own.yaml"))
    assert defaults_in(text)["iterations"] == "77" and "with ipc 10" in text
    # What is wrong with the words is for the command to say.
    assert "--ipc N" in help_of(capsys, "distill", "--preset", "cifar11", "--config", "nothing.yaml")
    assert defaults_in(help_of(capsys, "sweep", "--dataset", "digits"))["eval_baselines"] == "False"


def test_choices_are_named(capsys):
    text = help_of(capsys, "distill")
    for name in (*NAMES, *OPERATIONS, *backends(), *preset_names(), "ResNet18", "torchvision:NAME"):
        assert name in text, name
    said = {name: set(re.split(r"\W+", Config.__dataclass_fields__[name].metadata["help"])) for name in CHOSEN}
    assert said["backend"] - {"engine", "or"} == set(backends())
    assert said["precision"] - {"arithmetic", "of", "the", "engine", "or", "cpu", "triton"} == {
        *_PRECISIONS,
        *PRECISIONS,
    }
    assert network("ResNet18", channels=1, classes=2, resolution=16) is not None


@pytest.mark.parametrize(
    ("command", "missing", "there"),
    [
        (
            "score",
            ("--dsa", "--checkpoint-every", "--split", "--validation-every", "--workers", "--order-file"),
            "--seed",
        ),
        ("experts", ("--buffer-path", "--precision", "--checkpoint-every", "--layer-loss-every"), "--workers"),
        ("sweep", ("--resume",), "--overwrite"),
        ("evaluate", ("--ipc", "--checkpoint-every", "--zca-x"), "--resolution"),
    ],
)
def test_flags_without_a_use_are_not_in_the_help(command, missing, there, capsys):
    text = help_of(capsys, command)
    for flag in missing:
        assert f" {flag} " not in text, flag
    assert f" {there} " in text


def test_they_are_still_read(tmp_path, capsys):
    """Command lines that have them go on working."""
    words = ["score", "--out", str(tmp_path), "--checkpoint-every", "10", "--dsa", "none", "--score-networks", "1"]
    assert main([*words, "--score-epochs", "1", "--model", "ConvNetD2W8", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distil"], "there is no command 'distil'. Did you mean 'distill'?"),
        (["evalute", "run"], "Did you mean 'evaluate'?"),
        (["experts", "verfy", "store"], "Did you mean 'experts verify'?"),
        (["distill", "--itertions", "3"], "Did you mean '--iterations'?"),
    ],
)
def test_a_mistyped_word_gets_a_suggestion(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and said in told and told.count("\n") == 1
