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
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .batch_matching import BatchLoop, RealImages, initial_images, loops_of, make_criterion, require_alone
from .data import DSA, ImageDataset, Normalization, fit_normalization, load_dataset
from .data.distilled import FILE, DistilledDataset, load
from .distillation import Iterations, Loop, State, read_history, require_possible, run
from .engines import Task, select
from .errors import ConfigError, DatasetError
from .evaluation import EvaluationReport, evaluate
from .experts import ExpertStore, curriculum_of, prune, train_experts
from .initialization import InitialSet, Teachers, initial_set
from .models import FlatNetwork
from .models.spec import NetworkSpec
from .presentation import present
from .preview import write_preview
from .run_folder import LOCK
from .runtime import distributed, files, locks
from .runtime.device import cache_bytes, resolve_device
from .runtime.progress import Progress
from .runtime.rng import derive_seed
from .scoring.difficulty import Difficulty
from .scoring.score import score
from .settings.config import Config
from .settings.resolve import make_settings
from .settings.snapshot_ranges import format_keep
from .settings.yaml_files import to_yaml
from .stages import StageLog
from .trackers import Tracker, open_trackers, require_trackers

LAST = "last"


def distill(
    dataset: Any = "digits",
    *,
    ipc: int = 1,
    method: str = "pad",
    config: Config | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    preset: str | None = None,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    device: str = "auto",
    backend: str = "auto",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    log: str | Sequence[str] = (),
    progress: Progress | None = None,
    **overrides: Any,
) -> DistilledDataset:
    """Distil a data set into `ipc` synthetic images per class.

    Runs difficulty scoring, expert training, distillation and evaluation, keeps every stage in `out`, and reuses a
    stage whose settings have not changed. Same seed and machine: same files.

    Args:
        dataset: a name ("digits" needs no download), "imagefolder:PATH", tensors, or torch data sets; see
            :func:`pad_fast.load_dataset`.
        ipc: synthetic images per class.
        method: "pad", "datm", "ftd", "mtt" or "tesla": settings of trajectory matching; "dc" or "dsa" (gradient
            matching) or "dm" (distribution matching).
        config: a YAML file (ours or the reference's), a mapping, or a ready :class:`Config`, which then decides
            everything that is not given in `overrides`.
        preset: published settings by name, e.g. "cifar10-ipc10".
        out: folder of the run; default `runs/<dataset>-ipc<ipc>-<method>`.
        data_dir: where downloaded data sets are; `download` fetches a data set that is not there yet.
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: engine, see `pad_fast.engines.backends()`.
        seed: of everything random.
        resume: continue from the checkpoint in `out`; ends with the result of an undisturbed run.
        overwrite: allow `out` to hold a run with other settings, whose results are replaced.
        log: "tensorboard" or "wandb", or both: send the numbers there as well, through their own packages.
        **overrides: any field of :class:`Config`, or a key of the reference's YAML files.

    Returns:
        The distilled set, with `evaluation` rows and `history` filled in.

    Raises:
        InputError: settings, data or files that cannot be used; before any work starts.
        DistillationStopped: the loss turned NaN, or nothing was ever updated; a checkpoint is in `out`.

    Example:
        >>> import tempfile, pad_fast
        >>> result = pad_fast.distill(out=tempfile.mkdtemp(), num_experts=1, train_epochs=4, max_start_epoch=2,
        ...     score_networks=1, score_epochs=1, syn_steps=2, iterations=2, eval_networks=1, eval_epochs=2,
        ...     eval_full_epochs=1, add_end_epoch=1, removal1_epoch=2, removal2_epoch=3,
        ...     progress=Progress(quiet=True))
        >>> result.images.shape
        torch.Size([10, 1, 8, 8])
    """
    progress = progress or Progress()
    trackers = (log,) if isinstance(log, str) else tuple(log)
    require_trackers(trackers)
    named = dataset if isinstance(dataset, str) else None
    written: dict[str, Any] = {}
    if isinstance(config, Config):
        written = config.describe()
    elif isinstance(config, Mapping):
        written = dict(config)
    arguments = {**written, **overrides}
    # An explicit argument beats the file; an argument left at its default does not.
    for name, value, default in (("seed", seed, 0), ("backend", backend, "auto"), ("ipc", ipc, 1)):
        if value != default:
            arguments[name] = value
    if method != "pad":
        arguments["method"] = method
    if named is not None and named != "digits":
        arguments["dataset"] = named
    file = os.fspath(config) if isinstance(config, (str, os.PathLike)) else None
    if named is None:
        arguments["dataset"] = getattr(dataset, "name", "tensors")
    settings = make_settings(preset_name=preset, file=file, overrides=arguments)
    run_config = settings.config
    where = resolve_device(device if device != "auto" else settings.device)
    if out is None:
        label = "".join(c if c.isalnum() else "-" for c in run_config.dataset.rpartition("/")[2].lower())
        out = Path("runs") / f"{label}-ipc{run_config.ipc}-{run_config.method}"
    pipeline = Pipeline(run_config, Path(out), where, progress, resume=resume, overwrite=overwrite, log=trackers)
    where_from = data_dir or settings.data_dir
    return pipeline.run(run_config.dataset if named is not None else dataset, where_from, download=download)


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
                f"keep is {config.keep!r}, but these settings reach snapshots {format_keep(lost)} as well; use "
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
        described["keep"] = format_keep(config.kept_snapshots)
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
        source: ExpertStore | RealImages
        if store is None:
            shown = prune(order_of(data, difficulty), config.prune)
            source = RealImages(normalization.apply(data.train_images), shown, curriculum_of(config))
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
        source: ExpertStore | RealImages,
        student: FlatNetwork,
    ) -> InitialSet:
        config = self.config
        if isinstance(source, RealImages):
            return initial_images(config, source)
        task = Task(student, self.device, torch.float32)
        teachers = Teachers(source, select(config.backend, task), task)
        images = normalization.apply(data.train_images)
        return initial_set(config.pix_init, config.ipc, images, data, teachers, seed=config.seed)

    def _loop(self, data: ImageDataset, source: ExpertStore | RealImages, student: FlatNetwork) -> Iterations:
        """The iterations of the method's criterion."""
        config = self.config
        if not isinstance(source, RealImages):
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


def configured_data(
    config: Config, dataset: Any, data_dir: str | os.PathLike[str] | None, *, download: bool = False
) -> tuple[ImageDataset, ImageDataset | None]:
    """The data of a run without the part it holds out, and the data with that part in place of the test set."""
    data = load_dataset(dataset, data_dir=data_dir, resolution=config.resolution, download=download)
    if not config.validation_fraction:
        return data, None
    return data.hold_out(config.validation_fraction, seed=config.seed)


def normalization_caches(out: Path) -> list[Path]:
    """Where a fitted ZCA is kept for what is written to `out`, and looked for: a run's folder serves those in it."""
    return [out / "cache", out.parent / "cache"]


def needs_order(config: Config) -> bool:
    """Whether anything in the run depends on how hard images are."""
    return config.curriculum or config.prune != "none"


def may_go_on(config: Config) -> bool:
    """Whether a finished run may be continued for longer: not where a curriculum was stretched over its iterations."""
    return config.uses_experts or not config.curriculum


def order_of(data: ImageDataset, difficulty: Difficulty | None) -> list[torch.Tensor]:
    """Dataset indices per class, easy to hard where that is known."""
    return data.images_by_class() if difficulty is None else difficulty.order


def score_as_configured(
    config: Config,
    data: ImageDataset,
    normalization: Normalization,
    device: torch.device,
    progress: Progress,
    *,
    networks_dir: Path,
) -> Difficulty:
    """:func:`pad_fast.score` with a config's settings."""
    return score(
        data,
        method=config.score_method,
        model=config.model,
        networks=config.score_networks,
        epochs=config.score_epochs,
        batch=config.score_batch,
        lr=config.score_lr,
        normalization=normalization,
        seed=config.seed,
        device=str(device),
        backend=config.backend,
        networks_dir=networks_dir,
        progress=progress,
    )


def keep_scores(difficulty: Difficulty, path: Path, networks: Path) -> Difficulty:
    """Write the scores, delete the folder of the networks they come from, and return what all ranks go on with."""
    group = distributed.group()
    group.on_main("the scores to be written", lambda: difficulty.save(path))
    if group.main:
        shutil.rmtree(networks)
    # Not their own: on another machine the last bits may differ, and with them the order.
    return difficulty if group.main else Difficulty.load(path)


def train_as_configured(
    config: Config,
    data: ImageDataset,
    normalization: Normalization,
    difficulty: Difficulty | None,
    out: Path,
    device: torch.device,
    progress: Progress,
) -> ExpertStore:
    """:func:`pad_fast.train_experts` with a config's settings."""
    return train_experts(
        data,
        out=out,
        experts=config.num_experts,
        epochs=config.train_epochs,
        curriculum=curriculum_of(config),
        difficulty=difficulty,
        prune_rule=config.prune,
        optimizer=config.expert_optimizer,
        rho=config.gsam_rho,
        alpha=config.gsam_alpha,
        model=config.model,
        batch=config.batch_train,
        lr=config.lr_expert,
        dsa=config.dsa,
        dsa_mode=config.dsa_mode,
        keep=format_keep(config.kept_snapshots),
        storage=config.expert_storage,
        test_every=config.test_every,
        workers=config.workers,
        normalization=normalization,
        seed=config.seed,
        device=str(device),
        backend=config.backend,
        progress=progress,
    )


def _scores_path(cache: Path, fingerprint: str, config: Config) -> Path:
    return cache / f"scores-{_key(fingerprint, config.describe('data', 'scores'))}.safetensors"


def _key(*parts: Any) -> str:
    """Short digest of everything a stage depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
