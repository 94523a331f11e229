"""Command lines of published programs: their words, with underscores, in place of ours."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..settings.config import Config
from ..settings.families import FAMILIES, SWITCHES, Program, find_family, is_published, published_keys
from ..settings.yaml_files import load_yaml, read_scalar

# Settings that we have too may be meant as the program means them.
_OURS = {item.name for item in fields(Config)} | {"data_dir", "device"}
# Of evaluation programs: the three files of a set.
_FILES = ("data_dir", "label_dir", "lr_dir")
_BUFFERS = "buffers"


def take_words(words: Sequence[str], flags: Sequence[str], program: Program) -> tuple[list[str], dict[str, Any]]:
    """Split a command line into words for our parser and settings as a published program's parser would read them.

    A word like `--lr_img` or `--Iteration` is theirs, as is every one of their flags that we have not (`--res`).

    Args:
        words: behind the command's name.
        flags: of our command.
        program: theirs that the command stands for.
    """
    keys = published_keys(program) | {*_FILES, "cfg"}
    left: list[str] = []
    taken: dict[str, Any] = {}
    rest = list(words)
    # Two words of theirs name one data set of ours.
    together = {"--dataset"} if any(word.partition("=")[0] == "--subset" for word in words) else set()
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        key = name.removeprefix("--")
        if (
            (name in flags and name not in {"--family", *together})
            or not re.fullmatch(r"--[A-Za-z][A-Za-z_]*", name)
            or not (key in keys or key in _OURS)
        ):
            left.append(word)
        elif equals or (key not in SWITCHES and rest and not rest[0].startswith("--")):
            taken[key] = read_scalar(value if equals else rest.pop(0))
        else:
            taken[key] = True
    return left, taken


def translated(words: Sequence[str], flags: Sequence[str], program: Program) -> tuple[list[str], dict[str, Any]]:
    """A command line as our parser reads it, and the settings of a published one, which are then `family`'s.

    Raises:
        ConfigError: the three files of a set are not where a set has them, or `--family` names none.
    """
    left, taken = take_words(words, flags, program)
    given = {word.partition("=")[0] for word in left}
    theirs = _is_theirs(left, taken)
    if "cfg" in taken:
        left += ["--config", str(taken.pop("cfg"))]
    elif theirs:
        family = find_family(taken, program, typed=True) or FAMILIES["mtt"]
        taken["family"] = family.name
    if not theirs:
        return left + [word for key, value in taken.items() for word in _dashed(key, value)], {}
    if program == "experts" and "--out" not in given:
        left += ["--out", str(taken.pop("buffer_path", _BUFFERS))]
    if program == "evaluate" and "data_dir" in taken:
        left += [str(_images(taken))]
        left += [] if "--dataset" in given else ["--dataset", "cifar10"]
        left += [] if given & {"--whitening", "--zca", "--mean-std", "--normalize"} else ["--whitening", "mean-std"]
    return left, taken


def _is_theirs(left: Sequence[str], taken: Mapping[str, Any]) -> bool:
    """Whether a whole command line is a published one, rather than ours with a word spelled their way."""
    spelled = [word.partition("=")[0][2:] for word in left if word.startswith("--")]
    dashed = any("-" in name and name.replace("-", "_") in _OURS for name in spelled)
    return bool(taken) and (is_published(taken) or "cfg" in taken or not dashed)


def _dashed(key: str, value: Any) -> list[str]:
    flag = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, str(value)]


def _images(taken: dict[str, Any]) -> Path:
    """The images' file, which stands for the set; the others are taken out."""
    images, labels, rate = (Path(str(taken.pop(key, ""))) for key in _FILES)
    for path, what in ((labels, "labels"), (rate, "lr")):
        if path.name and path != images.with_name(images.name.replace("images_", f"{what}_", 1)):
            raise ConfigError(
                f"{path} is not beside {images} under the name that a set's files have; put images_X.pt, labels_X.pt "
                "and lr_X.pt into one folder"
            )
    return images


def settings_of(options: argparse.Namespace) -> Any:
    """What `make_settings` takes for a config: the file, with the words of a published command line above it."""
    taken: dict[str, Any] = dict(getattr(options, "published", {}))
    if options.family is not None:  # of a command that stands for no program
        taken["family"] = options.family
    if not taken:
        return options.config
    return {**(load_yaml(options.config) if options.config else {}), **taken}
