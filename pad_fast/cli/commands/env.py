"""`pad-fast env`."""

from __future__ import annotations

import argparse

from ..command import Command
from ..output import print_once


def _flags(parser: argparse.ArgumentParser) -> None:
    """None: it describes where it runs."""


def _run(options: argparse.Namespace) -> None:
    from ...runtime.environment import environment, format_environment

    print_once(format_environment({**environment(), "kernels": _kernels()}))


def _kernels() -> str:
    """What `backend="auto"` knows of the Triton kernels on the first card."""
    import torch

    from ...engines.triton import verdicts

    if not torch.cuda.is_available():
        return "no card to check them on"
    subject = verdicts.subject_of(torch.device("cuda", 0))
    found = verdicts.read(verdicts.path_of(subject), subject)
    if found is None:
        return "not checked yet on this card (the first run does, or pad-fast check)"
    return str(found) if found.objection is None else f"not used: {found.objection}"


ENV = Command("env", "say what is installed, built and missing", _flags, _run)
