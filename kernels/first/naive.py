"""The first block in plain torch, any floating dtype: what the kernels are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..block import naive as block
from .operations import FirstBlock


def naive_forward(x: Tensor, theta: Tensor, where: FirstBlock, *, precision: str) -> tuple[Tensor, Tensor]:
    """Twin of :func:`forward`; `precision` is that of the dtype."""
    z = _filtered(_unfolded(x, where), theta, where)
    return block.naive_forward(z, *_affine(theta, where))


def naive_tangent(
    x: Tensor, theta: Tensor, v: Tensor, where: FirstBlock, *, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of :func:`tangent` (eq. 8 with hd = 0)."""
    p = _unfolded(x, where)
    z, zd = _filtered(p, theta, where), _filtered(p, v, where)
    return block.naive_tangent(z, zd, *_affine(theta, where), *_affine(v, where))


def naive_backward(
    x: Tensor,
    theta: Tensor,
    stats: Tensor,
    god: Tensor,
    where: FirstBlock,
    out: Tensor,
    *,
    precision: str,
    accumulate: bool = False,
) -> None:
    """Twin of :func:`backward` (eq. 5-7)."""
    p = _unfolded(x, where)
    z = _filtered(p, theta, where)
    gzd = block.naive_backward(z, stats, *_affine(theta, where), god, out, where.g, where.b, accumulate=accumulate)
    _filter_gradient(gzd, p, where, out, accumulate)


def naive_adjoint(
    x: Tensor,
    theta: Tensor,
    v: Tensor,
    stats: Tensor,
    go: Tensor,
    god: Tensor,
    where: FirstBlock,
    out: Tensor,
    *,
    precision: str,
    accumulate: bool = False,
    wants_images: bool = True,
) -> Tensor | None:
    """Twin of :func:`adjoint` (eq. 15-16, and 18-19 with hd = 0)."""
    p = _unfolded(x, where)
    z, zd = _filtered(p, theta, where), _filtered(p, v, where)
    norms = (*_affine(theta, where), *_affine(v, where))
    gz, gzd = block.naive_adjoint(z, zd, stats, *norms, go, god, out, where.g, where.b, accumulate=accumulate)
    _filter_gradient(gz, p, where, out, accumulate)
    if not wants_images:
        return None
    gp = torch.einsum("kbyxo,kot->kbtyx", gz, _filter_rows(theta, where))
    gp += torch.einsum("kbyxo,kot->kbtyx", gzd, _filter_rows(v, where))
    size = (where.height, where.width)
    gx = F.fold(gp.flatten(0, 1).flatten(2), size, kernel_size=3, padding=where.padding)
    return gx.unflatten(0, gp.shape[:2])


def _filter_rows(theta: Tensor, where: FirstBlock) -> Tensor:
    """The filters as rows of taps, `[K, outputs, 9 channels]`."""
    return theta[:, where.w : where.w + where.outputs * where.taps].unflatten(1, (where.outputs, where.taps))


def _affine(theta: Tensor, where: FirstBlock) -> tuple[Tensor, Tensor]:
    """The norm's weight and bias, `[K, outputs]` each."""
    return theta[:, where.g : where.g + where.outputs], theta[:, where.b : where.b + where.outputs]


def _unfolded(x: Tensor, where: FirstBlock) -> Tensor:
    """The image values under the filter at every pixel of the map, `[K, B, 9 channels, rows, columns]`."""
    p = F.unfold(x.flatten(0, 1), kernel_size=3, padding=where.padding)
    return p.unflatten(0, x.shape[:2]).unflatten(3, where.map)


def _filtered(p: Tensor, theta: Tensor, where: FirstBlock) -> Tensor:
    return torch.einsum("kbtyx,kot->kbyxo", p, _filter_rows(theta, where)).contiguous()


def _filter_gradient(gz: Tensor, p: Tensor, where: FirstBlock, out: Tensor, accumulate: bool) -> None:
    gradient = torch.einsum("kbyxo,kbtyx->kot", gz, p).flatten(1)
    columns = out[:, where.w : where.w + gradient.shape[1]]
    columns.copy_(columns + gradient if accumulate else gradient)
