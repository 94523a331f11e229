"""A grid of runs over what is pruned (FIEx) and what is masked (FIEm), and the chart of accuracy against both ratios.

OUT/
  runs/<cell>/   one run of :func:`pad_fast.distill` each, with all its files
  cache/         difficulty scores and experts, made once for all runs that need the same
  sweep.json     every cell with the accuracy of every network
  sweep.md, sweep.html
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..data import load_dataset
from ..errors import ConfigError, nearest
from ..evaluation import AccuracyRow, EvaluationReport
from ..reporting.numbers import own_rows
from ..reporting.sweep_page import NONE, Setting, SweepResult, words
from ..runs.folder import CACHE, EVALUATION, RUNS, read_description, runs_in
from ..runs.folder import PAGE as RUN_PAGE
from ..runs.timing import TIMING, read_timing
from ..runtime import files
from ..runtime.device import resolve_device
from ..runtime.progress import Progress
from ..settings.choices import MASKS, PRUNES
from ..settings.config import Config, completed
from ..settings.presets import SWEPT
from ..settings.resolve import UNSET, Settings, Unset, make_settings, override
from .checks import as_recorded, place_of, require_folder_name, with_places
from .configured import configured_data
from .pipeline import Pipeline

_MASKS = tuple(kind for kind in MASKS if kind != NONE[0])

PAGE = "sweep.html"


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    prune: Setting
    mask: Setting
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"prune-{'-'.join(words(self.prune))}_mask-{'-'.join(words(self.mask))}_seed-{self.seed}"

    def config(self, base: Config) -> Config:
        """`base` with this cell's settings."""
        kind, ratio = self.prune
        # Dropping nothing needs no scores.
        prune = f"{kind}:{ratio:g}" if ratio else "none"
        return override(base, {"prune": prune, "mask": self.mask[0], "mask_ratio": self.mask[1], "seed": self.seed})


def parse_axis(texts: Iterable[str], kinds: Sequence[str], what: str) -> list[Setting]:
    """Settings out of "none", "hardest:0,0.1,0.2" and the like.

    Raises:
        ConfigError: another form, an unknown kind, or the same setting twice.

    Example:
        >>> parse_axis(["none", "hardest:0.1,0.2"], ("hardest", "easiest"), "prune")
        [('none', 0.0), ('hardest', 0.1), ('hardest', 0.2)]
    """
    found: list[Setting] = []
    for text in texts:
        if text == "none":
            found.append(NONE)
            continue
        kind, _, numbers = text.partition(":")
        if kind not in kinds:
            raise ConfigError(
                f"{what} {text!r} is not understood; write none, or one of {', '.join(kinds)} with ratios, such as "
                f"{kinds[0]}:0,0.1,0.2.{nearest(kind, kinds)}"
            )
        try:
            found += [(kind, float(number)) for number in numbers.split(",")]
        except ValueError:
            raise ConfigError(
                f"{what} {text!r} has {numbers!r} where ratios are expected; write {kind}:0,0.1,0.2"
            ) from None
    twice = [setting for setting in found if found.count(setting) > 1]
    if twice:
        raise ConfigError(f"{what} {' '.join(words(twice[0]))} is asked for twice; name every setting once")
    return found


def sweep(
    dataset: str | Unset = UNSET,
    *,
    out: str | os.PathLike[str],
    prune: Sequence[str] | Unset = UNSET,
    mask: Sequence[str] | Unset = UNSET,
    seeds: Sequence[int] | Unset = UNSET,
    config: Config | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    preset: str | None = None,
    data_dir: str | os.PathLike[str] | None | Unset = UNSET,
    download: bool = False,
    device: str | Unset = UNSET,
    overwrite: bool = False,
    part: tuple[int, int] | None = None,
    progress: Progress | bool | None = None,
    **overrides: Any,
) -> SweepResult | None:
    """Run `distill` for every combination of what is pruned, what is masked and which seed.

    Runs that are finished are reused and begun ones continued, so that repeating a killed sweep completes it. Scores
    and experts are made once for all runs that need the same.

    Args:
        dataset: by name; see :func:`pad_fast.distill`, also for `config`, `preset`, `data_dir`, `download` and
            `device`.
        out: folder of the sweep.
        prune: "none", "hardest:0,0.1,0.2", "easiest:0.1" and the like. Not given: what `config` says, else none.
        mask: "none", "depth:0,0.25,0.5", "layers:1,2", and for trajectory matching "loss:0.5". Likewise.
        seeds: error bars are over these and the `eval_networks` of each. Not given: the seed of `config`, else 0.
        overwrite: replace runs in `out` that have other settings.
        part: (i, n): do every n-th part of the runs, beginning with the i-th; from RANK and WORLD_SIZE, as torchrun
            sets them, when None. Whoever finds all runs finished writes the result.
        **overrides: any field of :class:`Config`; the method above all.

    Returns:
        The result, or None while another process has runs to do.

    Raises:
        InputError: settings that cannot be used, before any work.
    """
    progress = Progress.of(progress)
    require_folder_name(out)
    out = Path(out)
    settings = make_settings(
        preset_name=preset,
        config=config,
        overrides={"dataset": dataset, **overrides},
        data_dir=data_dir,
        device=device,
        defaults=SWEPT,
    )
    for note in settings.notes:
        progress.say(note)
    prunes, masks, seeds = _axes(settings, prune, mask, seeds)
    cells = [Cell(*each) for each in product(prunes, masks, dict.fromkeys(seeds))]
    where = _own_gpu(resolve_device(settings.device))
    index, count = _part() if part is None else part
    if not 0 <= index < count:
        raise ConfigError(f"part is ({index}, {count}); the first number counts from 0 and is below the second")
    data = load_dataset(
        settings.config.dataset,
        data_dir=settings.data_dir,
        resolution=settings.config.resolution,
        download=download,
        progress=progress,
    )
    config = with_places(settings.config)
    for folder in runs_in(out)[:1]:
        config = as_recorded(config, configured_data(config, data, None)[0], folder)
    configs = {cell: cell.config(config) for cell in cells}
    pipelines = {}
    for cell in cells:
        folder = out / RUNS / cell.name
        pipelines[cell] = Pipeline(
            configs[cell],
            folder,
            where,
            progress,
            resume=True,
            overwrite=overwrite,
            cache=out / CACHE,
            place=place_of(settings, named=True),
        )
        pipelines[cell].require_usable(data)  # every cell, before the first of them runs
    for cell in _share(cells, config.uses_experts, index, count):
        progress.say(f"sweep: {cell.name} ({cells.index(cell) + 1} of {len(cells)})")
        pipelines[cell].run(data, None)
    found = _collect(out, cells, configs)
    if found is None:
        progress.say("sweep: other processes have runs to do; whoever comes last writes the result")
        return None
    pages: dict[tuple[Setting, Setting], dict[int, str]] = {}
    for cell in cells:
        pages.setdefault((cell.prune, cell.mask), {})[cell.seed] = f"{RUNS}/{cell.name}/{RUN_PAGE}"
    result = SweepResult(config.method, config.dataset, config.ipc, found, pages, _baselines(out, cells))
    rows = [
        {"prune": prune, "mask": mask, "accuracies": values, "networks": len(values)}
        for (prune, mask), values in found.items()
    ]
    shared = replace(config, prune="none", mask="none", mask_ratio=0.0)
    files.write_json(out / "sweep.json", {"settings": shared.digested(), "seeds": list(seeds), "cells": rows})
    files.write_text(out / "sweep.md", result.table() + "\n")
    files.write_text(out / PAGE, result.page())
    return result


def shared_cache(run: Path) -> Path | None:
    """The cache that a run of a sweep shares with the others; None of a run of its own."""
    run = run.absolute()
    cache = run.parent.parent / CACHE
    return cache if run.parent.name == RUNS and run.name.startswith("prune-") and cache.is_dir() else None


def _axes(
    settings: Settings, prune: Sequence[str] | Unset, mask: Sequence[str] | Unset, seeds: Sequence[int] | Unset
) -> tuple[list[Setting], list[Setting], list[int]]:
    """The values along each axis: those given, else the one that the settings name, else none and seed 0."""
    config, sources = settings.config, settings.sources
    for argument, name, given in (
        ("mask", "mask_ratio", mask),
        ("mask", "mask", mask),
        ("prune", "prune", prune),
        ("seeds", "seed", seeds),
    ):
        if given is not UNSET and sources.get(name) == "override":
            raise ConfigError(f"{name} is given beside {argument}, which holds the values that the sweep takes")
    if prune is UNSET:
        prune = [config.prune] if "prune" in sources else ["none"]
    if mask is UNSET:
        named = "mask" in sources or "mask_ratio" in sources
        masks = [(config.mask, config.mask_ratio) if named and config.mask != "none" else NONE]
    else:
        masks = parse_axis(mask, _MASKS, "mask")
    if seeds is UNSET:
        seeds = [config.seed] if "seed" in sources else [0]
    return parse_axis(prune, PRUNES, "prune"), masks, list(seeds)


def _share(cells: Sequence[Cell], uses_experts: bool, index: int, count: int) -> list[Cell]:
    """The cells of one process. Those that need the same experts stay together, so that nobody waits for them."""
    if not uses_experts:
        return list(cells[index::count])
    groups = list(dict.fromkeys((cell.prune, cell.seed) for cell in cells))
    return [cell for cell in cells if groups.index((cell.prune, cell.seed)) % count == index]


def _collect(
    out: Path, cells: Sequence[Cell], configs: Mapping[Cell, Config]
) -> dict[tuple[Setting, Setting], tuple[float, ...]] | None:
    """Accuracies of the distilled sets, or None while a run is missing or was made with other settings."""
    found: dict[tuple[Setting, Setting], tuple[float, ...]] = {}
    for cell in cells:
        folder = out / RUNS / cell.name
        if not (folder / TIMING).exists() or not read_timing(folder).finished:
            return None
        described = read_description(folder)
        if any(completed(described)[name] != value for name, value in configs[cell].describe().items()):
            return None
        mine = own_rows(EvaluationReport.read(folder / EVALUATION).rows, described)[0]
        key = (cell.prune, cell.mask)
        found[key] = (*found.get(key, ()), *mine.accuracies)
    return found


def _baselines(out: Path, cells: Sequence[Cell]) -> tuple[AccuracyRow, ...]:
    """What else the networks of the runs were trained on: the same in every run of a seed, so taken from the first."""
    found: dict[tuple[str, str], dict[int, tuple[float, ...]]] = {}
    for cell in cells:
        folder = out / RUNS / cell.name
        rows = EvaluationReport.read(folder / EVALUATION).rows
        own = own_rows(rows, read_description(folder))
        for row in rows:
            if row not in own:
                found.setdefault((row.name, row.model), {}).setdefault(cell.seed, row.accuracies)
    return tuple(AccuracyRow(*named, sum(by_seed.values(), ())) for named, by_seed in found.items())


def _part() -> tuple[int, int]:
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _own_gpu(device: torch.device) -> torch.device:
    """Of several processes on a machine, each takes the GPU with its number, in turn."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
