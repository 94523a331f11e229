"""Fresh networks trained on the sets that are compared, each tested once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..data import ImageDataset, Normalization
from ..engines import Engine, Task, select
from ..models.spec import NetworkSpec
from ..runtime import distributed
from ..runtime.progress import Progress
from ..training.trainer import Trainer
from .network import Network, train_networks
from .outcome import Outcome, area_under_curve, by_class, unpacked
from .results import Results, digest
from .sets import FULL, TrainingSet
from .side_by_side import Work, side_by_side

ImagesAndTargets = tuple[Tensor, Tensor]
"""Images `[N, C, H, W]` and targets, soft `[N, classes]` or hard `[N]`, that a network is trained on."""


@dataclass(frozen=True, eq=False)
class Job:
    """One network and what it is trained on."""

    trained_on: TrainingSet
    network: Network


def jobs_of(rows: Sequence[TrainingSet], spec: NetworkSpec, repeats: int, seed: int) -> list[Job]:
    """`repeats` networks of an architecture for every row."""
    return [Job(row, Network(spec, seed, row.purpose, index)) for row in rows for index in range(repeats)]


class Trial:
    """The real data, where networks are trained, and the results so far."""

    def __init__(
        self,
        data: ImageDataset,
        *,
        seed: int,
        device: torch.device,
        backend: str,
        results: Results,
        progress: Progress,
    ) -> None:
        self.data = data
        self.seed, self.device, self.backend = seed, device, backend
        self.results, self.progress = results, progress
        self._tests: dict[Normalization, tuple[tuple[Tensor, Tensor], str]] = {}
        self._engines: dict[NetworkSpec, tuple[Engine, Task]] = {}
        self._teachers: dict[tuple[NetworkSpec, TrainingSet], nn.Module] = {}

    def test(self, normalization: Normalization) -> tuple[tuple[Tensor, Tensor], str]:
        """Test images `[N, C, H, W]` in this normalisation with their classes `[N]`, and their digest."""
        if normalization not in self._tests:
            images = normalization.apply(self.data.test_images).to(self.device)
            test = images, self.data.test_labels.to(self.device)
            self._tests[normalization] = test, digest(*test)
        return self._tests[normalization]

    def describe(self, job: Job) -> dict[str, Any]:
        """Everything the result of a job depends on, besides versions."""
        network = vars(job.network) | {"spec": vars(job.network.spec)}
        taught = job.trained_on.teacher
        teacher = {} if taught is None else {"teacher": self.describe(self._first(job.network.spec, taught))}
        return {
            "trained_on": job.trained_on.digest,
            "tested_on": self.test(job.trained_on.normalization)[1],
            "network": network,
            "recipe": job.trained_on.recipe.described(),
            "device": self.device.type,
            "backend": self.backend,
            **teacher,
        }

    def _first(self, spec: NetworkSpec, full: TrainingSet) -> Job:
        """Network 0 of the full set: the one that teaches."""
        return Job(full, Network(spec, self.seed, full.purpose, 0))

    def outcomes(self, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        """What every job's test came to, from the results where it is there; ranks divide the jobs between them."""
        group = distributed.group()
        # The full set takes longest: begun last, it would keep one worker busy while the others have nothing to do.
        dealt = sorted(jobs, key=lambda job: job.trained_on.name != FULL)
        mine = group.turns(range(len(dealt)))
        values = torch.zeros(len(dealt), 2 + self.data.classes, dtype=torch.float64)
        missing = []
        self._find_teachers([dealt[place] for place in mine])
        for place in mine:
            known = self.results.get(self.describe(dealt[place]))
            if known is None:
                missing.append(place)
            else:
                values[place] = self._known(known)
        done = len(mine) - len(missing)
        if done:
            self.progress.say(f"evaluate: {done} of {len(mine)} networks are known already")
        threaded = [place for place in missing if self._side_by_side(dealt[place])]
        others = [place for place in missing if not self._side_by_side(dealt[place])]
        # Of all jobs, not only the missing ones: rounding depends on how many threads a network gets.
        workers = min(torch.get_num_threads(), sum(self._side_by_side(job) for job in jobs))
        results = chain(self._run(dealt, threaded, workers), self._run(dealt, others, 1))
        for place, found in self.progress.track(results, "evaluate", total=len(mine), done=done, unit="network"):
            values[place] = found
        group.wait("the networks that other ranks evaluate")
        group.sum_(values)
        return {job: unpacked(row) for job, row in zip(dealt, values, strict=True)}

    def _find_teachers(self, jobs: Sequence[Job]) -> None:
        """Those of the jobs that are still to be done; first, because they are networks of the table themselves."""
        for job in jobs:
            spec, taught = job.network.spec, job.trained_on.teacher
            if taught is None or (spec, taught) in self._teachers or self.results.get(self.describe(job)) is not None:
                continue
            self._teachers[spec, taught] = self.teacher(spec, taught)

    def soft_labels(self, spec: NetworkSpec, full: TrainingSet) -> Tensor:
        """Logits `[N, classes]` of all training images under network 0 of the full set."""
        return self._learned(spec, full, "training logits")["logits"].to(self.device)

    def teacher(self, spec: NetworkSpec, full: TrainingSet) -> nn.Module:
        """Network 0 of the full set in eval mode."""
        module = spec.build(self.seed, "teacher").module
        module.load_state_dict(self._learned(spec, full, "network"))
        return module.to(self.device).eval()

    def _learned(self, spec: NetworkSpec, full: TrainingSet, result: str) -> dict[str, Tensor]:
        """What :meth:`_teach` keeps under that name; it is trained where it is not there."""
        described = {**self.describe(self._first(spec, full)), "result": result}
        if self.results.get(described) is None:
            self._teach(spec, full)
        known = self.results.get(described)
        assert known is not None
        return known

    def _teach(self, spec: NetworkSpec, full: TrainingSet) -> None:
        """Train and test network 0 of the full set, and keep it with the logits of what it was trained on."""
        job, taken = self._first(spec, full), full.take(0)
        self.progress.say(f"evaluate: training a {spec.model} on the full set, whose outputs label images")

        def run(_: None) -> Work[Trainer]:
            trainer = yield from self._train([(job, taken)])
            self._test([job], trainer)
            return trainer

        trainer = next(side_by_side(run, [None], workers=1))
        module = trainer.network.load(trainer.theta)
        state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        described = self.describe(job)
        self.results.put({**described, "result": "network"}, **state)
        self.results.put({**described, "result": "training logits"}, logits=trainer.logits(taken[0]).cpu())

    def _known(self, stored: dict[str, Tensor]) -> Tensor:
        """A result as a row of all values; earlier versions kept the accuracy alone."""
        row = torch.full((2 + self.data.classes,), torch.nan, dtype=torch.float64)
        row[0] = stored["accuracy"]
        if "by_class" in stored:
            row[1], row[2:] = stored["auc"], stored["by_class"]
        return row

    def _run(self, jobs: Sequence[Job], places: Sequence[int], workers: int) -> Iterator[tuple[int, Tensor]]:
        def run(group: Sequence[tuple[int, ImagesAndTargets]]) -> Work[list[tuple[int, Tensor]]]:
            trainer = yield from self._train([(jobs[place], taken) for place, taken in group])
            rows = self._test([jobs[place] for place, _ in group], trainer)
            return [(place, row) for (place, _), row in zip(group, rows, strict=True)]

        return chain.from_iterable(side_by_side(run, self._groups(jobs, places), workers=workers))

    def _groups(self, jobs: Sequence[Job], places: Sequence[int]) -> Iterator[list[tuple[int, ImagesAndTargets]]]:
        """Jobs, by their places, with what each is trained on: as many at a time as are best trained together."""
        group: list[tuple[int, ImagesAndTargets]] = []
        kind: Any = None
        for place in places:
            job = jobs[place]
            taken = job.trained_on.take(job.network.index)
            how = job.network.spec, job.trained_on.recipe, job.trained_on.normalization
            now = *how, *((each.shape, each.dtype) for each in taken)
            if group and now != kind:
                yield group
                group = []
            kind = now
            group.append((place, taken))
            engine, task = self._engine(job)
            if len(group) == engine.together(task, min(job.trained_on.recipe.batch, len(taken[0]))):
                yield group
                group = []
        if group:
            yield group

    def _train(self, group: Sequence[tuple[Job, ImagesAndTargets]]) -> Work[Trainer]:
        networks, sets = [job.network for job, _ in group], [taken for _, taken in group]
        recipe = group[0][0].trained_on.recipe
        taught = group[0][0].trained_on.teacher
        teacher = None if taught is None else self._teachers[networks[0].spec, taught]
        return train_networks(networks, sets, recipe, device=self.device, backend=self.backend, teacher=teacher)

    def _test(self, jobs: Sequence[Job], trainer: Trainer) -> list[Tensor]:
        (images, labels), _ = self.test(jobs[0].trained_on.normalization)  # a group has one
        logits = trainer.logits(images).reshape(len(jobs), len(labels), -1) if self.data.classes == 2 else None
        predictions = trainer.predictions(images).reshape(len(jobs), -1) if logits is None else logits.argmax(-1)
        rows = []
        for index, job in enumerate(jobs):
            found = {
                "accuracy": (predictions[index] == labels).sum().double() / len(labels) * 100,
                "by_class": by_class(predictions[index], labels, self.data.classes),
                "auc": torch.tensor(torch.nan, dtype=torch.float64),
            }
            if logits is not None:
                found["auc"] = area_under_curve(logits[index, :, 1] - logits[index, :, 0], labels)
            found = {name: value.cpu() for name, value in found.items()}
            self.results.put(self.describe(job), **found)
            rows.append(self._known(found))
        return rows

    def _side_by_side(self, job: Job) -> bool:
        return self.device.type == "cpu" and self._engine(job)[0].side_by_side

    def _engine(self, job: Job) -> tuple[Engine, Task]:
        """The engine that runs networks of this kind, and a task of theirs to ask it about."""
        spec = job.network.spec
        if spec not in self._engines:
            task = Task(spec.build(self.seed, "probe"), self.device, torch.float32)
            self._engines[spec] = select(self.backend, task), task
        return self._engines[spec]
