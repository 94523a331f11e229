"""The command line: `pad-fast score | experts | distill | sweep | evaluate | report | compare | bench | env`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ._version import __version__
from .errors import ConfigError, DistillationStopped, PadFastError, StoreError, nearest
from .runtime import distributed
from .settings.config import METHODS, Config

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 stopped with a checkpoint, 2 unusable input, 130 interrupted."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        # The processes of a sweep do different runs, and need not know of each other.
        group = distributed.group() if options.handler is _sweep else distributed.join()
        level = logging.INFO if group.main else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        options.handler(options)
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
        print("pad-fast: interrupted; finished stages are kept, continue with --resume", file=sys.stderr)
        return 130
    return 0


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


def _print(text: object) -> None:
    """Results, once: several processes have the same."""
    if distributed.group().main:
        print(text)


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
        default=["none"],
        metavar="KIND:X,X",
        help="FIEx: none, hardest:0,0.1,0.2, easiest:0.1 (default: none)",
    )
    sweep.add_argument(
        "--mask",
        nargs="+",
        default=["none"],
        metavar="KIND:X,X",
        help="FIEm: none, depth:0,0.25,0.5, layers:1,2, loss:0.5 (default: none)",
    )
    sweep.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds that are averaged (default: 0)"
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
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets are")
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is not there yet")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_fields(parser: argparse.ArgumentParser, stages: Sequence[str], *, but: Sequence[str] = ()) -> None:
    groups = {stage: parser.add_argument_group(_STAGE_TITLES[stage]) for stage in stages}
    for item in fields(Config):
        stage = item.metadata["stage"]
        if stage not in groups or item.name in but:
            continue
        kinds = str(item.type).split(" | ")
        flag = "--" + item.name.replace("_", "-")
        default = "none" if item.default is None else item.default
        text = f"{item.metadata['help']} (default: {default})".replace("%", "%%")
        if kinds[0] == "bool":
            groups[stage].add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            groups[stage].add_argument(
                flag,
                type=_parser_of(item.name, kinds),
                default=argparse.SUPPRESS,
                metavar={"int": "N", "float": "X", "str": "TEXT"}[kinds[0]],
                help=text,
            )


def _parser_of(name: str, kinds: Sequence[str]) -> Any:
    convert = {"int": int, "float": float, "str": str}[kinds[0]]

    def parse(text: str) -> Any:
        if "None" in kinds and text.lower() == "none":
            return None
        return convert(text)

    parse.__name__ = kinds[0]  # argparse names the type in its error message
    return parse


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Config fields that were on the command line."""
    return {item.name: getattr(options, item.name) for item in fields(Config) if hasattr(options, item.name)}


def _progress(options: argparse.Namespace) -> Any:
    from .runtime.progress import Progress

    return Progress(quiet=options.quiet)


def _run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `distill` and `sweep` take alike."""
    return {
        "config": options.config,
        "preset": options.preset,
        "out": options.out,
        "data_dir": options.data_dir,
        "download": options.download,
        "device": options.device,
        "overwrite": options.overwrite,
        "progress": _progress(options),
        **_given(options),
    }


def _distill(options: argparse.Namespace) -> None:
    from .evaluation import EvaluationReport
    from .pipeline import distill

    result = distill(**_run_arguments(options), resume=options.resume, log=options.log)
    _print(EvaluationReport(tuple(result.evaluation)).table())
    _print(f"\n{result!r}")


def _sweep(options: argparse.Namespace) -> None:
    from .sweep import sweep

    swept = {"prune": options.prune, "mask": options.mask, "seeds": options.seeds}
    result = sweep(**{**_run_arguments(options), **swept})
    if result is not None:
        _print(f"{result.table()}\n\n{Path(options.out) / 'sweep.html'}")


def _prepare(options: argparse.Namespace) -> Any:
    """Config, data, normalisation, device and progress for the commands that run a single stage and write to --out."""
    from .data import fit_normalization
    from .pipeline import configured_data, normalization_caches
    from .runtime.device import resolve_device
    from .settings.resolve import make_settings

    settings = make_settings(preset_name=options.preset, file=options.config, overrides=_given(options))
    config = settings.config
    device = resolve_device(options.device if options.device != "auto" else settings.device)
    data, _ = configured_data(config, config.dataset, options.data_dir or settings.data_dir, download=options.download)
    out = Path(options.out)
    caches = normalization_caches(out.parent if out.suffix else out)
    normalization = fit_normalization(data, "zca" if config.zca else "mean-std", caches=caches)
    return config, data, normalization, device, _progress(options)


def _score(options: argparse.Namespace) -> None:
    from .pipeline import score_as_configured
    from .score_page import ScoreFiles

    config, data, normalization, device, progress = _prepare(options)
    written = ScoreFiles.at(options.out, data)
    distributed.group().require_shared(written.scores.parent)
    difficulty = score_as_configured(config, data, normalization, device, progress, networks_dir=written.networks)
    if distributed.group().main:
        written.write(difficulty, data)
    _print(f"{difficulty!r} -> {written.main}\n{written.page}")


def _experts(options: argparse.Namespace) -> None:
    from .pipeline import keep_scores, needs_order, score_as_configured, train_as_configured
    from .runtime.files import require_writable
    from .scoring.difficulty import Difficulty

    config, data, normalization, device, progress = _prepare(options)
    out = require_writable(options.out)
    distributed.group().require_shared(out)
    difficulty = None
    if needs_order(config):
        # Kept beside the experts, so that repeating the command continues with the same order.
        path = Path(config.order_file or out / "difficulty.safetensors")
        if config.order_file is None and not path.exists():
            kept = out / "score-networks"
            keep_scores(
                score_as_configured(config, data, normalization, device, progress, networks_dir=kept), path, kept
            )
        difficulty = Difficulty.load(path)
    _print(repr(train_as_configured(config, data, normalization, difficulty, out, device, progress)))


def _experts_info(options: argparse.Namespace) -> None:
    from .experts import describe_store

    _print(describe_store(options.store))


def _experts_verify(options: argparse.Namespace) -> None:
    from .experts import examine

    findings = list(examine(options.store))
    problems = [finding.problem for finding in findings if finding.problem is not None]
    for problem in problems:
        _print(problem)
    if problems:
        raise StoreError(f"{len(problems)} of {len(findings)} experts in {options.store} are damaged or missing")
    _print(f"{len(findings)} experts, all as they were written")


def _experts_convert(options: argparse.Namespace) -> None:
    from .experts import convert_experts

    store = convert_experts(
        options.source,
        options.destination,
        replay=options.replay,
        keep=options.keep,
        storage=options.expert_storage,
        progress=_progress(options),
    )
    _print(repr(store))


def _evaluate(options: argparse.Namespace) -> None:
    from .data import load_dataset
    from .data.distilled import load
    from .evaluation import evaluate, export_ddranking
    from .runtime.files import require_writable

    if options.out:
        require_writable(Path(options.out).parent)
    distilled = load(options.distilled)
    dataset = options.dataset or distilled.config.get("dataset")
    if dataset is None:
        raise ConfigError(f"{options.distilled} does not say which data it was distilled from; name it with --dataset")
    resolution = distilled.config.get("resolution")
    data = load_dataset(dataset, data_dir=options.data_dir, resolution=resolution, download=options.download)
    if options.ddranking:
        _print(export_ddranking(distilled, options.ddranking))
    place = Path(options.distilled)
    given = _given(options)
    names = {"eval_networks": "repeats", "eval_epochs": "epochs", "eval_full_epochs": "full_epochs"}
    known = {item.name for item in fields(Config) if item.metadata["stage"] == "evaluate"}
    chosen = {names.get(k, k.removeprefix("eval_")): v for k, v in given.items() if k in known}
    report = evaluate(
        distilled,
        data,
        models=tuple(options.model or ("ConvNet",)),
        difficulty=options.difficulty,
        cache_dir=options.cache_dir or (place if place.is_dir() else place.parent) / "cache" / "evaluation",
        seed=options.seed,
        device=options.device,
        backend=options.backend,
        progress=_progress(options),
        **chosen,
    )
    _print(report.table())
    if options.out and distributed.group().main:
        report.write(options.out)


def _report(options: argparse.Namespace) -> None:
    from .compare import present_runs
    from .presentation import present, watch
    from .run_folder import is_run, runs_in

    if not distributed.group().main:
        return
    folder = Path(options.run)
    if options.watch:
        print(watch(folder, say=lambda message: print(message, file=sys.stderr, flush=True)))
    elif not is_run(folder) and runs_in(folder):
        print(present_runs(folder))
    else:
        print(present(folder))


def _compare(options: argparse.Namespace) -> None:
    from .compare import compare
    from .runtime.files import write_text

    if not distributed.group().main:
        return
    comparison = compare(options.runs)
    print(comparison.text())
    if options.out:
        print(f"\n{write_text(options.out, comparison.page())}")


def _bench(options: argparse.Namespace) -> None:
    import importlib
    import os

    # The suites are no part of the installed package; its entry point does not put the working folder on the path.
    sys.path.insert(0, os.getcwd())
    try:
        from benchmarks.registry import MODULES
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the benchmarks are in the source tree, not in the installed package; run this in a checkout of it"
        ) from error
    if options.suite not in MODULES:
        raise ConfigError(
            f"there is no suite {options.suite!r}.{nearest(options.suite, MODULES)} There are: {', '.join(MODULES)}"
        )
    sys.argv = [f"benchmarks.{options.suite}", *options.arguments]
    importlib.import_module(f"benchmarks.{options.suite}").main()


def _env(options: argparse.Namespace) -> None:
    from .runtime.environment import environment, format_environment

    _print(format_environment(environment()))


if __name__ == "__main__":
    sys.exit(main())
