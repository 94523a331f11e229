"""The stage that distils: from images, or a checkpoint, to the set that the run ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ..data import ImageDataset, Normalization
from ..data.distilled import DistilledDataset
from ..distillation.batch_matching import BatchLoop, RealPool, initial_images, loops_of
from ..distillation.initialization import InitialSet, Teachers, initial_set
from ..distillation.iterations import Iterations
from ..distillation.metrics import read_history
from ..distillation.run import run
from ..distillation.state import State
from ..distillation.trajectory_matching import Loop
from ..engines import Task, select
from ..errors import ConfigError
from ..experts import ExpertStore, curriculum_of, prune
from ..models import FlatNetwork
from ..runs.film import write_frame
from ..runs.folder import CHECKPOINT, METRICS
from ..runtime import distributed
from ..runtime.progress import Progress
from ..scoring.difficulty import Difficulty
from ..settings.config import Config
from ..settings.per_class import counts_of
from .cached import distillation_key, spec_of
from .configured import order_of


@dataclass(eq=False)
class Distillation:
    """A run's distillation, and how far it has come.

    Attributes:
        normalization: of the images the set is made of.
        source: what it is matched with: experts, or real images for gradient and distribution matching.
        folder: of the run.
        history: a row per iteration so far.
    """

    config: Config
    data: ImageDataset
    normalization: Normalization
    source: ExpertStore | RealPool
    folder: Path
    device: torch.device
    progress: Progress
    history: list[dict[str, float]] = field(default_factory=list)

    @cached_property
    def key(self) -> str:
        """The key of its checkpoint."""
        return distillation_key(self.config, self.data)

    @cached_property
    def student(self) -> FlatNetwork:
        """The network that is trained on the synthetic images."""
        return spec_of(self.config, self.data).build(self.config.seed, "student")

    @property
    def checkpoint(self) -> Path:
        """The file that keeps its state."""
        return self.folder / CHECKPOINT

    def begin(self) -> State:
        """The state before the first iteration."""
        initial = self._initial()
        for note in initial.notes:
            self.progress.say(f"init: {note}")
        return State.start(initial.images, initial.label_logits, initial.labels, self.config, self.device)

    def resume(self) -> State:
        """The state in the checkpoint.

        Raises:
            ConfigError: it is beyond the iterations asked for. StoreError: it cannot be used.
        """
        state = State.load(self.checkpoint, self.key, self.device)
        if state.iteration > self.config.iterations:
            raise ConfigError(
                f"{self.checkpoint} is already at iteration {state.iteration}, beyond iterations "
                f"{self.config.iterations}; raise iterations, or start afresh in another folder"
            )
        self.history = read_history(self.folder / METRICS, state.iteration)
        return state

    def iterations(self) -> Iterations:
        """The iterations of the method's criterion."""
        if not isinstance(self.source, RealPool):
            return Loop(self.student, self.source, self.config, self.device)
        note = loops_of(self.config)[-1]
        if note is not None:
            self.progress.say(note)
        return BatchLoop(self.student, spec_of(self.config, self.data), self.source, self.config, self.device)

    def run(
        self,
        loop: Iterations,
        state: State,
        *,
        observe: Callable[[Mapping[str, float]], None],
        checkpointed: Callable[[State], None] | None,
    ) -> DistilledDataset:
        """Iterate `state` to the end; see :func:`pad_fast.distillation.run.run`."""

        def at_checkpoint(state: State) -> None:
            self._film(state)
            if checkpointed is not None:
                checkpointed(state)

        self._film(state)  # also where a run goes on: it may have been killed before that frame was written
        run(
            loop,
            state,
            folder=self.folder,
            key=self.key,
            history=self.history,
            progress=self.progress,
            observe=observe,
            checkpointed=at_checkpoint,
        )
        return self.result(state)

    def result(self, state: State) -> DistilledDataset:
        """The distilled set a state holds: with the average of the images, where the run keeps one."""
        images = state.images if state.average is None else state.average
        return DistilledDataset(
            images=images.cpu(),
            label_logits=state.label_logits.cpu() if self.config.soft_labels else None,
            labels=state.labels.cpu(),
            lr=float(state.lr),
            whitening=self.normalization,
            config=self.config.describe(),
            history=list(self.history),
            class_names=self.data.class_names,
        )

    def keep(self, state: State, folder: Path) -> None:
        """Save an iterate to choose from, where it is due, in a folder with its number."""
        if state.iteration % self.config.validation_every == 0 and distributed.group().main:
            self.result(state).save(folder / f"{state.iteration:08}")

    def _film(self, state: State) -> None:
        """Keep what the page shows of the images as they are."""
        if distributed.group().main:
            images = state.images if state.average is None else state.average
            every = self.config.checkpoint_every
            write_frame(self.folder, state.iteration, images, state.labels, self.normalization, every)

    def _initial(self) -> InitialSet:
        config, data = self.config, self.data
        if isinstance(self.source, RealPool):
            return initial_images(config, self.source)
        task = Task(self.student, self.device, torch.float32)
        teachers = Teachers(self.source, select(config.backend, task), task)
        images = self.normalization.apply(data.train_images)
        counts = counts_of(config.ipc_per_class, config.ipc, data.class_names)
        return initial_set(config.pix_init, counts, images, data, teachers, dsa=config.dsa, seed=config.seed)


def real_images(
    config: Config, data: ImageDataset, normalization: Normalization, difficulty: Difficulty | None
) -> RealPool:
    """The real images of gradient and distribution matching, pruned as the settings ask."""
    shown = prune(order_of(data, difficulty), config.prune)
    return RealPool(normalization.apply(data.train_images), shown, data.class_names, curriculum_of(config))
