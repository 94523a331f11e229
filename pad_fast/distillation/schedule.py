"""The draw of every distillation iteration: experts, start epoch, batches. Pure functions of (seed, iteration)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.rng import generator
from ..settings.config import Config


@dataclass(frozen=True, eq=False)
class IterationDraw:
    """One iteration: K trajectories, and the batches that all of them take.

    Attributes:
        experts, start_epochs: expert and start epoch s of each trajectory.
        batches: T index tensors.
    """

    experts: tuple[int, ...]
    start_epochs: tuple[int, ...]
    batches: list[Tensor]


def start_epoch_limit(config: Config, iteration: int) -> int:
    """U: start epochs are drawn below it. Sequential generation widens the range over the iterations (DATM)."""
    if not config.sequential_generation:
        return config.max_start_epoch
    # A range that is as wide as allowed from the start must not narrow again.
    first = min(config.current_max_start_epoch, config.max_start_epoch)
    grown = first + int((config.max_start_epoch - first) * iteration / config.expansion_end_epoch)
    return min(config.max_start_epoch, grown)


def split_batches(count: int, batch: int | None, steps: int, draws: torch.Generator) -> list[Tensor]:
    """T batches: consecutive pieces of a random permutation, last piece first, a new permutation when used up."""
    batches: list[Tensor] = []
    pieces: list[Tensor] = []
    while len(batches) < steps:
        if not pieces:
            pieces = list(torch.randperm(count, generator=draws).split(batch or count))
        batches.append(pieces.pop())
    return batches


def draw_iteration(config: Config, iteration: int, experts: int, images: int) -> IterationDraw:
    """Draw the `config.trajectories` trajectories of one iteration and their batches.

    Each trajectory has an expert and a start epoch of its own; every expert is used once before any is used again. The
    batches are one draw: students that see the same images can be computed together.
    """
    limit = start_epoch_limit(config, iteration)
    chosen, starts = [], []
    batches: list[Tensor] = []
    for index in range(config.trajectories):
        turn = iteration * config.trajectories + index
        order = torch.randperm(experts, generator=generator(config.seed, "expert order", turn // experts))
        chosen.append(int(order[turn % experts]))
        draws = generator(config.seed, "iteration", iteration, index)
        starts.append(int(torch.randint(config.min_start_epoch, limit, (1,), generator=draws)))
        if not batches:  # whatever K is, the first trajectory sees what it would see alone
            batches = split_batches(images, config.batch_syn, config.syn_steps, draws)
    return IterationDraw(tuple(chosen), tuple(starts), batches)
