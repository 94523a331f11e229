"""The suites that `python -m benchmarks` runs, in order.

A suite is a module of this package, run as `python -m benchmarks.<module>`. It has

* `SUITE`, a :class:`Suite`: its name, one line about it, and its options for the quick and for the full run;
* `main(argv=None)`: checks its rivals against each other (`harness.require`), times them by turns, prints a table, and
  with `--json FILE` writes the rows through `harness.write`.

To add one, write the module and put its name into :data:`MODULES`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

MODULES = (
    "unroll",
    "augmentation",
    "scoring",
    "training",
    "experts",
    "evaluation",
    "matching",
    "end_to_end",
    "fidelity",
    "criteria",
    "reproduce",
)


@dataclass(frozen=True)
class Suite:
    """A suite as the runner knows it."""

    name: str
    about: str
    quick: tuple[str, ...] | None
    """Options of the smoke test: seconds, every path once. None: it has no problem small enough, and is left out."""
    full: tuple[str, ...] | None
    """Options of the full run on a CPU: a few minutes. None: a study that takes longer, and is run by itself."""


def suites() -> dict[str, Suite]:
    """Every suite by its module's name."""
    return {name: importlib.import_module(f"benchmarks.{name}").SUITE for name in MODULES}
