"""`distill()`: difficulty scores -> curriculum experts -> distillation -> evaluation, each stage cached in one folder.

RUN/
  config.yaml                    the settings, readable by --config
  cache/scores-<key>.safetensors difficulty, keyed by everything it depends on
  cache/experts-<key>/           expert store, likewise
  preview.safetensors            what the report shows of the real data
  cache/iterates-<key>/          iterates to choose from, when a part of the training set is held out for that
  cache/evaluation/              one file per evaluated network
  checkpoint, metrics.jsonl      the loop
  distilled.safetensors          the result; images_best.pt labels_best.pt lr_best.pt for the reference's scripts
  last/                          the last iterate, where validation chose another one; validation.json says which
  evaluation.json images.png report.html
  run.lock                       held while a process writes to the folder
  timing.json                    time and memory per stage; two equal runs differ in it, and in the page that shows it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data import DSA, ImageDataset, Normalization, fit_normalization
from ..data.distilled import FILE, DistilledDataset, load
from ..distillation.batch_matching import BatchLoop, RealPool, initial_images, loops_of, make_criterion, require_alone
from ..distillation.initialization import InitialSet, Teachers, initial_set
from ..distillation.iterations import Iterations
from ..distillation.metrics import read_history
from ..distillation.run import run
from ..distillation.state import State
from ..distillation.trajectory_matching import Loop, require_possible
from ..engines import Task, select
from ..errors import ConfigError, DatasetError
from ..evaluation import EvaluationReport, evaluate
from ..experts import ExpertStore, curriculum_of, prune
from ..models import FlatNetwork
from ..models.spec import NetworkSpec
from ..reporting.present import present
from ..runs.folder import LOCK
from ..runs.preview import write_preview
from ..runs.timing import StageLog
from ..runs.trackers import Tracker, open_trackers
from ..runtime import distributed, files, locks
from ..runtime.device import cache_bytes
from ..runtime.progress import Progress
from ..runtime.rng import derive_seed
from ..scoring.difficulty import Difficulty
from ..settings.config import Config
from ..settings.snapshot_ranges import format_snapshots
from ..settings.yaml_files import to_yaml
from .configured import (
    configured_data,
    keep_scores,
    may_go_on,
    needs_order,
    normalization_caches,
    order_of,
    score_as_configured,
    train_as_configured,
)

LAST = "last"


class Pipeline:
    """One run: its settings, its folder, and the stages in order."""

    def __init__(
        self,
        config: Config,
        out: Path,
        device: torch.device,
        progress: Progress,
        *,
        resume: bool,
        overwrite: bool,
        log: Sequence[str] = (),
        cache: Path | None = None,
    ) -> None:
        self.config, self.out, self.device, self.progress = config, out, device, progress
        self.resume, self.overwrite = resume, overwrite
        self.log, self.stages = tuple(log), StageLog(out, device)
        self._open: Sequence[Tracker] | None = None
        # Stages that several runs share, perhaps in several processes at a time.
        self.shared = cache is not None
        self.cache = out / "cache" if cache is None else cache

    def run(self, dataset: Any, data_dir: str | os.PathLike[str] | None, *, download: bool = False) -> DistilledDataset:
        """All stages; returns the evaluated result."""
        config = self.config
        with ExitStack() as held:
            held.callback(self._close_trackers)
            with self.stages.stage("data"):
                data, validation = configured_data(config, dataset, data_dir, download=download)
                self.require_usable(data)
                distributed.group().require_shared(files.require_writable(self.out))
                held.enter_context(self._writing())
                self._claim(data)
                kind = "zca" if config.zca else "mean-std"
                normalization = fit_normalization(data, kind, caches=normalization_caches(self.out))
            return self._run(data, validation, normalization)

    def _run(
        self, data: ImageDataset, validation: ImageDataset | None, normalization: Normalization
    ) -> DistilledDataset:
        config = self.config
        difficulty: Difficulty | None = None
        if config.buffer_path is None:
            with self.stages.stage("scores"), self._alone("scores"):
                difficulty = self._difficulty(data)
                if difficulty is None and needs_order(config):
                    difficulty = self._score(data, normalization)
                self._preview(data, normalization, difficulty)
        store: ExpertStore | None = None
        if config.buffer_path is not None:
            store = self._given_experts(data)
            self._preview(data, normalization, None)
        elif config.uses_experts:
            with self.stages.stage("experts"), self._alone("experts"):
                store = self._experts(data, normalization, difficulty)
        with self.stages.stage("distill"):
            distilled = self._distill(data, validation, normalization, store, difficulty)
        with self.stages.stage("evaluate"):
            report = self._evaluate(distilled, data, difficulty)
        distilled = DistilledDataset(**{**vars(distilled), "evaluation": report.rows})
        self.stages.finish()
        if distributed.group().main:
            present(self.out)
        for tracker in self._trackers(config.iterations):
            tracker.result(report.rows, self.out / "images.png", config.iterations)
        return distilled

    def _trackers(self, begun: int) -> Sequence[Tracker]:
        """Opened when they are first asked for, closed when the run ends; of several ranks, the main one has any."""
        if self._open is None:
            names = self.log if distributed.group().main else ()
            self._open = open_trackers(names, self.out, self.config.describe(), begun=begun)
        return self._open

    def _close_trackers(self) -> None:
        for tracker in self._open or ():
            tracker.close()
        self._open = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Held while a process writes to the folder: whoever watches it sees when that has ended, however it did."""
        group, say = distributed.group(), self.progress.say
        waiting = partial(say, f"waiting for another process that writes to {self.out}")
        with locks.locked(self.out / LOCK, waiting=waiting) if group.main else nullcontext():
            group.wait("rank 0 to have the folder to itself")
            yield

    @contextmanager
    def _alone(self, stage: str) -> Iterator[None]:
        """Held while a stage that other runs share is looked up or made; rank 0 holds it for all ranks."""
        group = distributed.group()
        with locks.locked(self.cache / f"{stage}.lock") if self.shared and group.main else nullcontext():
            group.wait("rank 0 to have the cache to itself")
            yield

    # -- checks before any work ------------------------------------------------------------------------------------

    def require_usable(self, data: ImageDataset) -> None:
        """Prove that the settings fit each other and the data.

        Raises:
            InputError: they do not. BackendError: the backend asked for cannot serve this.
        """
        config = self.config
        by_class = data.images_by_class()
        sizes = [len(indices) for indices in by_class]
        if config.pix_init != "noise" and min(sizes) < config.ipc:
            label = sizes.index(min(sizes))
            raise DatasetError(
                f"class {label} ({data.class_names[label]}) has {sizes[label]} training images, fewer than ipc "
                f"{config.ipc}; lower ipc or use pix_init noise"
            )
        network = self._spec(data).build(config.seed, "probe")
        DSA(config.dsa, mode=config.dsa_mode)
        cache_bytes(config.cache, self.device)
        if config.uses_experts:
            require_possible(config, network)
            select(config.backend, Task(network, self.device, torch.float32, config.gradient, config.precision))
        else:
            require_alone(config)
            make_criterion(config, network, self.device)
        if config.order_file is not None and needs_order(config):
            self._difficulty(data)
        if config.buffer_path is not None:
            self._given_experts(data)
            return
        if config.uses_experts:
            config.require_snapshots(config.train_epochs, "experts are trained for train_epochs")
            self._require_kept()
        pruned = [len(indices) for indices in prune(by_class, config.prune)]
        curriculum_of(config).require_images(config.train_epochs, pruned)
        if not config.uses_experts and config.pix_init != "noise" and min(pruned) < config.ipc:
            raise DatasetError(
                f"prune {config.prune!r} leaves {min(pruned)} images of a class, fewer than ipc {config.ipc}; "
                "drop fewer, lower ipc or use pix_init noise"
            )

    def _require_kept(self) -> None:
        """Before experts are trained whose snapshots would then be missing."""
        config = self.config
        lost = {*config.reached_snapshots, config.train_epochs} - set(config.kept_snapshots)
        if lost:
            raise ConfigError(
                f"keep is {config.keep!r}, but these settings reach snapshots {format_snapshots(lost)} as well; use "
                "keep plan, or all"
            )

    def _claim(self, data: ImageDataset) -> None:
        """Write `config.yaml`, unless the folder belongs to a run with other settings."""
        path = self.out / "run.json"
        mine = {"dataset_fingerprint": data.fingerprint, **self.config.describe()}
        # A run that ended before its first checkpoint has nothing to lose but its stages, which carry their own keys.
        begun = path.exists() and any((self.out / name).exists() for name in ("checkpoint", FILE))
        if begun and not self.overwrite:
            theirs = files.read_json(path, "run description")
            skip = set(self.config.describe("run", "evaluate"))
            if self.resume and may_go_on(self.config):
                skip.add("iterations")
            different = [k for k in mine if k not in skip and mine[k] != theirs.get(k)]
            if different:
                key = different[0]
                raise ConfigError(
                    f"{self.out} holds a run with other settings ({key}: {theirs.get(key)!r}, now {mine[key]!r}"
                    f"{f' and {len(different) - 1} more' if len(different) > 1 else ''}); "
                    "choose another output folder, or pass overwrite=True (--overwrite) to replace its results"
                )
        if distributed.group().main:
            files.write_json(path, mine)
            files.write_text(self.out / "config.yaml", to_yaml(self.config))

    # -- stages ----------------------------------------------------------------------------------------------------

    def _preview(self, data: ImageDataset, normalization: Normalization, difficulty: Difficulty | None) -> None:
        if distributed.group().main:
            write_preview(self.out, data, normalization, difficulty)

    def _spec(self, data: ImageDataset) -> NetworkSpec:
        return NetworkSpec(self.config.model, data.channels, data.classes, data.resolution)

    def _difficulty(self, data: ImageDataset) -> Difficulty | None:
        """The scores that are there already: a file named by the user, or this run's cache."""
        config = self.config
        if not needs_order(config):
            return None
        if config.order_file is not None:
            difficulty = Difficulty.load(config.order_file)
            difficulty.require(data)
            return difficulty
        path = _scores_path(self.cache, data.fingerprint, config)
        if path.exists():
            self.progress.say(f"scores: reusing {path} (same settings)")
            self.stages.reused()
            return Difficulty.load(path)
        return None

    def _score(self, data: ImageDataset, normalization: Normalization) -> Difficulty:
        """Scores from scratch, or from the networks that a killed run has left."""
        path = _scores_path(self.cache, data.fingerprint, self.config)
        kept = path.with_suffix(".networks")
        difficulty = score_as_configured(
            self.config, data, normalization, self.device, self.progress, networks_dir=kept
        )
        return keep_scores(difficulty, path, kept)

    def _experts(self, data: ImageDataset, normalization: Normalization, difficulty: Difficulty | None) -> ExpertStore:
        config = self.config
        described = config.describe("data", "scores", "experts")
        described.pop("num_experts")  # more experts extend a store, fewer use the first of it
        # A store that lacks snapshots must not be taken for another one.
        described["keep"] = format_snapshots(config.kept_snapshots)
        described["threads"] = "one" if config.workers else "all"
        folder = self.cache / f"experts-{_key(data.fingerprint, described)}"
        if ExpertStore.complete(folder, config.num_experts):
            self.progress.say(f"experts: reusing {folder} (same settings)")
            self.stages.reused()
        # Before any of them begins: a store in the making has gaps, which are an error to whoever only reads it.
        distributed.group().wait("the other ranks to look for experts")
        store = train_as_configured(config, data, normalization, difficulty, folder, self.device, self.progress)
        return store.first(config.num_experts)

    def _given_experts(self, data: ImageDataset) -> ExpertStore:
        config = self.config
        assert config.buffer_path is not None
        store = ExpertStore.open(config.buffer_path)
        network = self._spec(data).build(config.seed, "probe")
        store.require(
            {
                "parameter_count": network.parameter_count,
                "model": config.model,
                "fingerprint": data.fingerprint,
                "normalization": "zca" if config.zca else "mean-std",
            }
        )
        config.require_snapshots(store.epochs, f"the experts in {store.folder} end at")
        store.require_snapshots([*config.reached_snapshots, -1])
        return store

    def _distill(
        self,
        data: ImageDataset,
        validation: ImageDataset | None,
        normalization: Normalization,
        store: ExpertStore | None,
        difficulty: Difficulty | None,
    ) -> DistilledDataset:
        config = self.config
        described = config.describe("data", "scores", "experts", "distill")
        if may_go_on(config):
            described.pop("iterations")
        key = _key(data.fingerprint, described, torch.__version__)
        done = self.out / FILE
        checkpoint = self.out / "checkpoint"
        if checkpoint.exists() and done.exists() and not self.overwrite:
            state = State.load(checkpoint, key, self.device)
            if state.iteration == config.iterations:
                self.progress.say(f"distill: reusing {done} (same settings)")
                self.stages.reused()
                return load(done)
        source: ExpertStore | RealPool
        if store is None:
            shown = prune(order_of(data, difficulty), config.prune)
            source = RealPool(normalization.apply(data.train_images), shown, curriculum_of(config))
        else:
            source = store
        student = self._spec(data).build(config.seed, "student")
        history: list[dict[str, float]] = []
        if self.resume and checkpoint.exists():
            state = State.load(checkpoint, key, self.device)
            if state.iteration > config.iterations:
                raise ConfigError(
                    f"{checkpoint} is already at iteration {state.iteration}, beyond iterations {config.iterations}; "
                    "raise iterations, or start afresh in another folder"
                )
            history = read_history(self.out / "metrics.jsonl", state.iteration)
            self.progress.say(f"distill: resuming after iteration {state.iteration}")
            self.stages.resumed()
        else:
            if self.resume:
                self.progress.say(f"distill: no checkpoint in {self.out} yet, starting at iteration 0")
            initial = self._initial(data, normalization, source, student)
            for note in initial.notes:
                self.progress.say(f"init: {note}")
            state = State.start(initial.images, initial.label_logits, initial.labels, config, self.device)
        loop = self._loop(data, source, student)

        def result() -> DistilledDataset:
            images = state.images if state.average is None else state.average
            return DistilledDataset(
                images=images.cpu(),
                label_logits=state.label_logits.cpu() if config.soft_labels else None,
                labels=state.labels.cpu(),
                lr=float(state.lr),
                whitening=normalization,
                config=config.describe(),
                history=list(history),
                class_names=data.class_names,
            )

        iterates = self.cache / f"iterates-{key}"

        def keep(state: State) -> None:
            if state.iteration % config.validation_every == 0 and distributed.group().main:
                result().save(iterates / f"{state.iteration:08}")

        trackers = self._trackers(state.iteration)

        def observe(row: Mapping[str, float]) -> None:
            for tracker in trackers:
                tracker.row(row)

        run(
            loop,
            state,
            folder=self.out,
            key=key,
            history=history,
            progress=self.progress,
            observe=observe,
            checkpointed=None if validation is None else keep,
        )
        distilled = result()
        group = distributed.group()
        if validation is not None:
            last = distilled
            distilled = self._best(iterates, last, validation)
            group.on_main("the last iterate to be written", lambda: last.save(self.out / LAST))
        group.on_main("the distilled set to be written", lambda: distilled.save(self.out))
        return distilled

    def _initial(
        self,
        data: ImageDataset,
        normalization: Normalization,
        source: ExpertStore | RealPool,
        student: FlatNetwork,
    ) -> InitialSet:
        config = self.config
        if isinstance(source, RealPool):
            return initial_images(config, source)
        task = Task(student, self.device, torch.float32)
        teachers = Teachers(source, select(config.backend, task), task)
        images = normalization.apply(data.train_images)
        return initial_set(config.pix_init, config.ipc, images, data, teachers, seed=config.seed)

    def _loop(self, data: ImageDataset, source: ExpertStore | RealPool, student: FlatNetwork) -> Iterations:
        """The iterations of the method's criterion."""
        config = self.config
        if not isinstance(source, RealPool):
            return Loop(student, source, config, self.device)
        note = loops_of(config)[-1]
        if note is not None:
            self.progress.say(note)
        return BatchLoop(student, self._spec(data), source, config, self.device)

    def _best(self, iterates: Path, last: DistilledDataset, validation: ImageDataset) -> DistilledDataset:
        """The iterate whose networks are best on the validation images, which nothing else has seen."""
        config = self.config
        candidates = {
            int(folder.name): load(folder)
            for folder in sorted(iterates.glob("*"))
            if int(folder.name) < config.iterations
        }
        candidates[config.iterations] = last
        report = evaluate(
            {str(iteration): each for iteration, each in candidates.items()},
            validation,
            models=(config.model,),
            repeats=config.validation_networks,
            baselines=False,
            # Other networks than those of the final table.
            seed=derive_seed(config.seed, "validation"),
            **self._evaluation_settings(),
        )
        best = max(candidates, key=lambda iteration: report.row(str(iteration)).mean)
        self.progress.say(f"validation: the iterate after {best} of {config.iterations} iterations is best")
        if distributed.group().main:
            accuracies = {row.name: row.accuracies for row in report.rows}
            files.write_json(self.out / "validation.json", {"best": best, "accuracies": accuracies})
        return candidates[best]

    def _evaluation_settings(self) -> dict[str, Any]:
        """What every evaluation of this run has in common."""
        config = self.config
        return {
            "epochs": config.eval_epochs,
            "full_epochs": config.eval_full_epochs,
            "batch": config.eval_batch,
            "momentum": config.eval_momentum,
            "weight_decay": config.eval_weight_decay,
            "dsa_mode": config.dsa_mode,
            "cache_dir": self.cache / "evaluation",
            "device": str(self.device),
            "backend": config.backend,
            "progress": self.progress,
        }

    def _evaluate(
        self, distilled: DistilledDataset, data: ImageDataset, difficulty: Difficulty | None
    ) -> EvaluationReport:
        config = self.config
        path = self.out / "evaluation.json"
        sets = {config.method.upper(): distilled}
        written = [self.out / FILE]
        if config.validation_fraction:
            name = config.method.upper()
            sets = {f"{name}, best": distilled, f"{name}, last": load(self.out / LAST)}
            written.append(self.out / LAST / FILE)
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in written]
        key = _key(data.fingerprint, config.describe("evaluate"), *digests)
        if path.exists():
            stored = EvaluationReport.read(path)
            if stored.key == key:
                self.progress.say(f"evaluate: reusing {path} (same settings)")
                self.stages.reused()
                return stored
        report = evaluate(
            sets,
            data,
            models=(config.model,),
            repeats=config.eval_networks,
            baselines=config.eval_baselines,
            robust=config.eval_robust,
            difficulty=difficulty if difficulty is not None and difficulty.method == "el2n" else None,
            seed=config.seed,
            **self._evaluation_settings(),
        )
        if distributed.group().main:
            replace(report, key=key).write(path)
        return report


def _scores_path(cache: Path, fingerprint: str, config: Config) -> Path:
    return cache / f"scores-{_key(fingerprint, config.describe('data', 'scores'))}.safetensors"


def _key(*parts: Any) -> str:
    """Short digest of everything a stage depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
