"""One run: difficulty scores -> curriculum experts -> distillation -> evaluation, each stage cached in one folder.

RUN/
  config.yaml                    the settings, readable by --config
  place.json                     folder of the data and device, where they were given or needed, for pad-fast resume
  cache/scores-<key>.safetensors difficulty, keyed by everything it depends on
  cache/experts-<key>/           expert store, likewise
  preview.safetensors            what the report shows of the real data
  cache/iterates-<key>/          iterates to choose from, when a part of the training set is held out for that
  cache/evaluation/              one file per evaluated network
  checkpoint, metrics.jsonl      the loop
  film.safetensors               how the images came to be, which the report shows
  distilled.safetensors          the result; images_best.pt labels_best.pt lr_best.pt for the reference's scripts
  last/                          the last iterate, where validation chose another one; validation.json says which
  evaluation.json images.png report.html
  convolutions.json              on a GPU: which route of each convolution was measured to be faster
  run.lock                       held while a process writes to the folder
  timing.json                    time and memory per stage; two equal runs differ in it, and in the page that shows it
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ..data import ImageDataset, Normalization, fit_normalization
from ..data.distilled import DistilledDataset, load
from ..distillation.skipping import hardly_updated
from ..distillation.state import State
from ..engines.triton.engine import chosen_convolutions
from ..errors import StoreError
from ..evaluation import EvaluationReport
from ..experts import ExpertStore
from ..reporting.present import present
from ..runs.folder import CACHE, CHECKPOINT, CONVOLUTIONS, DISTILLED, EVALUATION, LAST, LOCK, PICTURE, write_validation
from ..runs.preview import write_preview
from ..runs.timing import StageLog
from ..runs.trackers import Tracker, open_trackers
from ..runtime import distributed, files, locks
from ..runtime.progress import Progress
from ..runtime.rng import derive_seed
from ..scoring.difficulty import Difficulty
from ..settings.config import Config
from .cached import distillation_key, experts_folder, given_experts, given_order, key_of, scores_path
from .checks import as_recorded, claim, require_no_stranger, require_same_run, require_usable
from .configured import (
    configured_data,
    evaluate_as_configured,
    evaluation_cache,
    keep_scores,
    needs_order,
    normalization_caches,
    score_as_configured,
    train_as_configured,
)
from .distilling import Distillation, real_images


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
        place: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.config, self.out, self.device, self.progress = config, out, device, progress
        self.resume, self.overwrite, self.place = resume, overwrite, place
        self.log, self.stages = tuple(log), StageLog(out, device)
        self._open: Sequence[Tracker] | None = None
        # Stages that several runs share, perhaps in several processes at a time.
        self.shared = cache is not None
        self.cache = out / CACHE if cache is None else cache

    def require_usable(self, data: ImageDataset) -> None:
        """Prove that the settings fit each other, the data and the device: see :func:`.checks.require_usable`."""
        require_usable(self.config, data, self.device)

    def run(self, dataset: Any, data_dir: str | os.PathLike[str] | None, *, download: bool = False) -> DistilledDataset:
        """All stages; returns the evaluated result."""
        require_no_stranger(self.out)
        with ExitStack() as held:
            held.callback(self._close_trackers)
            with self.stages.stage("data"):
                data, validation = configured_data(
                    self.config, dataset, data_dir, download=download, progress=self.progress
                )
                config = self.config = as_recorded(self.config, data, self.out)
                self.require_usable(data)
                distributed.group().require_shared(files.require_writable(self.out))
                same = partial(require_same_run, config, data, self.out, resume=self.resume, overwrite=self.overwrite)
                same()
                held.enter_context(self._writing())
                same(alone=True)  # the process that was waited for may have begun another one
                claim(config, data, self.out, self.place)
                kind = "zca" if config.zca else "mean-std"
                normalization = fit_normalization(
                    data, kind, caches=normalization_caches(self.out), progress=self.progress
                )
            return self._run(data, validation, normalization)

    def _run(
        self, data: ImageDataset, validation: ImageDataset | None, normalization: Normalization
    ) -> DistilledDataset:
        config = self.config
        difficulty: Difficulty | None = None
        if config.buffer_path is None:
            with self.stages.stage("scores"), self._alone("scores"):
                if needs_order(config):
                    difficulty = self._scores(data, normalization)
                self._preview(data, normalization, difficulty)
        store: ExpertStore | None = None
        if config.buffer_path is not None:
            store = given_experts(config, data)
            self._preview(data, normalization, None)
        elif config.uses_experts:
            with self.stages.stage("experts"), self._alone("experts"):
                store = self._experts(data, normalization, difficulty)
        with self.stages.stage("distill"):
            distilled = self._distill(data, validation, normalization, store, difficulty)
        with self.stages.stage("evaluate"):
            report = self._evaluate(distilled, data, difficulty)
        distilled = replace(distilled, evaluation=report.rows, folder=self.out)
        self._note_convolutions()
        self.stages.finish()
        self._present()
        for tracker in self._trackers(config.iterations):
            tracker.result(report.rows, self.out / PICTURE, config.iterations)
        return distilled

    def _note_convolutions(self) -> None:
        """What else than settings and seed the last bits of this run depend on."""
        chosen = chosen_convolutions()
        if chosen and distributed.group().main:
            files.write_json(self.out / CONVOLUTIONS, chosen)

    def _present(self) -> None:
        """Picture and page; whatever is wrong with them, the run's results are there and are returned."""
        if not distributed.group().main:
            return
        try:
            present(self.out)
        except Exception as error:
            self.progress.say(
                f"report: not drawn ({type(error).__name__}: {error}); everything else is in {self.out}, and "
                f"`pad-fast report {self.out}` draws it again"
            )

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

    # -- stages ----------------------------------------------------------------------------------------------------

    def _reuse(self, stage: str, path: Path) -> None:
        """The stage under way takes its result from `path`."""
        self.progress.say(f"{stage}: reusing {path} (same settings)")
        self.stages.reused()

    def _preview(self, data: ImageDataset, normalization: Normalization, difficulty: Difficulty | None) -> None:
        if distributed.group().main:
            write_preview(self.out, data, normalization, difficulty)

    def _scores(self, data: ImageDataset, normalization: Normalization) -> Difficulty:
        """From a file named by the user, the cache, or scratch: the networks that a killed run has left are used."""
        config = self.config
        if config.order_file is not None:
            return given_order(config, data)
        path = scores_path(config, data, self.cache)
        if path.exists():
            self._reuse("scores", path)
            return Difficulty.load(path)
        kept = path.with_suffix(".networks")
        difficulty = score_as_configured(config, data, normalization, self.device, self.progress, networks_dir=kept)
        return keep_scores(difficulty, path, kept)

    def _experts(self, data: ImageDataset, normalization: Normalization, difficulty: Difficulty | None) -> ExpertStore:
        config = self.config
        folder = experts_folder(config, data, self.cache)
        if ExpertStore.complete(folder, config.num_experts):
            self._reuse("experts", folder)
        # Before any of them begins: a store in the making has gaps, which are an error to whoever only reads it.
        distributed.group().wait("the other ranks to look for experts")
        store = train_as_configured(config, data, normalization, difficulty, folder, self.device, self.progress)
        return store.first(config.num_experts)

    def _distill(
        self,
        data: ImageDataset,
        validation: ImageDataset | None,
        normalization: Normalization,
        store: ExpertStore | None,
        difficulty: Difficulty | None,
    ) -> DistilledDataset:
        done = self._distilled(data)
        if done is not None:
            self._reuse("distill", self.out / DISTILLED)
            return done
        source = store if store is not None else real_images(self.config, data, normalization, difficulty)
        work = Distillation(self.config, data, normalization, source, self.out, self.device, self.progress)
        state = self._start(work)
        loop, trackers = work.iterations(), self._trackers(state.iteration)
        iterates = self.cache / f"iterates-{work.key}"

        def observe(row: Mapping[str, float]) -> None:
            for tracker in trackers:
                tracker.row(row)

        checkpointed = None if validation is None else partial(work.keep, folder=iterates)
        distilled = work.run(loop, state, observe=observe, checkpointed=checkpointed)
        group = distributed.group()
        if validation is not None:
            last = distilled
            distilled = self._best(iterates, last, validation)
            group.on_main("the last iterate to be written", lambda: last.save(self.out / LAST))
        group.on_main("the distilled set to be written", lambda: distilled.save(self.out))
        return distilled

    def _distilled(self, data: ImageDataset) -> DistilledDataset | None:
        """The result in the folder, if it is that of these settings and whole."""
        checkpoint, done = self.out / CHECKPOINT, self.out / DISTILLED
        if self.overwrite or not (checkpoint.exists() and done.exists()):
            return None
        state = State.load(checkpoint, distillation_key(self.config, data), self.device)
        if state.iteration != self.config.iterations:
            return None
        try:
            return load(done)
        except StoreError as error:
            self.progress.say(f"distill: {error}; the checkpoint has the same state, and writes it again")
            return None

    def _start(self, work: Distillation) -> State:
        """The state to go on from: the checkpoint's, or the first."""
        if not work.checkpoint.exists():
            if self.resume:
                self.progress.say(f"distill: no checkpoint in {self.out} yet, starting at iteration 0")
            return work.begin()
        try:
            state = None if self.overwrite and not self.resume else work.resume()
        except StoreError:
            if not self.overwrite:
                raise
            state = None
        if state is None:
            self.progress.say(f"distill: starting at iteration 0, and replacing the checkpoint in {self.out}")
            return work.begin()
        self.progress.say(f"distill: resuming after iteration {state.iteration}")
        self.stages.resumed()
        return state

    def _best(self, iterates: Path, last: DistilledDataset, validation: ImageDataset) -> DistilledDataset:
        """The iterate whose networks are best on the validation images, which nothing else has seen."""
        config = self.config
        candidates = {
            int(folder.name): load(folder)
            for folder in sorted(iterates.glob("*"))
            if int(folder.name) < config.iterations
        }
        candidates[config.iterations] = last
        report = self._evaluated(
            {str(iteration): each for iteration, each in candidates.items()},
            validation,
            repeats=config.validation_networks,
            baselines=False,
            robust=False,
            # Other networks than those of the final table.
            seed=derive_seed(config.seed, "validation"),
        )
        accuracies = {iteration: report.row(str(iteration)) for iteration in candidates}
        best = max(candidates, key=lambda iteration: accuracies[iteration].mean)
        self.progress.say(f"validation: the iterate after {best} of {config.iterations} iterations is best")
        if distributed.group().main:
            write_validation(self.out, {iteration: row.accuracies for iteration, row in accuracies.items()}, best)
        return candidates[best]

    def _evaluate(
        self, distilled: DistilledDataset, data: ImageDataset, difficulty: Difficulty | None
    ) -> EvaluationReport:
        config = self.config
        path = self.out / EVALUATION
        name = config.method.upper()
        if hardly := hardly_updated(distilled.history):
            self.progress.say(f"distill: {hardly}")
            name += ", hardly updated"
        sets = {name: distilled}
        written = [self.out / DISTILLED]
        if config.validation_fraction:
            sets = {f"{name}, best": distilled, f"{name}, last": load(self.out / LAST)}
            written.append(self.out / LAST / DISTILLED)
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in written]
        key = key_of(data.fingerprint, config.digested("evaluate"), *digests)
        if path.exists():
            stored = EvaluationReport.read(path)
            if stored.key == key:
                self._reuse("evaluate", path)
                return stored
        usable = difficulty if difficulty is not None and difficulty.method == "el2n" else None
        report = self._evaluated(sets, data, difficulty=usable)
        if distributed.group().main:
            replace(report, key=key).write(path)
        return report

    def _evaluated(self, sets: Mapping[str, DistilledDataset], data: ImageDataset, **changes: Any) -> EvaluationReport:
        """The table of some sets, its networks kept in the cache."""
        return evaluate_as_configured(
            self.config,
            sets,
            data,
            models=(self.config.model,),
            cache=evaluation_cache(self.cache),
            device=self.device,
            progress=self.progress,
            **changes,
        )
