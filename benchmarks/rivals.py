"""Rivals that pad_fast is measured against: straightforward torch, the way trajectory-matching scripts are written.

The plain loop calls the network with its parameters cut out of one flat vector, records every step with
`create_graph=True`, and differentiates the normalised distance. Tuned, it also runs in channels_last, in a process
whose glibc keeps freed memory (`keep_freed_memory`). Nothing in it is slower than it need be; tests compare its
gradients with the oracle.
"""

from __future__ import annotations

import copy
import ctypes
import importlib
import importlib.util
import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pad_fast import ParameterMask
from pad_fast.models import FlatNetwork

Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Parameters, a batch's images and label logits, and the learning rate: to the next parameters."""

Select = Callable[[Tensor, Tensor], Tensor]
"""Rows of the first by the indices of the second."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def laid_out(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The module with its parameters in that layout."""
    return module.to(memory_format=layout)  # type: ignore[call-overload] # torch's overloads lack it


def keep_freed_memory() -> None:
    """Raise glibc's mmap and trim thresholds for this process: otherwise large freed blocks go back to the kernel."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def plain_unroll(
    module: nn.Module,
    theta_start: Tensor,
    theta_target: Tensor,
    images: Tensor,
    label_logits: Tensor,
    lr: Tensor,
    batches: Sequence[Tensor],
    *,
    tuned: bool = False,
    mask: ParameterMask | None = None,
    augment: Callable[[Tensor, int], Tensor] | None = None,
    step: Step | None = None,
    select: Select = operator.getitem,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss, and its gradient in images, label logits and lr, by autograd through all steps.

    `mask` may be `none`, `depth` (slices leave the first entries out) or `loss` (the smallest distances are dropped).
    `step` takes the place of the usual one; :func:`autograd_step` and :func:`compiled_step` make one. `select` takes a
    batch out of all images; by :func:`rows` it is cheaper to pull back than by indexing, as scripts do it.
    """
    step = step or autograd_step(module, tuned=tuned)
    images = images.detach().requires_grad_()
    label_logits = label_logits.detach().requires_grad_()
    lr = lr.detach().requires_grad_()
    theta = theta_start.detach().requires_grad_()
    for number, batch in enumerate(batches):
        inputs = select(images, batch) if augment is None else augment(select(images, batch), number)
        theta = step(theta, inputs, select(label_logits, batch), lr)
    return _pulled_back(theta, theta_start, theta_target, mask, (images, label_logits, lr))


def _pulled_back(
    theta: Tensor, theta_start: Tensor, theta_target: Tensor, mask: ParameterMask | None, learned: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The matching loss of a student that ended at `theta`, and its gradient in what was `learned`."""
    left, reference = (theta - theta_target).square(), (theta_start - theta_target).square()
    if mask is not None and mask.kind != "none":
        dropped = int(mask.amount * len(theta))
        kept = slice(dropped, None) if mask.kind == "depth" else left.detach().argsort()[dropped:]
        left, reference = left[kept], reference[kept]
    matching = left.sum() / reference.sum()
    return matching.detach(), torch.autograd.grad(matching, learned)


Differentiable = tuple[nn.Module, Callable[[Tensor], object]]
"""A student, and what takes one step of it along the gradient of a loss."""


@contextmanager
def _through_torchopt(module: nn.Module, lr: Tensor) -> Iterator[Differentiable]:
    optimizer = importlib.import_module("torchopt").MetaSGD(module, lr=lr)
    yield module, optimizer.step


@contextmanager
def _through_higher(module: nn.Module, lr: Tensor) -> Iterator[Differentiable]:
    sgd = torch.optim.SGD(module.parameters(), lr=1.0)  # its rate is overridden by one with a gradient
    with importlib.import_module("higher").innerloop_ctx(module, sgd, override={"lr": [lr]}) as (student, optimizer):
        yield student, optimizer.step


LIBRARIES = {"torchopt": _through_torchopt, "higher": _through_higher}
"""Libraries that differentiate through optimizers, by the name they are imported under."""


def installed(rival: str) -> bool:
    """Whether a rival can take part: all can but a library that is not here."""
    return rival not in LIBRARIES or importlib.util.find_spec(rival) is not None


def library_unroll(
    library: str,
    module: nn.Module,
    theta_start: Tensor,
    theta_target: Tensor,
    images: Tensor,
    label_logits: Tensor,
    lr: Tensor,
    batches: Sequence[Tensor],
    *,
    mask: ParameterMask | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What :func:`plain_unroll` returns, by one of :data:`LIBRARIES` as its documentation says how it is used."""
    learned = images, label_logits, lr = tuple(each.detach().requires_grad_() for each in (images, label_logits, lr))
    own = FlatNetwork(copy.deepcopy(module)).load(theta_start)
    with LIBRARIES[library](own, lr) as (student, step):
        for batch in batches:
            step(functional.cross_entropy(student(images[batch]), label_logits[batch].softmax(-1)))
        theta = torch.cat([parameter.reshape(-1) for parameter in student.parameters()])
        return _pulled_back(theta, theta_start, theta_target, mask, learned)


def rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """A :data:`Select` whose gradient is added up without sorting the indices."""
    return tensor.index_select(0, indices)


def _student_loss(
    module: nn.Module, *, tuned: bool = False, bf16: bool = False
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Cross entropy of the network whose parameters are cut out of one flat vector.

    Args:
        tuned: channels_last.
        bf16: the network under torch.autocast.
    """
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]

    def loss(theta: Tensor, inputs: Tensor, label_logits: Tensor) -> Tensor:
        parameters = {n: piece.view(s) for n, piece, s in zip(names, theta.split(sizes), shapes, strict=True)}
        if tuned:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            parameters = {
                n: p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p for n, p in parameters.items()
            }
        with torch.autocast(theta.device.type, torch.bfloat16) if bf16 else nullcontext():
            logits = torch.func.functional_call(module, parameters, (inputs,))
        return functional.cross_entropy(logits.to(theta.dtype), label_logits.softmax(-1))

    return loss


def autograd_step(module: nn.Module, *, tuned: bool = False, bf16: bool = False) -> Step:
    """A student step that autograd can go through again; see :func:`_student_loss`."""
    loss = _student_loss(module, tuned=tuned, bf16=bf16)

    def step(theta: Tensor, inputs: Tensor, label_logits: Tensor, lr: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss(theta, inputs, label_logits), theta, create_graph=True)
        return theta - lr * gradient

    return step


def compiled_step(module: nn.Module, **options: Any) -> Step:
    """A student step for :func:`plain_unroll` out of `torch.compile`, which `options` are for.

    Compiled code is differentiated once at most, so the gradient inside the step is taken by `torch.func.grad`, which
    is compiled with it, and autograd goes through compiled steps from outside. The compiler chooses memory formats.
    """
    loss = _student_loss(module)

    def step(theta: Tensor, inputs: Tensor, label_logits: Tensor, lr: Tensor) -> Tensor:
        stepped: Tensor = theta - lr * torch.func.grad(loss)(theta, inputs, label_logits)
        return stepped

    compiled: Step = torch.compile(step, **options)
    return compiled


TrainingStep = Callable[[Tensor, Tensor], None]
"""A batch's images and labels: changes the weights of a module."""


def gsam_step(module: nn.Module, *, lr: float, rho: float, alpha: float) -> TrainingStep:
    """Adaptive GSAM on a module's own parameters, parameter by parameter."""
    parameters = list(module.parameters())

    def gradients(inputs: Tensor, targets: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(functional.cross_entropy(module(inputs), targets), parameters))

    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()

    def step(inputs: Tensor, targets: Tensor) -> None:
        g1 = gradients(inputs, targets)
        with torch.no_grad():
            scaled = [p.abs() * g for p, g in zip(parameters, g1, strict=True)]
            scale = rho / (dot(scaled, scaled).sqrt() + 1e-12)
            saved = [p.clone() for p in parameters]
            for p, g in zip(parameters, g1, strict=True):
                p.add_(scale * p.square() * g)
        g2 = gradients(inputs, targets)
        with torch.no_grad():
            norm1, norm2 = dot(g1, g1).sqrt(), dot(g2, g2).sqrt()
            cosine = dot(g1, g2) / (norm1 * norm2 + 1e-12)
            for p, old, a, b in zip(parameters, saved, g1, g2, strict=True):
                p.copy_(old - lr * (b - alpha * (a - cosine * norm1 * b / (norm2 + 1e-12))))

    return step


def sgd_step(module: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingStep:
    """A torch optimiser on soft targets (probabilities)."""

    def step(inputs: Tensor, targets: Tensor) -> None:
        loss = functional.cross_entropy(module(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plain_epoch(
    step: TrainingStep,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    augment: Callable[[Tensor], Tensor],
) -> None:
    """One epoch of such steps."""
    for batch in batches:
        step(augment(images[batch]), labels[batch])


def plain_gsam_epoch(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    augment: Callable[[Tensor], Tensor],
    *,
    lr: float,
    rho: float,
    alpha: float,
) -> None:
    """One epoch of :func:`gsam_step`."""
    plain_epoch(gsam_step(module, lr=lr, rho=rho, alpha=alpha), images, labels, batches, augment)


def plain_sgd_epoch(
    module: nn.Module,
    images: Tensor,
    targets: Tensor,
    batches: Sequence[Tensor],
    augment: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """One epoch of :func:`sgd_step`."""
    plain_epoch(sgd_step(module, optimizer), images, targets, batches, augment)


def plain_dsa(images: Tensor, operation: str, values: Tensor) -> Tensor:
    """One DSA operation as its formula is written; `values` `[N, k]`, or `[1, k]` for one draw shared by the batch.

    Columns: color brightness, saturation, contrast; crop shift down, right; cutout centre row, column; flip 0 mirrors;
    scale factors of the width and the height coordinate; rotate radians.
    """
    count, _, height, width = images.shape
    values = values.expand(count, -1)
    each = values[:, :, None, None, None]  # [N, k, 1, 1, 1]
    if operation == "color":
        bright = images + each[:, 0]
        gray = bright.mean(1, keepdim=True)
        saturated = (bright - gray) * each[:, 1] + gray
        mean = saturated.mean((1, 2, 3), keepdim=True)
        return (saturated - mean) * each[:, 2] + mean
    if operation == "flip":
        return torch.where(each[:, 0] == 0, images.flip(3), images)
    if operation in ("scale", "rotate"):
        matrix = images.new_zeros(count, 2, 3)
        if operation == "scale":
            matrix[:, 0, 0], matrix[:, 1, 1] = values[:, 0], values[:, 1]
        else:
            cosine, sine = values[:, 0].cos(), values[:, 0].sin()
            matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cosine, -sine, sine, cosine
        grid = functional.affine_grid(matrix, list(images.shape), align_corners=True)
        return functional.grid_sample(images, grid, align_corners=True)
    image = torch.arange(count)[:, None, None]
    first, second = (column.long()[:, None] for column in values.unbind(1))
    rows, columns = torch.arange(height) + 0 * first, torch.arange(width) + 0 * second  # [N, H], [N, W]
    if operation == "crop":
        most = int(values.abs().max())
        padded = functional.pad(images, (most,) * 4).permute(0, 2, 3, 1)  # [N, H + 2 most, W + 2 most, C]
        moved = padded[image, (rows + first + most)[:, :, None], (columns + second + most)[:, None, :]]
        return moved.permute(0, 3, 1, 2)
    sides = [int(side * 0.5 + 0.5) for side in (height, width)]
    keep = torch.ones(count, height, width)
    hole_rows = torch.arange(sides[0]) + first - sides[0] // 2  # [N, side]
    hole_columns = torch.arange(sides[1]) + second - sides[1] // 2
    keep[image, hole_rows.clamp(0, height - 1)[:, :, None], hole_columns.clamp(0, width - 1)[:, None, :]] = 0
    return images * keep[:, None]


class PlainDSA:
    """Differentiable Siamese augmentation as scripts write it (arXiv 2102.08259): numbers of its own for every image.

    One operation per call, drawn from `operations`; all images of the batch go through it at once, as tensors. With
    `siamese` they share one draw.
    """

    def __init__(self, operations: Sequence[str], generator: torch.Generator, *, siamese: bool = False) -> None:
        self.operations, self.generator, self.siamese = tuple(operations), generator, siamese

    def __call__(self, images: Tensor) -> Tensor:
        """Augment `[N, C, H, W]`."""
        operation = self.operations[int(torch.randint(len(self.operations), (1,), generator=self.generator))]
        return plain_dsa(images, operation, self.draw(operation, images))

    def draw(self, operation: str, images: Tensor) -> Tensor:
        """The numbers of :func:`plain_dsa`, column by column."""
        sides, count = images.shape[2:], 1 if self.siamese else len(images)

        def uniform() -> Tensor:
            return torch.rand(count, generator=self.generator)

        def whole(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (count,), generator=self.generator).float()

        if operation == "color":
            columns = [uniform() - 0.5, 2 * uniform(), uniform() + 0.5]
        elif operation == "crop":
            reaches = [int(side * 0.125 + 0.5) for side in sides]
            columns = [whole(-reach, reach + 1) for reach in reaches]
        elif operation == "cutout":
            columns = [whole(0, side + 1 - int(side * 0.5 + 0.5) % 2) for side in sides]
        elif operation == "flip":
            columns = [whole(0, 2)]
        elif operation == "scale":
            columns = [1 / 1.2 + (1.2 - 1 / 1.2) * uniform() for _ in sides]
        else:
            columns = [(uniform() - 0.5) * 2 * math.radians(15)]
        return torch.stack(columns, 1)


def plain_evaluation(
    module: nn.Module,
    images: Tensor,
    targets: Tensor,
    test: tuple[Tensor, Tensor],
    augment: Callable[[Tensor], Tensor],
    *,
    lr: float,
    epochs: int,
    batch: int,
    generator: torch.Generator,
    tuned: bool = False,
) -> float:
    """Train `module` on soft targets (probabilities) by the evaluation recipe, and test it: accuracy in percent.

    Args:
        tuned: channels_last (in a process that keeps freed memory, see :func:`keep_freed_memory`).
    """
    layout = torch.channels_last if tuned else torch.contiguous_format
    laid_out(module, layout)
    data = torch.utils.data.TensorDataset(images, targets)
    loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    module.train()
    for epoch in range(epochs):
        if epoch == (epochs + 1) // 2:
            optimizer = torch.optim.SGD(module.parameters(), lr=lr * 0.1, momentum=0.9, weight_decay=5e-4)
        for inputs, wanted in loader:
            loss = functional.cross_entropy(module(augment(inputs).contiguous(memory_format=layout)), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()
    right = 0
    with torch.no_grad():
        for inputs, labels in torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*test), batch_size=256):
            right += int((module(inputs.contiguous(memory_format=layout)).argmax(1) == labels).sum())
    return 100 * right / len(test[1])
