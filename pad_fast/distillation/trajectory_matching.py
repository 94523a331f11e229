"""Iterations that match experts' trajectories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import DSA
from ..errors import ConfigError, InputError
from ..experts import ExpertStore
from ..experts.snapshots import Snapshots
from ..matching import layer_distances, require_divisible, student_end, trajectory_matching_loss
from ..models import FlatNetwork
from ..runtime import distributed
from ..runtime.distributed import ALONE
from ..runtime.rng import derive_seed
from ..settings.config import Config
from .back_off import LIMITS, RATES, Fault, halvings, movement
from .iterations import LATE, make_mask, read_later
from .metrics import LAYER_LOSS
from .schedule import IterationDraw, draw_iteration
from .state import State

AHEAD = 2
"""Number of iterations that the experts' snapshots are read ahead."""


Pair = tuple[tuple[int, int], tuple[int, int]]
"""(expert, epoch) of a trajectory's start and of its target."""


@dataclass(frozen=True, eq=False)
class Pending:
    """An iteration that was begun and whose outcome the host may not know yet.

    Attributes:
        pairs: (expert, epoch) of start and target of this rank's trajectories.
        expert, start_epoch: of the first trajectory of all ranks.
        learned: the tensors that were to be updated.
        outcome: float64 `[3 + len(learned)]` in host memory: loss, the student's learning rate afterwards, what it
            would have become, and for each learned tensor whether its gradient was finite; for a run that backs off,
            how far each would have gone as well.
        arrived: passed once `outcome` can be read; None when it can.
        layers: matching loss by layer, ready for the row; empty where it is not recorded.
    """

    iteration: int
    pairs: Sequence[Pair]
    expert: int
    start_epoch: int
    learned: tuple[str, ...]
    outcome: Tensor
    arrived: torch.cuda.Event | None
    layers: Mapping[str, float]


class Loop:
    """Runs iterations on a :class:`State`.

    Whether an update is made is decided on the device, so that the host can go on with the next iteration meanwhile:
    :meth:`begin` starts one, :meth:`settle` waits for it and reports.

    The ranks of :func:`pad_fast.distributed.group` divide each iteration between them (`config.split`) and hold the
    same state after it. Arithmetic is that of the state's images: float32, unless somebody makes them float64.

    Args:
        network: the student.
        store: experts with at least `max_start_epoch - 1 + expert_epochs` epochs.
        config: settings; `device` is where the work happens.
        late: iterations that may be begun before the first of them is settled; the device decides when None.
    """

    def __init__(
        self,
        network: FlatNetwork,
        store: ExpertStore,
        config: Config,
        device: torch.device,
        *,
        late: int | None = None,
    ) -> None:
        self.network, self.store, self.config, self.device = network, store, config, device
        self.network.module.to(device).train()
        self.mask = make_mask(config)
        require_possible(config, network)
        # What is not divided is computed by every rank alike.
        group = distributed.group()
        self.over_batches, self.over_trajectories = (group, ALONE) if config.split == "batch" else (ALONE, group)
        self.dsa = DSA(config.dsa, mode=config.dsa_mode)
        self.snapshots = Snapshots(store, device)
        self._drawn: dict[tuple[int, int], IterationDraw] = {}  # by iteration and number of images
        self.late = (LATE if device.type == "cuda" else 0) if late is None else late
        # After an iteration that stops the run, those begun behind it must not change anything.
        self._stopped = torch.zeros((), dtype=torch.bool, device=device)
        self._labels: Tensor | None = None

    def iterate(self, state: State) -> dict[str, float]:
        """One iteration: update `state` unless the loss is above the threshold. Returns the row for metrics.jsonl.

        Raises:
            DistillationStopped: the loss or a gradient is not finite, alpha would become non-positive, or, under
                `back_off`, a step is out of proportion; `state` is then as it was before the iteration.
        """
        return self.settle(state, self.begin(state))

    def begin(self, state: State) -> Pending:
        """Start an iteration on `state`; on a GPU nothing here waits for a result."""
        config, iteration = self.config, state.iteration
        images = state.images.detach().requires_grad_()
        logits = state.label_logits.detach().requires_grad_(config.soft_labels)
        lr = state.lr.to(self.device, images.dtype).detach().requires_grad_()
        if not config.soft_labels and self._labels is None:
            self._labels = state.labels.to(self.device)
        labels = logits if self._labels is None else self._labels
        drawn = self._draw(iteration, len(images))
        layers = self._layers(drawn, images, labels, lr, iteration)
        own = self._losses(drawn, images, labels, lr, iteration)
        loss = self.over_trajectories.joined(own.detach(), config.trajectories).mean()
        learned = [("images", state.images, images, state.rate("lr_img", config), config.momentum_img)]
        learned.append(("lr", state.lr, lr, state.rate("lr_lr", config), config.momentum_lr))
        if config.soft_labels:
            learned.append(("labels", state.label_logits, logits, state.rate("lr_y", config), config.momentum_y))
        # Where the loss is known at once, one that leads to no update need not be pulled back.
        if self.late or self._updates(float(loss), state):
            (own.sum() / config.trajectories).backward()
            self.over_trajectories.sum_(*(leaf.grad for _, _, leaf, _, _ in learned))
        outcome = self._update(state, loss.double(), learned)
        outcome, arrived = read_later(outcome)
        state.iteration += 1
        names = tuple(name for name, *_ in learned)
        pairs = self._pairs(drawn)
        return Pending(iteration, pairs, drawn.experts[0], drawn.start_epochs[0], names, outcome, arrived, layers)

    def settle(self, state: State, pending: Pending) -> dict[str, float]:
        """The row of an iteration, after all earlier ones were settled.

        Raises:
            Fault: see :meth:`iterate`; iterations begun after this one have had no effect.
            StoreError: the loss is not finite because start and target are the same snapshot.
        """
        if pending.arrived is not None:
            pending.arrived.synchronize()
        loss, lr, new_lr, *rest = pending.outcome.tolist()
        count = len(pending.learned)
        skipped = self._skips(loss, state)
        row = {
            "iteration": pending.iteration,
            "loss": loss,
            "lr": lr,
            "expert": pending.expert,
            "start_epoch": pending.start_epoch,
            "skipped": int(skipped),
            **pending.layers,
        }
        if not skipped:
            found = self._complaint(state, pending, loss, lr, new_lr, rest[:count], rest[count:])
            if found is not None:
                state.iteration = pending.iteration
                self._stopped.zero_()
                raise Fault(found[0], row | {"skipped": 1}, found[1])
        state.skipped += int(skipped)
        return row

    def _skips(self, loss: float, state: State) -> bool:
        threshold = state.threshold(self.config)
        return threshold is not None and loss > threshold and math.isfinite(loss)

    def _updates(self, loss: float, state: State) -> bool:
        return math.isfinite(loss) and not self._skips(loss, state)

    def _complaint(
        self,
        state: State,
        pending: Pending,
        loss: float,
        lr: float,
        new_lr: float,
        finite: list[float],
        moves: list[float],
    ) -> tuple[str, dict[str, int]] | None:
        """What is wrong with an iteration that was not skipped, and what to blame (:class:`Fault`); None if nothing."""
        config, iteration = self.config, pending.iteration
        lr_img, lr_lr, lr_y = (state.rate(name, config) for name in ("lr_img", "lr_lr", "lr_y"))
        if not math.isfinite(loss):
            self._require_moved(pending.pairs)
            return (
                f"the matching loss is {loss} in iteration {iteration}. Lower lr_img ({lr_img:g}) or "
                f"lr_lr ({lr_lr:g}), or start alpha lower (lr_init {config.lr_init:g}, now {lr:g})"
            ), {}
        for name, is_finite in zip(pending.learned, finite, strict=True):
            if not is_finite:
                return (
                    f"the gradient of the {name} is not finite in iteration {iteration}. "
                    f"Lower lr_img ({lr_img:g}), lr_y ({lr_y:g}) or lr_lr ({lr_lr:g})"
                ), {}
        if not new_lr > 0:
            return (
                f"the student's learning rate would become {new_lr:.3g} in iteration {iteration}; it must stay "
                f"positive. Lower lr_lr ({lr_lr:g})"
            ), {"lr_lr": halvings((lr - new_lr) / lr, LIMITS["lr"])}
        far = {name: move for name, move in zip(pending.learned, moves, strict=False) if not move <= LIMITS[name]}
        if far:
            said = ", ".join(f"{name} {move:.3g} (at most {LIMITS[name]:.2g})" for name, move in far.items())
            blame = {RATES[name]: halvings(move, LIMITS[name]) for name, move in far.items()}
            return f"a step is out of proportion in iteration {iteration}: {said}", blame
        return None

    def _draw(self, iteration: int, images: int) -> IterationDraw:
        """The draw of an iteration; the snapshots of this one and the next are asked for meanwhile."""
        known, self._drawn = self._drawn, {}
        for each in range(iteration, iteration + AHEAD + 1):
            key = each, images
            self._drawn[key] = (
                known[key] if key in known else draw_iteration(self.config, each, len(self.store), images)
            )
        self.snapshots.prefetch([key for drawn in self._drawn.values() for pair in self._pairs(drawn) for key in pair])
        return self._drawn[iteration, images]

    def _pairs(self, drawn: IterationDraw) -> list[Pair]:
        """Those of this rank's trajectories."""
        own = [(drawn.experts[k], drawn.start_epochs[k]) for k in self.over_trajectories.part(self.config.trajectories)]
        return [((expert, epoch), (expert, epoch + self.config.expert_epochs)) for expert, epoch in own]

    def _losses(self, drawn: IterationDraw, images: Tensor, labels: Tensor, lr: Tensor, iteration: int) -> Tensor:
        """Matching losses of this rank's trajectories `[K]`; their students take the same augmented batches."""
        config, pairs = self.config, self._pairs(drawn)
        snapshots = [(self.snapshots.get(*start), self.snapshots.get(*target)) for start, target in pairs]
        starts, targets = (torch.stack(each) for each in zip(*snapshots, strict=True))
        try:
            return trajectory_matching_loss(
                self.network,
                starts.to(images.dtype),
                targets.to(images.dtype),
                images,
                labels,
                lr,
                batches=drawn.batches,
                mask=self.mask,
                # The last number is that of the first trajectory, whose augmentation all of them share.
                augment=self.dsa.seeded(derive_seed(config.seed, "student dsa", iteration, 0)),
                gradient=config.gradient,
                backend=config.backend,
                precision=config.precision,
                cache=config.cache,
                group=self.over_batches,
            )
        except InputError:
            self._require_moved(pairs)
            raise

    def _require_moved(self, pairs: Sequence[Pair]) -> None:
        """Name the file where an expert stands still: its matching loss is not finite, whatever the rates."""
        for (expert, start), (_, target) in pairs:
            self.store.require_moved(expert, start, target)

    def _layers(
        self, drawn: IterationDraw, images: Tensor, labels: Tensor, lr: Tensor, iteration: int
    ) -> dict[str, float]:
        """Matching loss by layer of the iteration's first trajectory, now and then: it costs one more forward pass."""
        config = self.config
        if config.layer_loss_every == 0 or iteration % config.layer_loss_every:
            return {}
        expert, epoch = drawn.experts[0], drawn.start_epochs[0]
        start = self.snapshots.get(expert, epoch).to(images.dtype)
        end = student_end(
            self.network,
            start,
            images,
            labels,
            lr,
            batches=drawn.batches,
            augment=self.dsa.seeded(derive_seed(config.seed, "student dsa", iteration, 0)),
            backend=config.backend,
            precision=config.precision,
        )
        target = self.snapshots.get(expert, epoch + config.expert_epochs).to(images.dtype)
        return {LAYER_LOSS + name: value for name, value in layer_distances(self.network, end, start, target).items()}

    def _update(
        self, state: State, loss: Tensor, learned: Sequence[tuple[str, Tensor, Tensor, float, float]]
    ) -> Tensor:
        """One SGD step on every `(name, value, leaf with gradient, rate, momentum)` if all is well; the outcome."""
        if learned[0][2].grad is None:  # not pulled back: above the threshold, or not finite
            moves = [torch.zeros_like(loss) for _ in learned] if self.config.back_off else []
            return torch.stack([loss, state.lr, state.lr, *(torch.ones_like(loss) for _ in learned), *moves])
        updates, finite = [], []
        for name, value, leaf, rate, momentum in learned:
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            finite.append(grad.isfinite().all() & torch.full_like(self._stopped, leaf.grad is not None))
            buffer = momentum * state.momentum[name] + grad.to(value.device, value.dtype)
            updates.append((name, value, buffer, value - rate * buffer))
        new_lr = next(new for name, _, _, new in updates if name == "lr")
        sound = loss.isfinite()
        threshold = state.threshold(self.config)
        skipped = torch.zeros_like(sound) if threshold is None else sound & (loss > threshold)
        sound = sound & torch.stack(finite).all() & (new_lr > 0)
        moves = []
        if self.config.back_off:
            moves = [movement(value, new) for _, value, _, new in updates]
            for (name, *_), move in zip(updates, moves, strict=True):
                sound = sound & (move <= LIMITS[name])
        accepted = sound & ~skipped & ~self._stopped
        self._stopped |= ~sound & ~skipped
        for name, value, buffer, new in updates:
            state.momentum[name] = torch.where(accepted, buffer, state.momentum[name])
            value.copy_(torch.where(accepted, new, value))
        if state.average is not None and self.config.ema_decay is not None:
            moved = torch.lerp(state.average, state.images, 1 - self.config.ema_decay)
            state.average.copy_(torch.where(accepted, moved, state.average))
        return torch.stack([loss, state.lr, new_lr, *(flag.double() for flag in finite), *moves])


def require_possible(config: Config, network: FlatNetwork) -> None:
    """Prove that the mask leaves something to match, and that the ranks can divide the iterations.

    Raises:
        InputError: they cannot; before any work.
    """
    make_mask(config).first_kept(network)
    ranks = distributed.group().size
    if ranks > 1 and config.split == "batch":
        require_divisible(network, config.gradient)
    elif config.trajectories < ranks:
        raise ConfigError(
            f"trajectories is {config.trajectories}, so {ranks - config.trajectories} of {ranks} ranks would have "
            f"nothing to do; use trajectories={ranks} (or more), or split='batch'"
        )
