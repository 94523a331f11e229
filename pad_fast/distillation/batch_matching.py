"""Gradient and distribution matching (DC, DSA, DM): synthetic images against batches of real ones, network by network.

An iteration takes one freshly initialised network. DM updates the images once. DC and DSA update them `outer` times and
train the network on them for `inner` epochs between two updates. Everything an iteration draws is a function of (seed,
iteration), so that a checkpoint needs nothing but the images and their momentum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import DSA
from ..data.augment import DSADraw
from ..engines import Engine, Task, select
from ..errors import ConfigError
from ..experts import Curriculum
from ..matching.distributions import blocks_kept, match_distributions
from ..matching.gradients import channels_of, match_gradients
from ..models import FlatNetwork
from ..models.spec import NetworkSpec
from ..runtime import distributed
from ..runtime.device import cache_bytes
from ..runtime.rng import derive_seed, generator
from ..settings.config import Config
from ..training.trainer import shuffled_batches
from .back_off import Fault, halvings, movement
from .initialization import InitialSet, noise_images, shuffled_classes, with_copies
from .iterations import LATE, make_mask, read_later
from .state import State

Criterion = Callable[[Tensor, Sequence[Tensor], Tensor], tuple[Tensor, Tensor]]
"""(theta `[P]`, real images per class, synthetic `[classes, ipc, C, H, W]`) -> loss `[]` and gradient in the latter."""

FARTHEST = 10.0
"""How far an iteration of a run that backs off may take the images, relative to their size: sound ones begin with 2."""

LOOPS: dict[int, tuple[int, int]] = {1: (1, 1), 10: (10, 50), 20: (20, 25), 50: (50, 10)}
"""IPC -> image updates per network, and epochs between two of them (DC and DSA)."""


def loops_of(config: Config) -> tuple[int, int, str | None]:
    """Image updates per network, epochs of the network between two of them, and what the user should be told.

    Between the published numbers of images per class both are interpolated, beyond the largest they stay.

    Example:
        >>> loops_of(Config(method="dc", ipc=30, threshold=None, soft_labels=False, mask="none", pix_init="real"))[:2]
        (30, 20)
    """
    if config.method == "dm":
        return 1, 0, None
    known = sorted(LOOPS)
    below = max(ipc for ipc in known if ipc <= config.ipc)
    above = min((ipc for ipc in known if ipc >= config.ipc), default=below)
    part = (config.ipc - below) / (above - below) if above > below else 0.0
    outer, inner = (round(a + part * (b - a)) for a, b in zip(LOOPS[below], LOOPS[above], strict=True))
    note = None
    if config.ipc not in LOOPS and None in (config.outer_loop, config.inner_loop):
        published = ", ".join(str(ipc) for ipc in known)
        how = f"interpolated between IPC {below} and {above}" if above > below else f"those of IPC {below}"
        note = (
            f"loops: published numbers are for IPC {published}; for IPC {config.ipc} they are {how}: {outer} updates "
            f"per network and {inner} epochs between two (outer_loop, inner_loop)"
        )
    return config.outer_loop or outer, config.inner_loop or inner, note


def require_alone(config: Config) -> None:
    """Refuse to run in several processes, which would all do the same.

    Raises:
        ConfigError: there are several ranks.
    """
    ranks = distributed.group().size
    if ranks > 1:
        raise ConfigError(
            f"method {config.method} runs in one process, and there are {ranks} ranks; start it without torchrun, or "
            "divide the runs of pad-fast sweep between them"
        )


def make_criterion(config: Config, network: FlatNetwork, device: torch.device) -> tuple[Engine, Task, Criterion]:
    """The method's criterion on an engine that can serve it.

    Raises:
        InputError: a mask that leaves nothing, or that has no meaning for the method.
        BackendError: the backend asked for cannot serve this.
    """
    kept = cache_bytes(config.cache, device)
    task = Task(network, device, torch.float32, "exact", config.precision, kept)
    engine = select(config.backend, task)
    mask = make_mask(config)
    if config.method == "dm":
        blocks = blocks_kept(network, mask)
        return engine, task, lambda theta, real, made: match_distributions(engine, task, theta, real, made, blocks)
    channels = channels_of(network, mask)
    return engine, task, lambda theta, real, made: match_gradients(engine, task, theta, real, made, channels)


@dataclass(frozen=True, eq=False)
class RealPool:
    """Real images that batches are drawn from.

    Attributes:
        images: normalised training images `[n, C, H, W]`.
        shown: per class, the indices that pruning leaves, easy to hard where that is known.
        names: of the classes.
        curriculum: its epochs are stretched over the run: iteration i of n shows what an expert sees in epoch
            `floor(i * train_epochs / n)`.
    """

    images: Tensor
    shown: Sequence[Tensor]
    names: Sequence[str]
    curriculum: Curriculum


def initial_images(config: Config, real: RealPool) -> InitialSet:
    """The synthetic set before its first update, and hard labels as logits that nothing changes.

    Pruned images are not chosen.
    """
    labels = torch.arange(len(real.shown)).repeat_interleave(config.ipc)
    notes: list[str] = []
    if config.pix_init == "noise":
        chosen = noise_images(len(labels), real.images, config.seed)
    else:
        rows = [indices[: config.ipc] for indices in shuffled_classes(real.shown, config.seed)]
        chosen, notes = with_copies(
            rows, [config.ipc] * len(rows), real.images, real.names, dsa=config.dsa, seed=config.seed
        )
    return InitialSet(chosen, labels, torch.nn.functional.one_hot(labels, len(real.shown)).float(), tuple(notes))


@dataclass(frozen=True, eq=False)
class BatchPending:
    """An iteration that was begun: `outcome` holds its loss, whether all was well, and how far the images have gone.

    See :class:`Pending`.
    """

    iteration: int
    outcome: Tensor
    arrived: torch.cuda.Event | None


class BatchLoop:
    """Iterations of :func:`pad_fast.distillation.run` for DC, DSA and DM.

    Args:
        network: one that the parameters of all others are run on.
        spec: the networks, of that shape.
        real: the real images; they are moved to `device`.
    """

    def __init__(
        self, network: FlatNetwork, spec: NetworkSpec, real: RealPool, config: Config, device: torch.device
    ) -> None:
        self.spec, self.config, self.device, self.real = spec, config, device, real
        self.images = real.images.to(device)
        network.module.to(device).train()
        self.engine, self.task, self.criterion = make_criterion(config, network, device)
        self.dsa = DSA(config.dsa if config.match_dsa else "none", mode=config.dsa_mode, siamese=True)
        self.train_dsa = DSA(config.dsa if config.match_dsa else "none", mode=config.dsa_mode)
        self.outer, self.inner, _ = loops_of(config)
        self.late = LATE if device.type == "cuda" else 0
        # After an iteration that stops the run, those begun behind it must not change anything.
        self._stopped = torch.zeros((), dtype=torch.bool, device=device)

    def begin(self, state: State) -> BatchPending:
        """Start an iteration on `state`; on a GPU nothing here waits for a result."""
        iteration = state.iteration
        with self.engine.running():
            loss, images, momentum = self._iterate(state, iteration)
        sound = loss.isfinite() & images.isfinite().all()
        move = torch.zeros_like(loss, dtype=torch.float64)
        if self.config.back_off:
            move = movement(state.images, images)
            sound = sound & (move <= FARTHEST)
        accepted = sound & ~self._stopped
        self._stopped |= ~sound
        state.images.copy_(torch.where(accepted, images, state.images))
        state.momentum["images"].copy_(torch.where(accepted, momentum, state.momentum["images"]))
        state.iteration += 1
        return BatchPending(iteration, *read_later(torch.stack([loss.double(), sound.double(), move])))

    def settle(self, state: State, pending: BatchPending) -> dict[str, float]:
        """The row of an iteration: its loss is the mean over its updates.

        Raises:
            Fault: the loss or the images are not finite; `state` is as it was before the iteration.
        """
        if pending.arrived is not None:
            pending.arrived.synchronize()
        loss, sound, move = pending.outcome.tolist()
        row = {"iteration": pending.iteration, "loss": loss}
        if not sound:
            state.iteration = pending.iteration
            self._stopped.zero_()
            lr_img, lr_init = state.rate("lr_img", self.config), self.config.lr_init
            if math.isfinite(loss) and math.isfinite(move) and self.config.back_off:
                said = f"in iteration {pending.iteration} the images go {move:.3g} of their size, which is too far"
                raise Fault(said, row, {"lr_img": halvings(move, FARTHEST)})
            raise Fault(
                f"the matching loss is {loss:g} in iteration {pending.iteration}, and it or the images are no longer "
                f"finite. Lower lr_img ({lr_img:g})"
                + (f" or the networks' learning rate lr_init ({lr_init:g})" if self.inner else ""),
                row,
                # Nothing else is learned. Where the loss is no number, nobody knows how much too far they went.
                {"lr_img": halvings(move, FARTHEST) if math.isfinite(loss) else 1},
            )
        return row

    def _iterate(self, state: State, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss of the updates of one network, the images after them, and their momentum."""
        config = self.config
        lr_img = state.rate("lr_img", config)
        theta = self.spec.build(config.seed, "network", iteration).initial().to(self.device)
        images, momentum = state.images.clone(), state.momentum["images"].clone()
        labels = state.labels.to(self.device)
        losses = []
        for update in range(self.outer):
            if update:
                theta = self._train(theta, images, labels, iteration, update)
            loss, gradient = self._match(theta, images, iteration, update)
            momentum.mul_(config.momentum_img).add_(gradient)
            images.sub_(momentum, alpha=lr_img)
            losses.append(loss)
        return torch.stack(losses).mean(), images, momentum

    def _match(self, theta: Tensor, images: Tensor, iteration: int, update: int) -> tuple[Tensor, Tensor]:
        """The loss `[]` and its gradient `[N, C, H, W]` in the images."""
        real = [self.images[rows] for rows in self._rows(iteration, update)]
        classes = images.unflatten(0, (len(real), -1))
        draws = [self._draw(iteration, update, label) for label in range(len(real))]
        with torch.enable_grad():
            leaf = classes.detach().requires_grad_()
            # One draw for a class's real and synthetic images: siamese.
            made = torch.stack([self.dsa.apply(x, draw) for x, draw in zip(leaf, draws, strict=True)])
        seen = [self.dsa.apply(x, draw) for x, draw in zip(real, draws, strict=True)]
        loss, gradient = self.criterion(theta, seen, made.detach())
        return loss, torch.autograd.grad(made, leaf, gradient)[0].flatten(0, 1)

    def _draw(self, iteration: int, update: int, label: int) -> DSADraw:
        draws = generator(self.config.seed, "siamese dsa", iteration, update, label)
        return self.dsa.draw(1, self.images.shape[1:], generator=draws)

    def _rows(self, iteration: int, update: int) -> list[Tensor]:
        """Up to `batch_real` different images of every class."""
        config = self.config
        epoch = iteration * config.train_epochs // config.iterations
        draws = generator(config.seed, "real batches", iteration, update)
        rows = []
        for indices in self.real.shown:
            stage = indices[slice(*self.real.curriculum.span(epoch, len(indices)))]
            rows.append(stage[torch.randperm(len(stage), generator=draws)[: config.batch_real]].to(self.device))
        return rows

    def _train(self, theta: Tensor, images: Tensor, labels: Tensor, iteration: int, update: int) -> Tensor:
        """The network after `inner` epochs of plain SGD on the synthetic set."""
        config = self.config
        draws = generator(config.seed, "network batches", iteration, update)
        augment = self.train_dsa.seeded(derive_seed(config.seed, "network dsa", iteration, update))
        everything = torch.arange(len(images), device=self.device)
        step = 0
        for _ in range(self.inner):
            for batch in shuffled_batches(everything, config.batch_syn or len(images), draws):
                x = augment(images[batch], step)
                _, gradient = self.engine.loss_and_grad(self.task, theta, x, labels[batch])
                theta = torch.add(theta, gradient, alpha=-config.lr_init)
                step += 1
        return theta
