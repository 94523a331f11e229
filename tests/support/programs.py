"""Stand-ins for the distillation programs of five families, written from their descriptions.

Each draws from the same generators in the same order as its original (numpy: expert and start epoch; torch's default
generator: permutations and augmentation by turns), updates with the same optimizers, and writes the same files. The
inner loop is exchangeable: `before` is the program's own, `after` the call that replaces it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import pad_fast

STRATEGY = "color_crop_cutout_flip_scale_rotate"
PARAM = SimpleNamespace(
    aug_mode="S", prob_flip=0.5, ratio_scale=1.2, ratio_rotate=15.0, ratio_crop_pad=0.125, ratio_cutout=0.5,
    brightness=1.0, saturation=2.0, contrast=0.5,
)  # fmt: skip

Augment = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Program:
    """What sets a family apart.

    Attributes:
        soft: labels are logits that are learned, and the program saves the learning rate; else they are classes.
        loss_ratio: share of the parameters with the smallest error that the loss leaves out.
        threshold: iterations with a larger loss update nothing.
        ema_decay: of averaged images, which FTD's program keeps beside them.
        approximation: what TESLA's gradient is multiplied with; None for the gradient of the unrolled loop.
    """

    soft: bool
    loss_ratio: float = 0.0
    threshold: float | None = None
    ema_decay: float | None = None
    approximation: float | None = None


PROGRAMS = {
    "MTT": Program(soft=False),
    "FTD": Program(soft=False, ema_decay=0.9),
    "DATM": Program(soft=True, threshold=2.0),
    "PAD": Program(soft=True, loss_ratio=0.35, threshold=2.0),
    # Its "2 * grad(...)" repeats the tuple that grad returns, whose first entry is used.
    "TESLA": Program(soft=False, approximation=0.5),
    "DATM, TESLA's form": Program(soft=True, threshold=2.0, approximation=1.0),
}


def diff_augment(x: Tensor, strategy: str = "", seed: int = -1, param: Any = None) -> Tensor:
    """One operation for the batch and numbers for every image, all from torch's default generator.

    With a seed, each draw is of a generator that was set just before, and all images share the first one's numbers.
    What `param.latestseed` was before does not matter.
    """
    param.latestseed, together = seed, seed != -1

    def seeded() -> None:
        if param.latestseed != -1:
            torch.random.manual_seed(param.latestseed)
            param.latestseed += 1

    def each(values: Tensor) -> Tensor:
        return values[:1].expand_as(values) if together else values

    def uniform(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
        seeded()
        return each(torch.rand(len(x), *shape, dtype=dtype))

    def whole(low: int, high: int) -> Tensor:
        seeded()
        return each(torch.randint(low, high, size=[len(x), 1, 1]))

    seeded()
    names = strategy.split("_")
    name = names[int(torch.randint(0, len(names), size=(1,)))]
    height, width = x.shape[2:]
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    if name == "color":
        x = x + (uniform(1, 1, 1, dtype=x.dtype) - 0.5) * param.brightness
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * (uniform(1, 1, 1, dtype=x.dtype) * param.saturation) + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * (uniform(1, 1, 1, dtype=x.dtype) + param.contrast) + mean
    if name == "crop":
        most = [int(side * param.ratio_crop_pad + 0.5) for side in (height, width)]
        down, right = (whole(-m, m + 1) for m in most)
        from_rows, from_columns = (rows + down).expand(len(x), height, width), (columns + right).expand(-1, height, -1)
        inside = (from_rows >= 0) & (from_rows < height) & (from_columns >= 0) & (from_columns < width)
        image = torch.arange(len(x))[:, None, None]
        moved = x.permute(0, 2, 3, 1)[image, from_rows.clamp(0, height - 1), from_columns.clamp(0, width - 1)]
        return (moved * inside[..., None]).permute(0, 3, 1, 2).contiguous()
    if name == "cutout":
        sides = [int(side * param.ratio_cutout + 0.5) for side in (height, width)]
        middles = [
            whole(0, whole_side + (1 - side % 2)) for whole_side, side in zip((height, width), sides, strict=True)
        ]
        hole = torch.ones(len(x), height, width, dtype=torch.bool)
        for at, middle, side in zip((rows, columns), middles, sides, strict=True):
            hole &= (at >= middle - side // 2) & (at < middle - side // 2 + side)
        return x * ~hole[:, None]
    if name == "flip":
        return torch.where(uniform(1, 1, 1) < param.prob_flip, x.flip(3), x)
    if name == "scale":
        zoom = param.ratio_scale
        across, along = (uniform() * (zoom - 1 / zoom) + 1 / zoom for _ in range(2))
        zero = torch.zeros_like(across)
        matrix = [[across, zero, zero], [zero, along, zero]]
    else:
        angle = ((uniform() - 0.5) * 2 * param.ratio_rotate / 180 * np.pi).to(x.dtype)
        zero = torch.zeros_like(angle)
        matrix = [[angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero]]
    matrices = torch.stack([torch.stack(row, -1) for row in matrix], -2).to(x.dtype)
    grid = functional.affine_grid(matrices, list(x.shape), align_corners=True)
    return functional.grid_sample(x, grid, align_corners=True)


@dataclass
class Experiment:
    """One run of a program.

    Attributes:
        student: makes the wrapper, anew in every iteration.
        augment: of the replaced loop; the program's own calls :func:`diff_augment`.
        losses, gradients: of every iteration; gradients of images, labels (where they are learned) and learning rate.
    """

    program: Program
    student: Callable[[], nn.Module]
    buffers: Path
    classes: int
    shape: tuple[int, int, int]
    augment: Augment = lambda x, step: diff_augment(x, STRATEGY, param=PARAM)
    syn_steps: int = 6
    batch_syn: int = 5
    losses: list[float] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        draws = torch.Generator().manual_seed(10)
        count = 3 * self.classes
        self.images = torch.randn(count, *self.shape, generator=draws, dtype=torch.float64).requires_grad_()
        self.labels = torch.arange(self.classes).repeat_interleave(3)
        if self.program.soft:
            self.labels = torch.randn(count, self.classes, generator=draws, dtype=torch.float64).requires_grad_()
        self.lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        self.ema = self.images.detach().clone()
        self.lr_img = 300.0

    @property
    def learned(self) -> list[Tensor]:
        return [self.images, *([self.labels] if self.program.soft else []), self.lr]

    def run(self, inner: Callable[[Experiment, nn.Module, Tensor, Tensor], Tensor], iterations: int = 5) -> Experiment:
        """The outer loop. `inner` returns the loss, with the gradients in place."""
        torch.manual_seed(4)
        np.random.seed(5)
        optimizers = [torch.optim.SGD([self.images], lr=self.lr_img, momentum=0.5)]
        if self.program.soft:
            optimizers.append(torch.optim.SGD([self.labels], lr=20.0, momentum=0.9))
        optimizers.append(torch.optim.SGD([self.lr], lr=1e-3, momentum=0.5))
        buffer = torch.load(self.buffers / "replay_buffer_0.pt")
        for _ in range(iterations):
            student = self.student()
            student.train()
            expert = buffer[np.random.randint(0, len(buffer))]
            start = np.random.randint(0, 3)
            ends = [torch.cat([p.double().reshape(-1) for p in expert[epoch]]) for epoch in (start, start + 2)]
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = inner(self, student, *ends)
            self.losses.append(float(loss.detach()))
            self.gradients.append([tensor.grad.clone() for tensor in self.learned])
            if self.program.threshold is None or self.losses[-1] <= self.program.threshold:
                for optimizer in optimizers:
                    optimizer.step()
            if self.program.ema_decay is not None:
                decay = self.program.ema_decay
                self.ema = decay * self.ema + (1 - decay) * self.images.detach()
        return self

    def write(self, folder: Path) -> Path:
        """The files of the best set, as the program leaves them."""
        folder.mkdir(parents=True)
        torch.save(self.images.detach().float(), folder / "images_best.pt")
        torch.save(self.labels.detach().cpu(), folder / "labels_best.pt")
        if self.program.soft:
            torch.save(self.lr.detach().cpu(), folder / "lr_best.pt")
        return folder


def before(experiment: Experiment, student: nn.Module, start: Tensor, target: Tensor) -> Tensor:
    """The program's own inner loop."""
    two_passes = experiment.program.approximation is not None
    return (_two_passes if two_passes else _unrolled)(experiment, student, start, target)


def _batch(experiment: Experiment, chunks: list[Tensor]) -> Tensor:
    if not chunks:
        chunks += torch.split(torch.randperm(len(experiment.images)), experiment.batch_syn)
    return chunks.pop()


def _cross_entropy(experiment: Experiment, logits: Tensor, labels: Tensor) -> Tensor:
    if experiment.program.soft:
        return -(logits.log_softmax(1) * labels.softmax(1)).sum() / len(logits)
    return functional.cross_entropy(logits, labels)


def _unrolled(experiment: Experiment, student: nn.Module, start: Tensor, target: Tensor) -> Tensor:
    """Through all steps by autograd; PAD's mask is behind it."""
    theta, chunks = start.clone().requires_grad_(), []
    for _ in range(experiment.syn_steps):
        indices = _batch(experiment, chunks)
        x = diff_augment(experiment.images[indices], STRATEGY, param=PARAM)
        loss = _cross_entropy(experiment, student(x, flat_param=theta), experiment.labels[indices])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - experiment.lr * gradient
    errors, distances = (theta - target).square(), (start - target).square()
    kept = errors.sort().indices[int(experiment.program.loss_ratio * len(errors)) :]
    loss = errors[kept].sum() / distances[kept].sum()
    loss.backward()
    return loss


def _two_passes(experiment: Experiment, student: nn.Module, start: Tensor, target: Tensor) -> Tensor:
    """TESLA: the steps without a graph, then the gradient of every batch by itself."""
    lr, images, labels, program = (
        float(experiment.lr.detach()),
        experiment.images,
        experiment.labels,
        experiment.program,
    )
    theta, total, chunks, seen = start.clone(), torch.zeros_like(start), [], []
    for _ in range(experiment.syn_steps):
        indices = _batch(experiment, chunks)
        x, y = images[indices], labels[indices]
        augmented = diff_augment(x, STRATEGY, param=PARAM)
        leaf = theta.clone().requires_grad_()
        loss = _cross_entropy(experiment, student(augmented, flat_param=leaf), y)
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        seen.append((indices, x, y, augmented, leaf))
        theta, total = theta - lr * gradient, total + gradient
    distance = (start - target).square().sum()
    sums = [torch.zeros_like(images), *([torch.zeros_like(labels)] if program.soft else [])]
    for indices, x, y, augmented, leaf in seen:
        loss = _cross_entropy(experiment, student(augmented, flat_param=leaf), y)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        term = (lr * (target - start) + lr**2 * total) @ gradient / distance
        pulled = torch.autograd.grad(term, [x, *([y] if program.soft else [])], retain_graph=True)
        for all_images, piece in zip(sums, pulled, strict=True):
            all_images[indices] += 2 * program.approximation * piece
    loss = (start - experiment.lr * total - target).square().sum() / distance
    (of_lr,) = torch.autograd.grad(loss, experiment.lr)
    for tensor, gradient in zip(experiment.learned, [*sums, of_lr], strict=True):
        tensor.grad = gradient
    return loss


def after(experiment: Experiment, student: nn.Module, start: Tensor, target: Tensor) -> Tensor:
    """What docs/drop-in.md puts in its place."""
    program = experiment.program
    loss = pad_fast.trajectory_matching_loss(
        student,
        start,
        target,
        experiment.images,
        experiment.labels,
        experiment.lr,
        batches=pad_fast.reference_batches(len(experiment.images), experiment.batch_syn, experiment.syn_steps),
        augment=experiment.augment,
        mask=pad_fast.ParameterMask.loss(program.loss_ratio) if program.loss_ratio else None,
        gradient="exact" if program.approximation is None else "tesla",
    )
    loss.backward()
    return loss


def write_buffer(folder: Path, module: nn.Module) -> Path:
    """A replay buffer of two experts, random walks of five snapshots, as float32 tensors in lists."""
    draws = torch.Generator().manual_seed(1)
    shapes = [parameter.shape for parameter in module.parameters()]
    trajectories = []
    for _ in range(2):
        snapshot = [parameter.detach().float() for parameter in module.parameters()]
        trajectories.append([snapshot])
        for _ in range(4):
            moves = [0.05 * torch.randn(shape, generator=draws) for shape in shapes]
            snapshot = [tensor + move for tensor, move in zip(snapshot, moves, strict=True)]
            trajectories[-1].append(copy.deepcopy(snapshot))
    folder.mkdir(parents=True)
    torch.save(trajectories, folder / "replay_buffer_0.pt")
    return folder
