"""The command line: `pad-fast COMMAND ...`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..errors import DistillationStopped, PadFastError
from ..runtime import distributed
from .parser import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 stopped with a checkpoint, 2 unusable input, 130 interrupted."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
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
    except KeyboardInterrupt:
        print("; ".join(filter(None, ("pad-fast: interrupted", options.command.goes_on))), file=sys.stderr)
        return 130
    return 0
