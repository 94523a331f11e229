"""The command line: commands, flags and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from .._version import __version__
from ..errors import nearest
from ..settings.choices import METHODS
from ..settings.config import Config
from ..settings.fields import Kind, kinds
from .commands import (
    _bench,
    _compare,
    _distill,
    _env,
    _evaluate,
    _experts,
    _experts_convert,
    _experts_info,
    _experts_verify,
    _report,
    _score,
    _sweep,
)

_STAGES: dict[str, tuple[str, ...]] = {
    "score": ("data", "scores", "run"),
    "experts": ("data", "scores", "experts", "run"),
    "distill": ("data", "scores", "experts", "distill", "evaluate", "run"),
    "sweep": ("data", "scores", "experts", "distill", "evaluate", "run"),
    "evaluate": ("evaluate",),
}
_SWEPT = ("prune", "mask", "mask_ratio", "seed")
"""Settings that `sweep` takes several values of, under flags of its own."""
_STAGE_TITLES = {
    "data": "data and network",
    "scores": "difficulty scores",
    "experts": "experts (FIEx)",
    "distill": "distillation (FIEm)",
    "evaluate": "evaluation",
    "run": "how it runs",
}


_EXPERT_COMMANDS = ("info", "verify", "convert")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of one command.

    Raises:
        SystemExit: they cannot be understood, or are asked to explain themselves.
    """
    words = list(arguments)
    if words[:1] == ["experts"] and words[1:2] and words[1] in _EXPERT_COMMANDS:
        words[:2] = [" ".join(words[:2])]
    options, unknown = build_parser().parse_known_args(words)
    if unknown:
        flags = [flag for action in options.parser._actions for flag in action.option_strings]
        options.parser.error(f"unknown argument {unknown[0]!r}.{nearest(unknown[0], flags)}")
    return options


class _Parser(argparse.ArgumentParser):
    """Errors in one line: the usage of a command with eighty flags would push them off the screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; every field of the config is a flag."""
    parser = _Parser(
        prog="pad-fast",
        description="Dataset distillation by trajectory matching (PAD; exact, in constant memory), gradient matching "
        "and distribution matching.",
    )
    parser.add_argument("--version", action="version", version=f"pad_fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    distill = _command(commands, "distill", "run every stage: scores, experts, distillation, evaluation", _distill)
    distill.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/<dataset>-ipc<ipc>-<method>)")
    distill.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    distill.add_argument("--overwrite", action="store_true", help="replace a run with other settings in --out")
    distill.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="NAME",
        help="tensorboard or wandb: send the numbers there too, through its own package; may be repeated",
    )
    _add_settings(distill, "distill")

    sweep = _command(commands, "sweep", "run distill over a grid of what is pruned and what is masked", _sweep)
    sweep.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the sweep; repeating a killed command completes it"
    )
    sweep.add_argument("--overwrite", action="store_true", help="replace runs with other settings in --out")
    sweep.add_argument(
        "--prune",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="KIND:X,X",
        help="FIEx: none, hardest:0,0.1,0.2, easiest:0.1 (default: what --config says, else none)",
    )
    sweep.add_argument(
        "--mask",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="KIND:X,X",
        help="FIEm: none, depth:0,0.25,0.5, layers:1,2, loss:0.5 (default: what --config says, else none)",
    )
    sweep.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="seeds that are averaged (default: the one of --config, else 0)",
    )
    _add_settings(sweep, "sweep")

    score = _command(commands, "score", "score the difficulty of every training image", _score)
    score.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="a folder, or a file (.safetensors, or .pt for the reference's order table) that the others are named "
        "after; repeating a killed command continues it",
    )
    _add_settings(score, "score")

    experts = _command(commands, "experts", "train expert trajectories", _experts)
    experts.add_argument("--out", required=True, metavar="DIR", help="folder of the store; repeating continues it")
    _add_settings(experts, "experts")

    info = _command(commands, "experts info", "say what is in an expert store", _experts_info)
    info.add_argument("store", metavar="DIR", help="a store, or a folder of replay_buffer_*.pt")

    verify = _command(commands, "experts verify", "compare every byte of a store with its checksums", _experts_verify)
    verify.add_argument("store", metavar="DIR", help="a store")

    convert = _command(commands, "experts convert", "write experts in another form, one at a time", _experts_convert)
    convert.add_argument("source", metavar="SRC", help="a store, or a folder of replay_buffer_*.pt")
    convert.add_argument("destination", metavar="DST", help="folder to write to; repeating continues it")
    convert.add_argument("--replay", action="store_true", help="write replay_buffer_*.pt instead of a store")
    convert.add_argument("--keep", default="all", help="snapshots to keep: all, or e.g. 0:22,-1 (default: all)")
    convert.add_argument(
        "--expert-storage", default="float32", help="float32, float16 or bfloat16-delta (default: float32)"
    )
    convert.add_argument("--quiet", action="store_true", help="no progress")

    evaluate = _command(commands, "evaluate", "train fresh networks on a distilled set and test them", _evaluate)
    evaluate.add_argument("distilled", metavar="PATH", help="folder or file of a distilled set (the .pt trio too)")
    evaluate.add_argument("--dataset", help="real data (default: what the set was distilled from)")
    evaluate.add_argument("--model", action="append", help="network, may be repeated (default: the distilled one's)")
    evaluate.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    evaluate.add_argument("--out", metavar="FILE", help="also write the rows as JSON")
    evaluate.add_argument("--difficulty", metavar="FILE", help="EL2N scores (default: computed for the easiest images)")
    evaluate.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where results are kept, so that repeating continues (default: cache/evaluation beside the set)",
    )
    evaluate.add_argument(
        "--ddranking", metavar="DIR", help="also write the set as the tensors that DD-Ranking's metrics read"
    )
    evaluate.add_argument("--backend", default="auto", help="engine (default: auto)")
    _add_place(evaluate)
    evaluate.set_defaults(data_dir=None, device="auto")  # no file names them
    _add_fields(evaluate, _STAGES["evaluate"])

    report = _command(commands, "report", "write images.png and report.html of a run, finished or not", _report)
    report.add_argument("run", metavar="RUN", help="folder of the run, or of several runs that are to be compared")
    report.add_argument("--watch", action="store_true", help="write it again and again until the run has ended")

    compare = _command(commands, "compare", "put runs beside each other: accuracy, loss, settings, time", _compare)
    compare.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs, or a folder that holds several")
    compare.add_argument("--out", metavar="FILE", help="also write a page (HTML)")

    bench = _command(commands, "bench", "measure engines against plain torch (in a source checkout)", _bench)
    bench.add_argument("suite", metavar="SUITE", help="what to measure; docs/benchmarks.md lists them")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the suite, e.g. --rounds 3")

    _command(commands, "env", "say what is installed, built and missing", _env)
    return parser


def _command(commands: Any, name: str, text: str, handler: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(handler=handler, parser=parser)
    return parser


def _add_settings(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML settings, ours or the reference's")
    parser.add_argument("--preset", metavar="NAME", help="published settings, e.g. cifar10-ipc10")
    if command not in ("distill", "sweep"):
        # The method and the IPC choose the defaults of the other settings.
        parser.add_argument("--method", choices=METHODS, default=argparse.SUPPRESS, help="defaults of this method")
        parser.add_argument(
            "--ipc", type=int, default=argparse.SUPPRESS, help="defaults for this many images per class"
        )
    parser.epilog = (
        "Defaults are the published general ones. Data sets with settings of their own (digits, cifar10, cifar100, "
        "tinyimagenet) use those for the IPC asked for, and a method adjusts them; config.yaml in the run's folder "
        "says what was used. Learning rates are per iteration, epochs count from 0, ratios are fractions from 0 to 1."
    )
    _add_place(parser)
    _add_fields(parser, _STAGES[command], but=_SWEPT if command == "sweep" else ())


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", default=argparse.SUPPRESS, help="where data sets are")
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is not there yet")
    parser.add_argument("--device", default=argparse.SUPPRESS, help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_fields(parser: argparse.ArgumentParser, stages: Sequence[str], *, but: Sequence[str] = ()) -> None:
    groups = {stage: parser.add_argument_group(_STAGE_TITLES[stage]) for stage in stages}
    for item in fields(Config):
        stage = item.metadata["stage"]
        if stage not in groups or item.name in but:
            continue
        kind, choices = kinds(Config)[item.name], item.metadata["choices"]
        flag = "--" + item.name.replace("_", "-")
        default = "none" if item.default is None else item.default
        text = f"{item.metadata['help']} (default: {default})".replace("%", "%%")
        if kind.base is bool:
            groups[stage].add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            groups[stage].add_argument(
                flag,
                type=_reader(kind),
                default=argparse.SUPPRESS,
                # The config refuses other values, and names the nearest.
                metavar="NAME" if choices else _METAVARS[kind.base],
                help=text,
            )


_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}


def _reader(kind: Kind) -> Callable[[str], Any]:
    """The function that makes a value of a word on the command line."""

    def read(text: str) -> Any:
        return None if kind.optional and text.lower() == "none" else kind.base(text)

    read.__name__ = kind.base.__name__  # argparse names the type in its error message
    return read
