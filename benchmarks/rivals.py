"""What pad_fast is measured against: straightforward torch, the way trajectory-matching scripts are written.

The plain loop calls the network with its parameters cut out of one flat vector, records every step with
`create_graph=True`, and differentiates the normalised distance. Tuned, it also runs in channels_last, in a process
whose glibc keeps freed memory (`keep_freed_memory`). Nothing in it is slower than it need be; tests compare its
gradients with the oracle.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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
    augment: Callable[[Tensor, int], Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss, and its gradient in images, label logits and lr, by autograd through all steps."""
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]
    images = images.detach().requires_grad_()
    label_logits = label_logits.detach().requires_grad_()
    lr = lr.detach().requires_grad_()
    theta = theta_start.detach().requires_grad_()
    for step, batch in enumerate(batches):
        inputs = images[batch] if augment is None else augment(images[batch], step)
        parameters = {n: piece.view(s) for n, piece, s in zip(names, theta.split(sizes), shapes, strict=True)}
        if tuned:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            parameters = {
                n: p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p for n, p in parameters.items()
            }
        logits = torch.func.functional_call(module, parameters, (inputs,))
        loss = functional.cross_entropy(logits, label_logits[batch].softmax(-1))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * gradient
    matching = (theta - theta_target).square().sum() / (theta_start - theta_target).square().sum()
    return matching.detach(), torch.autograd.grad(matching, (images, label_logits, lr))


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
    """One epoch of adaptive GSAM on a module's own parameters, parameter by parameter."""
    parameters = list(module.parameters())

    def gradients(inputs: Tensor, targets: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(functional.cross_entropy(module(inputs), targets), parameters))

    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()

    for batch in batches:
        inputs, targets = augment(images[batch]), labels[batch]
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


def plain_sgd_epoch(
    module: nn.Module,
    images: Tensor,
    targets: Tensor,
    batches: Sequence[Tensor],
    augment: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """One epoch with a torch optimiser on soft targets (probabilities)."""
    for batch in batches:
        loss = functional.cross_entropy(module(augment(images[batch])), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class PlainDSA:
    """Differentiable Siamese augmentation as scripts write it (arXiv 2102.08259): numbers of its own for every image.

    One operation per call, drawn from `operations`; all images of the batch go through it at once, as tensors.
    """

    def __init__(self, operations: Sequence[str], generator: torch.Generator) -> None:
        self.operations, self.generator = tuple(operations), generator

    def __call__(self, images: Tensor) -> Tensor:
        """Augment `[N, C, H, W]`."""
        drawn = int(torch.randint(len(self.operations), (1,), generator=self.generator))
        augmented: Tensor = getattr(self, self.operations[drawn])(images)
        return augmented

    def uniform(self, images: Tensor) -> Tensor:
        """One number in [0, 1) per image, `[N, 1, 1, 1]`."""
        return torch.rand(len(images), 1, 1, 1, generator=self.generator)

    def whole(self, images: Tensor, low: int, high: int) -> Tensor:
        """One whole number in [low, high) per image, `[N, 1, 1]`."""
        return torch.randint(low, high, (len(images), 1, 1), generator=self.generator)

    def color(self, images: Tensor) -> Tensor:
        """Brightness, saturation, contrast."""
        images = images + (self.uniform(images) - 0.5)
        mean = images.mean(1, keepdim=True)
        images = (images - mean) * (2 * self.uniform(images)) + mean
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * (self.uniform(images) + 0.5) + mean

    def crop(self, images: Tensor) -> Tensor:
        """A shift by up to an eighth of the side, zeros behind it."""
        side = images.shape[-1]
        reach = int(side * 0.125 + 0.5)
        down, right = self.whole(images, -reach, reach + 1), self.whole(images, -reach, reach + 1)
        padded = functional.pad(images, [reach] * 4).permute(0, 2, 3, 1)
        rows = torch.arange(side)[None, :, None] + down + reach
        columns = torch.arange(side)[None, None, :] + right + reach
        return padded[torch.arange(len(images))[:, None, None], rows, columns].permute(0, 3, 1, 2).contiguous()

    def cutout(self, images: Tensor) -> Tensor:
        """A square of half the side is zero."""
        side = images.shape[-1]
        size = int(side * 0.5 + 0.5)
        top = self.whole(images, 0, side + 1 - size % 2) - size // 2
        left = self.whole(images, 0, side + 1 - size % 2) - size // 2
        hole = torch.arange(size)
        mask = torch.ones(len(images), side, side)
        rows = (hole[None, :, None] + top).clamp(0, side - 1)
        columns = (hole[None, None, :] + left).clamp(0, side - 1)
        mask[torch.arange(len(images))[:, None, None], rows, columns] = 0
        return images * mask[:, None]

    def flip(self, images: Tensor) -> Tensor:
        """Every second image mirrored."""
        return torch.where(self.uniform(images) < 0.5, images, images.flip(3))

    def scale(self, images: Tensor) -> Tensor:
        """Both sides stretched by factors of their own."""
        across, down = (1 / 1.2 + (1.2 - 1 / 1.2) * self.uniform(images).flatten() for _ in range(2))
        zero = torch.zeros_like(across)
        return self._affine(images, [[across, zero, zero], [zero, down, zero]])

    def rotate(self, images: Tensor) -> Tensor:
        """By up to 15 degrees."""
        angle = (self.uniform(images).flatten() - 0.5) * 2 * 15 / 180 * torch.pi
        zero = torch.zeros_like(angle)
        return self._affine(images, [[angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero]])

    @staticmethod
    def _affine(images: Tensor, entries: list[list[Tensor]]) -> Tensor:
        matrices = torch.stack([torch.stack(row, 1) for row in entries], 1)  # [N, 2, 3]
        grid = functional.affine_grid(matrices, list(images.shape), align_corners=True)
        return functional.grid_sample(images, grid, align_corners=True)


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
    module = module.to(memory_format=layout)
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
