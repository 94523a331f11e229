"""What the stages of a published setting cost on this machine, and how many experts and iterations fit into some hours.

Everything is timed in one process, by turns: a step of a score network, a GSAM step of an expert, an iteration of ours
and of the plain loop. Pixels are noise, which takes as long as pictures do. Iterations are timed on the first few of
their student steps, as many as the plain loop has memory for, and both sides scale with the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.rivals import plain_unroll
from benchmarks.unroll import TOLERANCE
from pad_fast import DSA, ImageDataset, trajectory_matching_loss
from pad_fast.distillation.iterations import make_mask
from pad_fast.distillation.schedule import draw_iteration
from pad_fast.experts.curriculum import curriculum_of
from pad_fast.pipeline.cached import spec_of
from pad_fast.runtime.rng import derive_seed, generator
from pad_fast.settings.config import Config
from pad_fast.training.optimizers import SGD, Optimizer, make_optimizer
from pad_fast.training.trainer import Trainer

# Images times steps of which the plain loop keeps every activation: 3 GB with the ConvNet of CIFAR-10.
_PLAIN_IMAGES = 800
_STEPS = 2  # of a network, in one call that is timed
SHARE = 0.5
"""Of the time behind the scores, for experts; what iterations do not need is theirs as well."""


@dataclass(frozen=True)
class Costs:
    """Medians, in seconds, of one thing each.

    Attributes:
        score_step, expert_step: a batch of a score network, of an expert.
        iteration, plain_iteration: all T student steps, forward and reverse; by us, and by the plain loop.
        steps: of the T student steps, those that were timed.
        error: of the plain loop's image gradient, beside ours.
    """

    score_step: float
    expert_step: float
    iteration: float
    plain_iteration: float
    steps: int
    error: float

    @property
    def times_faster(self) -> float:
        """Iterations of ours in the time of a plain one."""
        return self.plain_iteration / self.iteration


@dataclass(frozen=True)
class Plan:
    """What fits.

    Attributes:
        experts, iterations: of this sitting; `published_experts` and `published_iterations` is all there would be.
        score_seconds, expert_seconds: of all scores, and of one expert.
    """

    experts: int
    iterations: int
    published_experts: int
    published_iterations: int
    score_seconds: float
    expert_seconds: float


class Networks:
    """Steps of a score network and of an expert on noise."""

    def __init__(self, data: ImageDataset, config: Config, device: torch.device) -> None:
        self.data, self.config, self.device = data, config, device
        self.dsa = DSA(config.dsa, mode=config.dsa_mode)

    def score(self) -> None:
        """A few batches of a score network."""
        config = self.config
        self._steps(config.score_batch, SGD(config.score_lr, momentum=0.0, weight_decay=0.0), None)

    def expert(self) -> None:
        """A few batches of an expert."""
        config, draws = self.config, generator(0, "reproduce dsa")
        optimizer = make_optimizer(
            config.expert_optimizer, config.lr_expert, rho=config.gsam_rho, alpha=config.gsam_alpha
        )
        self._steps(config.batch_train, optimizer, lambda images: self.dsa(images, generator=draws))

    def _steps(self, batch: int, optimizer: Optimizer, augment: Callable[[Tensor], Tensor] | None) -> None:
        batch = min(batch, len(self.data.train_images))
        network = spec_of(self.config, self.data).build(0, "costs")
        trainer = Trainer(network, device=self.device, backend=self.config.backend)
        images = torch.randn(batch, *self.data.train_images.shape[1:], generator=generator(0, "costs"))
        labels = torch.arange(batch) % self.data.classes
        batches = [torch.arange(batch, device=self.device)] * _STEPS
        trainer.epoch(images.to(self.device), labels.to(self.device), batches, optimizer, augment)
        finish(self.device)


class Iteration:
    """The first student steps of an iteration on noise, and their gradient both ways."""

    def __init__(self, data: ImageDataset, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.network = spec_of(config, data).build(config.seed, "student")
        self.network.module.to(device).train()
        count = config.ipc * data.classes
        draws = generator(0, "costs")
        batch = min(config.batch_syn or count, count)
        self.steps = min(config.syn_steps, max(2, _PLAIN_IMAGES // batch))
        drawn = draw_iteration(config, 0, 1, count).batches[: self.steps]
        self.batches = [indices.to(device) for indices in drawn]
        start = self.network.initial()
        target = start + 0.01 * torch.randn(len(start), generator=draws)
        images = torch.randn(count, *data.train_images.shape[1:], generator=draws)
        logits = torch.randn(count, data.classes, generator=draws)
        self.start, self.target, self.images, self.logits = (t.to(device) for t in (start, target, images, logits))
        self.lr = torch.tensor(config.lr_init, device=device)
        self.augment = DSA(config.dsa, mode=config.dsa_mode).seeded(derive_seed(config.seed, "costs"))

    def ours(self, steps: int | None = None) -> Tensor:
        """The gradient in the images, as the run computes it."""
        config = self.config
        leaves = [each.clone().requires_grad_() for each in (self.images, self.logits, self.lr)]
        loss = trajectory_matching_loss(
            self.network,
            self.start,
            self.target,
            *leaves,
            batches=self.batches[:steps],
            mask=make_mask(config),
            augment=self.augment,
            gradient=config.gradient,
            backend=config.backend,
            precision=config.precision,
            cache=config.cache,
        )
        gradient = torch.autograd.grad(loss, leaves)[0]
        finish(self.device)
        return gradient

    def plain(self, steps: int | None = None) -> Tensor:
        """The same from the plain loop."""
        _, (gradient, *_) = plain_unroll(
            self.network.module,
            self.start,
            self.target,
            self.images,
            self.logits,
            self.lr,
            self.batches[:steps],
            mask=make_mask(self.config),
            augment=self.augment,
        )
        finish(self.device)
        return gradient


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(data: ImageDataset, config: Config, device: torch.device, *, rounds: int = 3) -> Costs:
    """Time everything, after the plain loop's gradient has been compared with ours.

    Raises:
        SystemExit: they differ.
    """
    networks, iteration = Networks(data, config, device), Iteration(data, config, device)
    # Over many steps any two float32 gradients part.
    error = harness.relative_error(iteration.ours(2), iteration.plain(2))
    harness.require(error, TOLERANCE, "the gradient of an iteration")
    runs: dict[str, Callable[[], object]] = {"score": networks.score, "expert": networks.expert}
    runs |= {"ours": iteration.ours, "plain": iteration.plain}
    taken = {
        name: harness.summary(values)["median"] for name, values in harness.take_turns(runs, rounds=rounds).items()
    }
    whole = config.syn_steps / iteration.steps
    return Costs(
        score_step=taken["score"] / _STEPS,
        expert_step=taken["expert"] / _STEPS,
        iteration=taken["ours"] * whole,
        plain_iteration=taken["plain"] * whole,
        steps=iteration.steps,
        error=error,
    )


def score_seconds(costs: Costs, config: Config, class_sizes: Sequence[int]) -> float:
    """All score networks, and the pass that scores with them, which a step's time bounds."""
    batches = -(-sum(class_sizes) // config.score_batch)
    return config.score_networks * (config.score_epochs + 1) * batches * costs.score_step


def expert_seconds(costs: Costs, config: Config, class_sizes: Sequence[int]) -> float:
    """One expert: what its curriculum shows in every epoch."""
    curriculum, steps = curriculum_of(config), 0
    for epoch in range(config.train_epochs):
        spans = [curriculum.span(epoch, count) for count in class_sizes]
        steps += -(-sum(stop - start for start, stop in spans) // config.batch_train)
    return steps * costs.expert_step


def evaluation_seconds(
    costs: Costs, config: Config, class_sizes: Sequence[int], *, points: int, networks: int, full_networks: int
) -> float:
    """Roughly, what validation and the final table take: steps of score networks, whose batches are of another size.

    Args:
        points: iterates that are validated.
        networks, full_networks: fresh ones for a row of the table, and on all real images.
    """
    image = costs.score_step / min(config.score_batch, sum(class_sizes))
    small, real = config.eval_epochs * config.ipc * len(class_sizes), config.eval_full_epochs * sum(class_sizes)
    # Two sets, random images and centres of k-means, each by two recipes.
    count = points * config.validation_networks + 2 * 4 * networks
    return image * (small * count + real * full_networks)


def fit(
    costs: Costs,
    config: Config,
    class_sizes: Sequence[int],
    hours: float,
    *,
    scored: bool = False,
    least_experts: int = 5,
    experts: int | None = None,
    iterations: int | None = None,
    done: int = 0,
    seen: int = 0,
) -> Plan:
    """How many experts and iterations fit; `config` has the published numbers of both.

    Args:
        scored: the scores are there already.
        least_experts: whatever they cost.
        experts, iterations: of this sitting, where they are given.
        done, seen: iterations and experts of earlier sittings.

    Raises:
        SystemExit: not a single iteration fits, or none is left to do.
    """
    first = 0.0 if scored else score_seconds(costs, config, class_sizes)
    each = expert_seconds(costs, config, class_sizes)
    left = 3600 * hours - first
    count, most_experts = experts, max(config.num_experts - seen, min(least_experts, config.num_experts))
    if count is None:
        count = min(most_experts, max(least_experts, int(SHARE * left / each)))
    most = config.iterations - done
    loops = iterations if iterations is not None else min(most, int((left - count * each) / costs.iteration))
    if iterations is None and most < 1:
        raise SystemExit(f"all {config.iterations} iterations are done; --iterations asks for more")
    if loops < 1:
        raise SystemExit(
            f"{count} experts take {count * each / 3600:.2f} of {hours:g} hours and scores {first / 3600:.2f}: no time "
            "is left for an iteration; raise --hours, lower --min-experts, or --set fewer train_epochs, score_networks"
        )
    if experts is None:
        spare = left - count * each - loops * costs.iteration
        count = min(most_experts, count + max(0, int(spare / each)))
    return Plan(count, loops, config.num_experts, config.iterations, first, each)


def described(costs: Costs) -> dict[str, Any]:
    """For the JSON."""
    return {**asdict(costs), "times_faster": costs.times_faster}


def read(stored: Mapping[str, Any]) -> Costs:
    """The costs that :func:`described` gave."""
    return Costs(**{name: value for name, value in stored.items() if name != "times_faster"})


def table(
    costs: Costs, plan: Plan, config: Config, *, done: int, evaluation: float
) -> tuple[list[str], list[list[str]]]:
    """What will be done, as header and rows; `evaluation` is what :func:`evaluation_seconds` says."""
    hours = [plan.score_seconds, plan.experts * plan.expert_seconds, plan.iterations * costs.iteration]
    cells = [f"{seconds / 3600:.3g}" for seconds in (*hours, sum(hours), evaluation)]
    counted = f"{done:,} to {done + plan.iterations:,}" if done else f"{plan.iterations:,}"
    plain = int(plan.iterations / costs.times_faster)
    networks = f"{config.score_networks} networks" if plan.score_seconds else "scored by an earlier sitting"
    experts = f"{plan.experts} of {plan.published_experts} experts"
    return ["", "measured, s", "how many", "hours"], [
        ["a batch of a score network", f"{costs.score_step:.3g}", networks, cells[0]],
        ["a batch of an expert", f"{costs.expert_step:.3g}", experts, cells[1]],
        ["an iteration", f"{costs.iteration:.3g}", f"{counted} of {plan.published_iterations:,} iterations", cells[2]],
        ["an iteration of the plain loop", f"{costs.plain_iteration:.3g}", f"{plain:,} in the same hours", cells[2]],
        ["all of these", "", "", cells[3]],
        ["evaluation, on top of them", "", "", f"about {cells[4]}"],
    ]
