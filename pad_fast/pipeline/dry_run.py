"""What a run would be, before it is one: its settings, what follows from them, memory, and about how long it takes."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data import DSA, ImageDataset, fit_normalization
from ..distillation.state import State
from ..distillation.trajectory_matching import Loop
from ..experts import ExpertStore
from ..experts.expert_file import bytes_per_expert
from ..reporting.numbers import duration
from ..runs.folder import CACHE
from ..runs.timing import peak_memory
from ..runtime.device import resolve_device
from ..runtime.progress import Progress
from ..runtime.rng import generator
from ..settings.config import Config
from ..settings.per_class import counts_of
from ..settings.resolve import UNSET, Settings, Unset, make_settings
from ..settings.snapshot_ranges import format_snapshots
from ..training.optimizers import SGD, Optimizer, make_optimizer
from ..training.trainer import Trainer
from .cached import experts_folder, scores_path, spec_of
from .checks import as_recorded, require_no_stranger, require_same_run, require_usable, with_places
from .configured import configured_data, needs_order
from .distill import default_folder
from .distilling import Distillation, real_images

_SECONDS = 0.2  # of measuring, at least, once it has run


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: as the run's page calls it.
        work: what it consists of.
        seconds: about how long that takes; 0 where its result is there already.
    """

    name: str
    work: str
    seconds: float


@dataclass(frozen=True)
class DryRun:
    """A run that has not been begun.

    Attributes:
        out: its folder.
        config: its settings.
        sources: who decided each of them.
        derived: what follows from them and the data, by name.
        stages: in their order.
        memory: by what it is memory of, in words.
    """

    out: Path
    config: Config
    sources: Mapping[str, str]
    derived: Mapping[str, str]
    stages: tuple[Stage, ...]
    memory: Mapping[str, str]

    def __str__(self) -> str:
        """Tables for a terminal."""
        settings = [
            (name, "none" if value is None else str(value), self.sources[name])
            for name, value in self.config.describe().items()
        ]
        total = duration(sum(stage.seconds for stage in self.stages))
        stages = [(stage.name, stage.work, f"about {duration(stage.seconds)}") for stage in self.stages]
        parts = (
            ("setting", settings),
            ("derived", [*self.derived.items()]),
            ("memory", [*self.memory.items()]),
            ("stage", [*stages, ("all", "", f"about {total}")]),
        )
        said = [f"{heading}\n{_aligned(rows)}" for heading, rows in parts]
        return "\n\n".join([*said, f"Nothing was written. The run's folder: {self.out}"])


def dry_run(
    *,
    config: Any = None,
    preset: str | None = None,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None | Unset = UNSET,
    download: bool = False,
    device: str | Unset = UNSET,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | bool | None = None,
    **overrides: Any,
) -> DryRun:
    """Check a run as :func:`pad_fast.distill` does before it begins, and say what it would be.

    A step of every stage is timed, on images of the data's shapes. Arguments as for :func:`pad_fast.distill`; the
    dataset is a name.

    Raises:
        InputError: what `distill` would refuse.
    """
    progress = Progress.of(progress)
    settings = make_settings(preset_name=preset, config=config, overrides=overrides, data_dir=data_dir, device=device)
    for note in settings.notes:
        progress.say(note)
    folder = Path(out) if out is not None else default_folder(settings.config)
    require_no_stranger(folder)
    chosen, where = with_places(settings.config), resolve_device(settings.device)
    data, _ = configured_data(chosen, chosen.dataset, settings.data_dir, download=download, progress=progress)
    chosen = as_recorded(chosen, data, folder)
    require_usable(chosen, data, where)
    require_same_run(chosen, data, folder, resume=resume, overwrite=overwrite)
    estimate = _Estimate(chosen, data, where)
    stages = estimate.stages(folder)
    return DryRun(folder, chosen, _sources(settings, chosen), estimate.derived(), stages, estimate.memory())


class _Estimate:
    """A run's sizes, and the time of a step of each stage."""

    def __init__(self, config: Config, data: ImageDataset, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.spec = spec_of(config, data)
        self.parameters = self.spec.build(config.seed, "probe").parameter_count
        self.count = sum(counts_of(config.ipc_per_class, config.ipc, data.class_names))

    def derived(self) -> dict[str, str]:
        """What follows from settings and data."""
        config, data = self.config, self.data
        found = {
            "data": f"{len(data.train_images):,} training and {len(data.test_images):,} test images, "
            f"{data.channels} x {data.resolution} x {data.resolution}, {data.classes} classes",
            "network": f"{config.model}, {self.parameters:,} parameters",
            "synthetic images": f"{self.count:,}",
        }
        if config.uses_experts:
            steps = _batches(len(data.train_images), config.batch_train)
            found |= {
                "steps of an expert": f"{config.train_epochs * steps:,} ({steps:,} an epoch)",
                "snapshots reached": format_snapshots(config.reached_snapshots),
                "student batch": f"{min(config.batch_syn or self.count, self.count):,} images",
            }
        return found

    def memory(self) -> dict[str, str]:
        """What is in memory and on disk; to be asked after the steps were timed."""
        images = sum(each.nbytes for each in (self.data.train_images, self.data.test_images))
        process, gpu = peak_memory(self.device)
        found = {
            "real images": f"{_mib(images)}, and as much again normalised",
            "process": f"{process:,.1f} MiB at most so far, with the data and a step of each stage",
        }
        if gpu is not None:
            found["GPU"] = f"{gpu:,.1f} MiB at most so far"
        if self._trains_experts:
            each = bytes_per_expert(self.config.expert_storage, len(self.config.kept_snapshots), self.parameters)
            found["experts on disk"] = f"{_mib(each * self.config.num_experts)} ({_mib(each)} each)"
        return found

    def stages(self, out: Path) -> tuple[Stage, ...]:
        """Every stage with its work and time."""
        config = self.config
        found: list[Stage] = []
        cache = out / CACHE
        images = len(self.data.train_images)
        if needs_order(config) and config.order_file is None and config.buffer_path is None:
            steps = config.score_networks * config.score_epochs * _batches(images, config.score_batch)
            work = f"{config.score_networks} networks x {config.score_epochs} epochs"
            sgd = SGD(config.score_lr, momentum=0.9)
            found.append(
                self._stage(
                    "scores", work, steps, config.score_batch, sgd, scores_path(config, self.data, cache).exists()
                )
            )
        if self._trains_experts:
            steps = config.num_experts * config.train_epochs * _batches(images, config.batch_train)
            work = f"{config.num_experts} experts x {config.train_epochs} epochs"
            rule = make_optimizer(
                config.expert_optimizer, config.lr_expert, rho=config.gsam_rho, alpha=config.gsam_alpha
            )
            there = ExpertStore.complete(experts_folder(config, self.data, cache), config.num_experts)
            found.append(self._stage("experts", work, steps, config.batch_train, rule, there))
        each = self._iteration()
        work = f"{config.iterations:,} iterations"
        if config.uses_experts:
            work += f" x {config.syn_steps} student steps"
        found.append(Stage("distill", work, config.iterations * each))
        small = 1 + bool(config.validation_fraction) + 3 * config.eval_baselines
        steps = small * config.eval_networks * config.eval_epochs * _batches(self.count, config.eval_batch)
        sgd = SGD(1e-3, momentum=config.eval_momentum, weight_decay=config.eval_weight_decay)
        seconds = steps * self._step(min(self.count, config.eval_batch), sgd)
        work = f"{small * config.eval_networks} networks x {config.eval_epochs} epochs"
        if config.eval_baselines:
            steps = config.eval_networks * config.eval_full_epochs * _batches(images, config.eval_batch)
            seconds += steps * self._step(min(images, config.eval_batch), sgd)
            work += f", {config.eval_networks} x {config.eval_full_epochs} on all data"
        return (*found, Stage("evaluate", work, seconds))

    @property
    def _trains_experts(self) -> bool:
        return self.config.uses_experts and self.config.buffer_path is None

    def _stage(self, name: str, work: str, steps: int, batch: int, optimizer: Optimizer, there: bool) -> Stage:
        if there:
            return Stage(name, f"{work}: there already", 0.0)
        return Stage(name, work, steps * self._step(min(batch, len(self.data.train_images)), optimizer))

    def _step(self, batch: int, optimizer: Optimizer) -> float:
        """Seconds of a training step on a batch of this size."""
        trainer = Trainer(self.spec.build(self.config.seed, "probe"), device=self.device, backend=self.config.backend)
        draws = generator(self.config.seed, "dry run")
        shape = batch, self.data.channels, self.data.resolution, self.data.resolution
        images = torch.randn(shape, generator=draws).to(self.device)
        labels = (torch.arange(batch) % self.data.classes).to(self.device)
        dsa = DSA(self.config.dsa)
        augment = partial(dsa, generator=draws) if dsa.operations else None
        everything = [torch.arange(batch, device=self.device)]
        return self._seconds(lambda: trainer.epoch(images, labels, everything, optimizer, augment))

    def _iteration(self) -> float:
        """Seconds of an iteration of the method."""
        if not self.config.uses_experts:
            white = fit_normalization(self.data, "mean-std")
            pool = real_images(self.config, self.data, white, None)
            work = Distillation(self.config, self.data, white, pool, Path(), self.device, Progress(quiet=True))
            state, loop = work.begin(), work.iterations()
            return self._seconds(lambda: loop.settle(state, loop.begin(state)), again=False)
        # Weights of no expert: what an iteration costs does not depend on them, nor on how far they are apart.
        config = replace(
            self.config,
            num_experts=1,
            train_epochs=1,
            min_start_epoch=0,
            max_start_epoch=1,
            expert_epochs=1,
            sequential_generation=False,
            threshold=None,
            keep="all",
            layer_loss_every=0,
            lr_img=1e-6,
            lr_init=1e-6,
            lr_lr=0.0,
            lr_y=0.0,
        )
        student = self.spec.build(config.seed, "student")
        draws = generator(config.seed, "dry run")
        start = student.initial()
        with tempfile.TemporaryDirectory() as folder:
            store = ExpertStore.create(folder, parameter_count=self.parameters, epochs=1, metadata={})
            claim = store.claim(0)
            assert claim is not None  # the folder is new
            with claim:
                store.finish(claim, torch.stack([start, start + 0.01 * torch.randn(start.shape, generator=draws)]))
            labels = torch.arange(self.count) % self.data.classes
            shape = self.count, self.data.channels, self.data.resolution, self.data.resolution
            logits = torch.randn(self.count, self.data.classes, generator=draws)
            images = torch.randn(shape, generator=draws)
            state = State.start(images, logits, labels, config, self.device)
            loop = Loop(student, ExpertStore.open(folder), config, self.device, late=0)
            return self._seconds(lambda: loop.iterate(state))

    def _seconds(self, run: Callable[[], object], *, again: bool = True) -> float:
        """Seconds of a call; of the second and later ones, where the first warms something up."""
        first = self._timed(run)
        if not again:
            return first
        times = [self._timed(run)]
        while sum(times) < _SECONDS:
            times.append(self._timed(run))
        return sum(times) / len(times)

    def _timed(self, run: Callable[[], object]) -> float:
        begun = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun


def _sources(settings: Settings, config: Config) -> dict[str, str]:
    """Who decided each setting."""
    named = {"override": "given", "config": "from the file"}
    usual = Config().describe()
    return {
        name: named[settings.sources[name]]
        if name in settings.sources
        else ("default" if value == usual[name] else "of the data, preset or method")
        for name, value in config.describe().items()
    }


def _batches(images: int, batch: int) -> int:
    return math.ceil(images / batch)


def _mib(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
