"""What each command does with its options."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StoreError, nearest
from ..runtime import distributed
from ..settings.config import Config


def _print(text: object) -> None:
    """Results, once: several processes have the same."""
    if distributed.group().main:
        print(text)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What was on the command line of that which a file may say too."""
    names = [*(item.name for item in fields(Config)), "data_dir", "device"]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _progress(options: argparse.Namespace) -> Any:
    from ..runtime.progress import Progress

    return Progress(quiet=options.quiet)


def _run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `distill` and `sweep` take alike."""
    return {
        "config": options.config,
        "preset": options.preset,
        "out": options.out,
        "download": options.download,
        "overwrite": options.overwrite,
        "progress": _progress(options),
        **_given(options),
    }


def _distill(options: argparse.Namespace) -> None:
    from ..evaluation import EvaluationReport
    from ..pipeline.distill import distill

    result = distill(**_run_arguments(options), resume=options.resume, log=options.log)
    _print(EvaluationReport(tuple(result.evaluation)).table())
    _print(f"\n{result!r}")


def _sweep(options: argparse.Namespace) -> None:
    from ..pipeline.sweep import sweep
    from ..settings.resolve import UNSET

    result = sweep(**_run_arguments(options), seeds=getattr(options, "seeds", UNSET))
    if result is not None:
        _print(f"{result.table()}\n\n{Path(options.out) / 'sweep.html'}")


def _prepare(options: argparse.Namespace) -> Any:
    """Config, data, normalisation, device and progress for the commands that run a single stage and write to --out."""
    from ..data import fit_normalization
    from ..pipeline.configured import configured_data, normalization_caches
    from ..runtime.device import resolve_device
    from ..settings.resolve import make_settings

    given = _given(options)
    place = {name: given.pop(name) for name in ("data_dir", "device") if name in given}
    settings = make_settings(preset_name=options.preset, config=options.config, overrides=given, **place)
    config, device = settings.config, resolve_device(settings.device)
    data, _ = configured_data(config, config.dataset, settings.data_dir, download=options.download)
    out = Path(options.out)
    caches = normalization_caches(out.parent if out.suffix else out)
    normalization = fit_normalization(data, "zca" if config.zca else "mean-std", caches=caches)
    return config, data, normalization, device, _progress(options)


def _score(options: argparse.Namespace) -> None:
    from ..pipeline.configured import score_as_configured
    from ..reporting.score_page import ScoreFiles

    config, data, normalization, device, progress = _prepare(options)
    written = ScoreFiles.at(options.out, data)
    distributed.group().require_shared(written.scores.parent)
    difficulty = score_as_configured(config, data, normalization, device, progress, networks_dir=written.networks)
    if distributed.group().main:
        written.write(difficulty, data)
    _print(f"{difficulty!r} -> {written.main}\n{written.page}")


def _experts(options: argparse.Namespace) -> None:
    from ..pipeline.configured import keep_scores, needs_order, score_as_configured, train_as_configured
    from ..runtime.files import require_writable
    from ..scoring.difficulty import Difficulty

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
    from ..experts import describe_store

    _print(describe_store(options.store))


def _experts_verify(options: argparse.Namespace) -> None:
    from ..experts import examine

    findings = list(examine(options.store))
    problems = [finding.problem for finding in findings if finding.problem is not None]
    for problem in problems:
        _print(problem)
    if problems:
        raise StoreError(f"{len(problems)} of {len(findings)} experts in {options.store} are damaged or missing")
    _print(f"{len(findings)} experts, all as they were written")


def _experts_convert(options: argparse.Namespace) -> None:
    from ..experts import convert_experts

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
    from ..data import load_dataset
    from ..data.distilled import load
    from ..evaluation import evaluate, export_ddranking
    from ..runtime.files import require_writable

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
    from ..reporting.compare import present_runs
    from ..reporting.present import present, watch
    from ..runs.folder import is_run, runs_in

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
    from ..reporting.compare import compare
    from ..runtime.files import write_text

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
    from ..runtime.environment import environment, format_environment

    _print(format_environment(environment()))
