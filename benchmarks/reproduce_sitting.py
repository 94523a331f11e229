"""One sitting: scores, experts and iterations of a published setting in a folder, on from wherever an earlier call was.

    FOLDER/scores.safetensors, score-networks/, experts/   stages that are there are not done again
    FOLDER/run/                                            a run of pad_fast.distill, with these experts

Experts have a seed of their own in every sitting; the scores, the part that is held out and the draws of iterations
keep the setting's. Experts of earlier sittings whose folders are still there are used beside the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

import pad_fast
from benchmarks import reproduce_state
from benchmarks.reproduce_costs import Costs, Plan
from benchmarks.reproduce_state import Account, Saved
from pad_fast import Difficulty, ExpertStore, ImageDataset, Progress
from pad_fast.data import Normalization, fit_normalization
from pad_fast.data.distilled import load
from pad_fast.pipeline.cached import distillation_key
from pad_fast.pipeline.configured import (
    evaluate_as_configured,
    evaluation_cache,
    keep_scores,
    needs_order,
    normalization_caches,
    score_as_configured,
    train_as_configured,
)
from pad_fast.runs.folder import CACHE, read_run
from pad_fast.runtime.progress import Item
from pad_fast.runtime.rng import derive_seed
from pad_fast.settings.config import Config

RUN = "run"
_CHECKPOINT_SECONDS = 600.0  # at most between two checkpoints, as far as measured
_OWN = ("seed", "threads", "checksum")  # what experts of two sittings may differ in
CURVE_POINTS = 20
"""At most so many iterates of a sitting are validated."""


class Watching(Progress):
    """Progress that keeps the account, and says when a checkpoint has been written.

    Args:
        every: iterations between checkpoints.
        kept: called with the iterations so far behind each of them.
    """

    def __init__(self, account: Account, every: int, kept: Callable[[int], None]) -> None:
        super().__init__()
        self.account, self.every, self.kept = account, every, kept

    def track(
        self,
        items: Iterable[Item],
        label: str,
        *,
        total: int,
        done: int = 0,
        unit: str = "it",
        detail: Callable[[], str] | None = None,
    ) -> Iterator[Item]:
        """As :meth:`Progress.track`."""
        distilling, count = label == "distill", done
        for item in super().track(items, label, total=total, done=done, unit=unit, detail=detail):
            if distilling and count > done and count % self.every == 0:
                self.kept(count)  # what `count` iterations have come to is on disk when the next one is asked for
            elif not distilling and label != "evaluate":
                self.account.tick()
            count += 1
            yield item
        if distilling:
            self.account.point(total)


@dataclass(eq=False)
class Sitting:
    """What is done, in which folder, with which data.

    Attributes:
        config: the setting's, with all of its experts and iterations.
        complete: the data set; see :attr:`rest` and :attr:`held_out`.
        saved: of earlier sittings; None in the first one.
        earlier: stores of earlier sittings' experts.
    """

    folder: Path
    setting: str
    config: Config
    complete: ImageDataset
    costs: Costs
    plan: Plan
    account: Account
    saved: Saved | None
    device: torch.device
    earlier: Sequence[ExpertStore] = ()

    @cached_property
    def parts(self) -> tuple[ImageDataset, ImageDataset | None]:
        """The data that are distilled, and the same to be tested on the part that is held out."""
        return held_out(self.config, self.complete)

    @cached_property
    def run_config(self) -> Config:
        """The settings of the run: with as many iterations and experts as fit."""
        config, done = self.config, 0 if self.saved is None else self.saved.state.iteration
        every = max(1, min(config.checkpoint_every, int(_CHECKPOINT_SECONDS / self.costs.iteration)))
        # Iterates are kept where there is a checkpoint.
        pieces = min(-(-self.plan.iterations // (every * CURVE_POINTS)), max(1, config.validation_every // every))
        return replace(
            config,
            dataset=self.complete.name,
            iterations=done + self.plan.iterations,
            num_experts=self.plan.experts + sum(map(len, self.earlier)),
            buffer_path=str(self.folder / "experts"),
            checkpoint_every=every,
            validation_every=every * pieces,
            eval_baselines=False,
        )

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder / RUN

    def work(self) -> None:
        """Do what is left of it."""
        progress = Watching(self.account, self.run_config.checkpoint_every, self._kept)
        kind = "zca" if self.config.zca else "mean-std"
        rest = self.parts[0]
        with self.account.stage("scores"):
            normalization = fit_normalization(rest, kind, caches=normalization_caches(self.run))
            self._difficulty(normalization, progress)
        for other in self.earlier:  # what can be seen before hours are spent; the rest, once there are new ones
            other.require({"fingerprint": rest.fingerprint, "model": self.config.model})
        with self.account.stage("experts"):
            seed = self.account.sittings[-1]["seed"]
            own = replace(self.run_config, seed=seed, num_experts=self.plan.experts)
            store = train_as_configured(
                own, rest, normalization, self.difficulty, self.folder / "experts", self.device, progress
            )
            self._join(store)
        if self.saved is not None:
            reproduce_state.put(self.saved, self.run, self.run_config, rest)
        self.account.begin("distill")
        pad_fast.distill(
            self.complete, config=self.run_config, out=self.run, device=str(self.device), resume=True, progress=progress
        )
        self.account.validation |= {each: list(values) for each, values in read_run(self.run).validation}
        self._write()

    def _join(self, store: ExpertStore) -> None:
        """Copy earlier experts behind the new ones; those that are there stay."""
        number = self.plan.experts
        for other in self.earlier:
            other.require({name: value for name, value in store.metadata.items() if name not in _OWN})
            for expert in range(len(other)):
                claim = store.claim(number, wait=True)
                if claim is not None:
                    with claim:
                        snapshots = torch.stack([other.snapshot(expert, epoch) for epoch in store.kept])
                        store.finish(claim, snapshots, other.facts(expert))
                number += 1

    def _difficulty(self, normalization: Normalization, progress: Progress) -> None:
        """The order that images are shown in: an earlier sitting's, the one in the folder, or a new one."""
        self.difficulty: Difficulty | None = None
        path, networks = self.folder / "scores.safetensors", self.folder / "score-networks"
        if not needs_order(self.config):
            return
        if self.saved is not None:
            self.difficulty = self.saved.difficulty()
        elif path.exists():
            self.difficulty = Difficulty.load(path)
        else:
            found = score_as_configured(
                self.config, self.parts[0], normalization, self.device, progress, networks_dir=networks
            )
            self.difficulty = keep_scores(found, path, networks)

    def _kept(self, iteration: int) -> None:
        """Behind a checkpoint: validate the iterates that are new, and write the state file."""
        self.account.point(iteration)
        with self.account.pause():
            self._validate()
            self._write()

    def _validate(self) -> None:
        """As the end of the run does, which finds the results in the cache."""
        config, (rest, validation) = self.run_config, self.parts
        if validation is None:
            return
        iterates = self.run / CACHE / f"iterates-{distillation_key(config, rest)}"
        for folder in sorted(iterates.glob("*")):
            if int(folder.name) not in self.account.validation:
                report = evaluate_as_configured(
                    config,
                    {folder.name: load(folder)},
                    validation,
                    models=(config.model,),
                    cache=evaluation_cache(self.run / CACHE),
                    device=self.device,
                    progress=Progress(quiet=True),
                    repeats=config.validation_networks,
                    baselines=False,
                    robust=False,
                    seed=derive_seed(config.seed, "validation"),
                )
                self.account.validation[int(folder.name)] = list(report.rows[0].accuracies)

    def _write(self) -> None:
        order = None if self.difficulty is None else self.difficulty.order
        reproduce_state.write(
            self.folder / reproduce_state.STATE,
            self.run,
            self.account,
            setting=self.setting,
            config=self.config,
            data=self.parts[0],
            order=order,
        )


def held_out(config: Config, data: ImageDataset) -> tuple[ImageDataset, ImageDataset | None]:
    """The data without the part that a run holds out, and that part in place of the test set."""
    return data.hold_out(config.validation_fraction, seed=config.seed) if config.validation_fraction else (data, None)
