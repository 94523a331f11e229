"""What the sittings of one reproduction add up to, and the small file that carries it from one machine to the next.

FOLDER/account.json        hours by stage of every sitting, hours and validation accuracy by iteration
FOLDER/state.safetensors   the same, with images, label logits, alpha, momenta, the rows of metrics.jsonl without
                           the loss by layer, and the easy-to-hard order: all that `--begin-from` needs
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_fast import Difficulty, ImageDataset
from pad_fast.distillation.metrics import METRICS, read_history
from pad_fast.distillation.state import CHECKPOINT, State, read_checkpoint
from pad_fast.pipeline.cached import distillation_key
from pad_fast.pipeline.checks import claim
from pad_fast.runtime import files, tensor_files
from pad_fast.settings.config import Config

ACCOUNT, STATE = "account.json", "state.safetensors"
_FORMAT = "pad_fast reproduction 1"
_SAVE_EVERY = 5.0  # seconds of an account between two looks at the disk
_ROW = {"loss": torch.float32, "lr": torch.float64, "expert": torch.int32, "start_epoch": torch.int32}
_ROW |= {"skipped": torch.uint8}
_ELSEWHERE = ("dataset", "order_file", "buffer_path")  # settings that name places on one machine


@dataclass
class Account:
    """What was spent, and what came of it.

    Attributes:
        sittings: number of experts and their seed, iterations, and hours by stage of each; the last one is under way.
        points: (iteration, hours of all sittings until then), at every checkpoint.
        validation: iteration -> accuracies on the part of the training set that is held out.
        path: where it is kept; None where nobody goes on with it.
    """

    sittings: list[dict[str, Any]] = field(default_factory=list)
    points: list[tuple[int, float]] = field(default_factory=list)
    validation: dict[int, list[float]] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        self._stage, self._mark, self._saved = "", 0.0, 0.0

    @classmethod
    def of(cls, stored: dict[str, Any], path: Path | None = None) -> Account:
        """What :meth:`described` gave."""
        points = [(int(iteration), float(hours)) for iteration, hours in stored["points"]]
        validation = {int(iteration): list(values) for iteration, values in stored["validation"].items()}
        return cls([dict(each) for each in stored["sittings"]], points, validation, path)

    def described(self) -> dict[str, Any]:
        """For JSON."""
        validation = {str(iteration): values for iteration, values in sorted(self.validation.items())}
        return {"sittings": self.sittings, "points": self.points, "validation": validation}

    def save(self) -> None:
        """Write it."""
        if self.path is not None:
            files.write_json(self.path, self.described())
            self._saved = time.perf_counter()

    @property
    def iteration(self) -> int:
        """Iterations of the sittings that are over."""
        return sum(each["iterations"] for each in self.sittings[:-1])

    @property
    def hours(self) -> float:
        """Of all sittings until now."""
        return sum(sum(each["hours"].values()) for each in self.sittings)

    def begin(self, stage: str) -> None:
        """What is counted from now on is that stage's."""
        self._stage, self._mark = stage, time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside as that stage's; what an error ends is not counted behind the last tick."""
        self.begin(name)
        yield
        self.tick()
        self.save()

    def tick(self) -> None:
        """Count the time since the last tick; what is on disk is at most some seconds behind."""
        now, hours = time.perf_counter(), self.sittings[-1]["hours"]
        hours[self._stage] = hours.get(self._stage, 0.0) + (now - self._mark) / 3600
        self._mark = now
        if now - self._saved > _SAVE_EVERY:
            self.save()

    def point(self, iteration: int) -> None:
        """Count the time until a checkpoint, and note what was spent by then."""
        if not self.points or self.points[-1][0] < iteration:
            self.tick()
            self.points.append((iteration, self.hours))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside counts for no stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - begun


@dataclass(frozen=True, eq=False)
class Saved:
    """The content of a state file.

    Attributes:
        setting: the published setting's name; `settings`: all that decides what is computed, but for places on the
            machine.
        fingerprint: of the data without the part that is held out.
        state: of the distillation; `rows`: of metrics.jsonl.
        order: dataset indices per class, easy to hard; None where nobody needs them.
    """

    setting: str
    settings: dict[str, Any]
    fingerprint: str
    state: State
    rows: list[dict[str, float]]
    account: Account
    order: list[Tensor] | None

    def difficulty(self) -> Difficulty | None:
        """The order as scores by rank."""
        if self.order is None:
            return None
        scores = torch.empty(sum(map(len, self.order)))
        for indices in self.order:
            scores[indices] = torch.arange(len(indices), dtype=torch.float32) / len(indices)
        return Difficulty(scores, self.order, "order", self.fingerprint)


def write(
    path: Path, run: Path, account: Account, *, setting: str, config: Config, data: ImageDataset,
    order: Sequence[Tensor] | None,
) -> None:  # fmt: skip
    """Write the account and the state file of a run that has a checkpoint.

    Args:
        run: folder of :func:`pad_fast.distill`.
        data: without the part that is held out.
    """
    with read_checkpoint(run / CHECKPOINT) as (tensors, described):
        iteration = int(described["iteration"])
        rows = read_history(run / METRICS, iteration)
        account.sittings[-1]["iterations"] = iteration - account.iteration
        account.save()
        tensors = dict(tensors)
        for name, kind in _ROW.items():
            tensors[f"rows.{name}"] = torch.tensor([row[name] for row in rows], dtype=kind)
        if order is not None:
            tensors["order"] = torch.cat(list(order)).int()
            tensors["class_sizes"] = torch.tensor([len(indices) for indices in order])
        settings = config.describe("data", "scores", "experts", "distill", "evaluate")
        settings["validation_networks"] = config.validation_networks
        content = {
            "format": _FORMAT,
            "setting": setting,
            "settings": {name: value for name, value in settings.items() if name not in _ELSEWHERE},
            "fingerprint": data.fingerprint,
            "iteration": iteration,
            "skipped": described["skipped"],
            "account": account.described(),
        }
        files.write_bytes(path, tensor_files.pack_tensors(tensors, content))


def read(path: Path, device: torch.device) -> Saved:
    """Read a state file.

    Raises:
        StoreError: missing, damaged, or something else.
    """
    way_out = "begin from another copy of it, or anew"
    with tensor_files.read_tensors(path, "state of a reproduction", _FORMAT, way_out=way_out) as (tensors, described):
        columns = {name: tensors[f"rows.{name}"].tolist() for name in _ROW}
        rows = [
            {"iteration": number, **dict(zip(_ROW, values, strict=True))}
            for number, values in enumerate(zip(*columns.values(), strict=True))
        ]
        momentum = {name: tensors[f"momentum.{name}"].to(device) for name in ("images", "labels", "lr")}
        state = State(
            tensors["images"].to(device),
            tensors["label_logits"].to(device),
            tensors["lr"].to(device),
            tensors["labels"],
            momentum,
            tensors["average"].to(device) if "average" in tensors else None,
            int(described["iteration"]),
            int(described["skipped"]),
        )
        order = None
        if "order" in tensors:
            order = list(tensors["order"].long().split(tensors["class_sizes"].tolist()))
        account = Account.of(described["account"])
        return Saved(described["setting"], described["settings"], described["fingerprint"], state, rows, account, order)


def put(saved: Saved, run: Path, config: Config, data: ImageDataset) -> None:
    """Make `run` a folder that :func:`pad_fast.distill` goes on in, where it has not begun yet."""
    if not (run / CHECKPOINT).exists():
        claim(config, data, run, {})
        files.write_text(run / METRICS, "".join(json.dumps(row) + "\n" for row in saved.rows))
        saved.state.save(run / CHECKPOINT, distillation_key(config, data))
