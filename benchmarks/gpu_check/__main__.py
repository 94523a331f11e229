"""The command line: see the package's text."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import benchmarks.gpu_check
from benchmarks.gpu_check import carried, stages, tree
from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.processes import Surroundings
from benchmarks.gpu_check.results import Results

ON_A_CPU = 6.0
"""Times the limits of a GPU: kernels are interpreted there."""
_PREFILL_SECONDS = 3600.0


class Stopped(BaseException):
    """Somebody asked this process to end."""


@contextmanager
def signals_as_errors() -> Iterator[None]:
    """Whoever stops the check lets it write down what it has; a second signal changes nothing."""

    def stop(number: int, frame: Any) -> None:
        for each in caught:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prefill(capability: int, wanted: Sequence[str]) -> int:
    """Compile what these stages need for a card into the folder that goes along with the tree."""
    folder = carried.FOLDER / carried.KERNELS
    tree.copy_sources()
    tree.LOGS.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # The machine code alone: what it was made from is for whoever reads what the compiler did.
    environment |= {"PYTHONPATH": str(tree.TREE), "TRITON_CACHE_DIR": str(folder), "TRITON_STORE_BINARY_ONLY": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu_check.compiling", "--stages", ",".join(wanted)]
    command += ["--capability", str(capability), "--seconds", str(_PREFILL_SECONDS)]
    log = tree.LOGS / "prefill.log"
    log.unlink(missing_ok=True)
    part = Surroundings(tree.TREE, environment).run("prefill", command, log, seconds=_PREFILL_SECONDS)
    carried.slim(folder)
    print(log.read_text(encoding="utf-8") + f"{folder}: {carried.size_of(folder)}, {part.state} {part.detail}")
    return part.state != "ok"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; the exit status is 0 when all of them succeeded, or were skipped."""
    text = benchmarks.gpu_check.__doc__ or ""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=text.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--scale", type=float, help=f"multiplies the time limits (default: 1; {ON_A_CPU:g} on a CPU)")
    parser.add_argument("--device", default="cuda", help="with cpu, benchmarks are tiny (default: cuda)")
    parser.add_argument(
        "--stage", type=stages.parse, default=[*stages.STAGES], help=f"of {', '.join(stages.STAGES)} (default: all)"
    )
    parser.add_argument("--data", type=Path, help="raw images for the reproduce stage, a folder or an archive")
    parser.add_argument("--bundle", action="store_true", help="copy golden files beside the tree's own; nothing else")
    parser.add_argument(
        "--prefill", type=int, metavar="CAPABILITY", help="compile kernels for a card, as 90; nothing else"
    )
    options = parser.parse_args(argv)
    if options.bundle:
        print(carried.bundle())
    if options.prefill:
        return prefill(options.prefill, options.stage)
    if options.bundle:
        return 0
    if options.out is None:
        parser.error("--out is missing; name a folder for the results")
    shutil.rmtree(tree.LOGS, ignore_errors=True)
    described: dict[str, Any] = {
        "arguments": [*(sys.argv[1:] if argv is None else argv)],
        "python": platform.python_version(),
    }
    described |= {"importable": tree.importable(tree.NEEDED + tree.USEFUL), "stages": options.stage}
    results = Results(options.out.resolve(), tree.LOGS, described)
    scale = (ON_A_CPU if options.device == "cpu" else 1.0) if options.scale is None else options.scale
    check = Check(results, options.device, options.stage, scale, options.data)
    with signals_as_errors():
        try:
            good = check.run()
        except Stopped as stopped:
            results.stopped(f"by {stopped}")
            return 1
    print(f"\n{results.out}: {', '.join(sorted(path.name for path in results.out.iterdir()))}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
