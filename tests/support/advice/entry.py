"""A message with a way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pad_fast.cli.parser import parse

from ..small import MODEL


@dataclass(frozen=True)
class Entry:
    """Advice and what comes of it.

    Attributes:
        name: of the test.
        wrong: does what the message is about, given an empty folder.
        says: a regular expression for the advice.
        right: follows it, in the same folder; every alternative that the message names.
    """

    name: str
    wrong: Callable[[Path], object]
    says: str
    right: Callable[[Path], object]


def in_turn(*calls: Callable[[], object]) -> None:
    """Follow several alternatives."""
    for call in calls:
        call()


def command(*words: object) -> None:
    """A command of the command line, whose errors are raised."""
    options = parse([str(word) for word in words])
    options.command.run(options)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    """Pixels in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def changed(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same with some values exchanged."""
    return {**values, **changes}


def evaluated(distilled: Path, *words: object) -> None:
    """`pad-fast evaluate` at its smallest."""
    smallest = ("--model", MODEL, "--eval-networks", 1, "--eval-epochs", 1, "--no-eval-baselines", "--quiet")
    command("evaluate", distilled, *words, *smallest)
