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
