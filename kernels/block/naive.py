"""Norm, ReLU and pooling in plain torch, any floating dtype: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import EPS


def naive_forward(z: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Twin of :func:`forward` (eq. 2-3)."""
    mean, r, n = _normalized(z)
    o = _pool((_wide(g) * n + _wide(b)).relu())
    return o, torch.stack((mean, r), 2)


def naive_tangent(z: Tensor, zd: Tensor, g: Tensor, b: Tensor, gd: Tensor, bd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of :func:`tangent` (eq. 2-3, 9-10)."""
    mean, r, n = _normalized(z)
    mean_d = zd.mean((2, 3))
    s = (n * zd).mean((2, 3))
    nd = _plane(r) * (zd - _plane(mean_d) - n * _plane(s))
    a = _wide(g) * n + _wide(b)
    ad = _wide(gd) * n + _wide(g) * nd + _wide(bd)
    return _pool(a.relu()), _pool(_where_kept(a, ad)), torch.stack((mean, r, mean_d, s), 2)


def naive_backward(
    z: Tensor,
    stats: Tensor,
    g: Tensor,
    b: Tensor,
    god: Tensor,
    out: Tensor,
    g_offset: int,
    b_offset: int,
    *,
    accumulate: bool = False,
) -> Tensor:
    """Twin of :func:`backward` (eq. 5-6)."""
    r = _plane(stats[:, :, 1])
    n = (z - _plane(stats[:, :, 0])) * r
    kept = _where_kept(_wide(g) * n + _wide(b), _unpool(god, z))  # Ad
    _assign(out, g_offset, (kept * n).sum((1, 2, 3)), accumulate)
    _assign(out, b_offset, kept.sum((1, 2, 3)), accumulate)
    return r * _project(_wide(g) * kept, n)


def naive_adjoint(
    z: Tensor,
    zd: Tensor,
    stats: Tensor,
    g: Tensor,
    b: Tensor,
    gd: Tensor,
    bd: Tensor,
    go: Tensor,
    god: Tensor,
    out: Tensor,
    g_offset: int,
    b_offset: int,
    *,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Twin of :func:`adjoint` (eq. 11-16, before the means are gathered into coefficients)."""
    mean, r, mean_d, s = (_plane(row) for row in stats.unbind(2))
    n = (z - mean) * r
    nd = r * (zd - mean_d - n * s)
    a = _wide(g) * n + _wide(b)
    kept, kept_d = _where_kept(a, _unpool(go, z)), _where_kept(a, _unpool(god, z))  # A, Ad
    _assign(out, g_offset, (kept * n + kept_d * nd).sum((1, 2, 3)), accumulate)
    _assign(out, b_offset, kept.sum((1, 2, 3)), accumulate)
    gnd = _wide(g) * kept_d
    gn = _wide(g) * kept + _wide(gd) * kept_d - r * (s * gnd + zd * (gnd * n).mean((2, 3), keepdim=True))
    gz = r * _project(gn, n) - r * n * (gnd * nd).mean((2, 3), keepdim=True)
    return gz, r * _project(gnd, n)


def _wide(parameter: Tensor) -> Tensor:
    return parameter[:, None, None, None, :]  # [K, 1, 1, 1, C]


def _plane(value: Tensor) -> Tensor:
    return value[:, :, None, None, :]  # [K, B, 1, 1, C]


def _normalized(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and r of every plane `[K, B, C]`, and n (eq. 2)."""
    mean = z.mean((2, 3))
    centred = z - _plane(mean)
    r = (centred.square().mean((2, 3)) + EPS).rsqrt()
    return mean, r, centred * _plane(r)


def _where_kept(a: Tensor, value: Tensor) -> Tensor:
    """`value` where the ReLU lets it through; a NaN in `a` is not a reason to hide it."""
    return torch.where(a <= 0, torch.zeros_like(value), value)


def _pixels(z: Tensor) -> Tensor:
    """The pixels that are pooled, `[K, B, H // 2, 2, W // 2, 2, C]`."""
    K, B, H, W, C = z.shape
    return z[:, :, : H // 2 * 2, : W // 2 * 2].unflatten(2, (H // 2, 2)).unflatten(4, (W // 2, 2))


def _pool(a: Tensor) -> Tensor:
    return _pixels(a).mean((3, 5)).contiguous()


def _unpool(go: Tensor, like: Tensor) -> Tensor:
    """The transpose of pooling: `up(go) / 4`, 0 in an odd last row or column."""
    full = torch.zeros_like(like)
    _pixels(full).copy_(go[:, :, :, None, :, None] / 4)
    return full


def _project(value: Tensor, n: Tensor) -> Tensor:
    """`value - mean value - n mean(value n)`."""
    return value - value.mean((2, 3), keepdim=True) - n * (value * n).mean((2, 3), keepdim=True)


def _assign(out: Tensor, offset: int, value: Tensor, accumulate: bool) -> None:
    columns = out[:, offset : offset + value.shape[1]]
    columns.copy_(columns + value if accumulate else value)
