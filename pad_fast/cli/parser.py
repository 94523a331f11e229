"""The command line as a whole: its commands, and how its words are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from .._version import __version__
from ..errors import ConfigError, nearest
from ..settings.families import Program
from .commands import COMMANDS
from .defaults import show_defaults
from .published import translated

PROGRAMS: dict[str, Program] = {"distill": "distill", "experts": "experts", "evaluate": "evaluate"}
"""Commands that published programs did before, and which."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of one command.

    Raises:
        SystemExit: they cannot be understood, or are asked to explain themselves.
    """
    words = list(arguments)
    if " ".join(words[:2]) in _names():
        words[:2] = [" ".join(words[:2])]
    parser = build_parser()
    _require_command(parser, words)
    if words and {"-h", "--help"}.intersection(words[1:]):
        show_defaults(_parser_of(parser, words[0]), words[1:])
    published: dict[str, Any] = {}
    if words and words[0] in PROGRAMS:
        its_parser = _parser_of(parser, words[0])
        flags = [flag for action in its_parser._actions for flag in action.option_strings]
        try:
            words[1:], published = translated(words[1:], flags, PROGRAMS[words[0]])
        except ConfigError as error:
            its_parser.error(str(error))
    options, unknown = parser.parse_known_args(words)
    options.published = published
    if getattr(options, "out", None) == "":
        options.parser.error("--out is empty; name a place to write to")
    if unknown:
        flags = [flag for action in options.parser._actions for flag in action.option_strings]
        options.parser.error(f"unknown argument {unknown[0]!r}.{nearest(unknown[0], flags)}")
    return options


def _names() -> list[str]:
    return [command.name for command in COMMANDS]


def _require_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Say which command a mistyped one may be."""
    named = [word for word in words[:2] if not word.startswith("-")]
    # Where some commands begin with another one's name, that takes no word but flags.
    parts = 2 if any(name.startswith(f"{' '.join(named[:1])} ") for name in _names()) else 1
    command = " ".join(named[:parts])
    if words and not words[0].startswith("-") and command not in _names():
        parser.error(f"there is no command {command!r}.{nearest(command, _names())}")


def _parser_of(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found = commands.choices[command]
    assert isinstance(found, argparse.ArgumentParser)
    return found


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; every field of the config is a flag of those it changes."""
    parser = _Parser(
        prog="pad-fast",
        description="Dataset distillation by trajectory matching (PAD; exact, in constant memory), gradient matching "
        "and distribution matching.",
    )
    parser.add_argument("--version", action="version", version=f"pad_fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sentence = f"{command.summary[0].upper()}{command.summary[1:]}."
        its_parser = commands.add_parser(command.name, help=command.summary, description=sentence, allow_abbrev=False)
        its_parser.set_defaults(command=command, parser=its_parser)
        command.flags(its_parser)
    return parser


class _Parser(argparse.ArgumentParser):
    """Errors in one line: the usage of a command with eighty flags would push them off the screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
