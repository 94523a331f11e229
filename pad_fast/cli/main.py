"""The command line: `pad-fast COMMAND ...`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..errors import DistillationStopped, PadFastError
from .command import goes_on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 stopped with a checkpoint, 2 unusable input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except KeyboardInterrupt:
        # The name of a command is one word, but for "experts info" and the like.
        named = [word for word in words[:2] if not word.startswith("-")]
        command = " ".join(named if words[:1] == ["experts"] else named[:1])
        print("; ".join(filter(None, ("pad-fast: interrupted", goes_on(command)))), file=sys.stderr)
        return 130


def _run(words: Sequence[str]) -> int:
    # Torch comes with these, which takes seconds: Ctrl-C is answered by then.
    from ..runtime import distributed
    from .parser import parse

    options = parse(words)
    try:
        group = distributed.join() if options.command.joins else distributed.group()
        level = logging.INFO if group.main else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        options.command.run(options)
    except DistillationStopped as error:
        if distributed.group().main:  # it stops on all ranks alike
            print(f"pad-fast: stopped: {error}", file=sys.stderr)
        return 1
    except PadFastError as error:
        group = distributed.group()
        who = "pad-fast" if group.size == 1 else f"pad-fast, rank {group.rank}"
        print(f"{who}: error: {error}", file=sys.stderr)
        return 2
    return 0
