"""The convolutions in plain torch, any floating dtype: what the kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer import TAPS, Weights


def naive_pack(theta: Tensor, offset: int, inputs: int, outputs: int, *, precision: str = "tf32") -> Weights:
    """:func:`pack` by reordering torch's `[K, O, I, 9]`."""
    filters = theta[:, offset : offset + TAPS * inputs * outputs].reshape(-1, outputs, inputs, TAPS)
    if precision == "bf16" and theta.dtype == torch.float32:
        filters = filters.bfloat16()
    return Weights(filters.permute(0, 1, 3, 2).contiguous(), filters.flip(3).permute(0, 2, 3, 1).contiguous())


def naive_pack_all(theta: Tensor, layers: Sequence[tuple[int, int, int]], *, precision: str = "tf32") -> list[Weights]:
    """:func:`pack_all`, layer by layer."""
    return [naive_pack(theta, *layer, precision=precision) for layer in layers]


def _operand(x: Tensor, precision: str) -> Tensor:
    """`x` as it enters a product: rounded to bfloat16 there, in its own dtype otherwise."""
    return x.bfloat16().to(x.dtype) if precision == "bf16" else x


def _patches(h: Tensor) -> Tensor:
    """The nine shifted copies of the maps, zero outside the image."""
    height, width = h.shape[2:4]
    padded = F.pad(h, (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(shifted, 4)  # [K, B, H, W, 9, C]


def _spread(g: Tensor) -> Tensor:
    """The transpose of :func:`_patches`."""
    trajectories, batch, height, width, _, channels = g.shape
    padded = g.new_zeros((trajectories, batch, height + 2, width + 2, channels))
    for tap in range(TAPS):
        y, x = divmod(tap, 3)
        padded[:, :, y : y + height, x : x + width] += g[:, :, :, :, tap]
    return padded[:, :, 1:-1, 1:-1].contiguous()


def naive_forward(h: Tensor, w: Weights, *, precision: str) -> Tensor:
    """:func:`forward` from unfolded patches."""
    filters = w.forward.to(h.dtype)
    return torch.einsum("kbyxti,koti->kbyxo", _patches(_operand(h, precision)), _operand(filters, precision))


def naive_tangent(
    h: Tensor, hd: Tensor, w: Weights, v: Weights, *, precision: str, with_primal: bool = True
) -> tuple[Tensor | None, Tensor]:
    """:func:`tangent` as three convolutions."""
    zd = naive_forward(hd, w, precision=precision) + naive_forward(h, v, precision=precision)
    return naive_forward(h, w, precision=precision) if with_primal else None, zd


def naive_data_grad(gz: Tensor, w: Weights, *, precision: str) -> Tensor:
    """:func:`data_grad`: every gradient goes back along the filters of :func:`naive_forward`."""
    filters = _operand(w.forward.to(gz.dtype), precision)
    return _spread(torch.einsum("kbyxo,koti->kbyxti", _operand(gz, precision), filters))


def naive_data_grad_dual(gz: Tensor, gzd: Tensor, w: Weights, v: Weights, *, precision: str) -> tuple[Tensor, Tensor]:
    """:func:`data_grad_dual` as three data gradients."""
    gh = naive_data_grad(gz, w, precision=precision) + naive_data_grad(gzd, v, precision=precision)
    return gh, naive_data_grad(gzd, w, precision=precision)


def naive_weight_grad(
    h: Tensor, gz: Tensor, out: Tensor, offset: int, *, precision: str, accumulate: bool = False
) -> None:
    """:func:`weight_grad` from unfolded patches."""
    patches = _patches(_operand(h, precision))
    gw = torch.einsum("kbyxo,kbyxti->koit", _operand(gz, precision), patches).flatten(1)
    target = out[:, offset : offset + gw.shape[1]]
    target.copy_(target + gw if accumulate else gw)


def naive_weight_grad_dual(
    h: Tensor,
    hd: Tensor,
    gz: Tensor,
    gzd: Tensor,
    out: Tensor,
    offset: int,
    *,
    precision: str,
    accumulate: bool = False,
) -> None:
    """:func:`weight_grad_dual` as two weight gradients."""
    naive_weight_grad(h, gz, out, offset, precision=precision, accumulate=accumulate)
    naive_weight_grad(hd, gzd, out, offset, precision=precision, accumulate=True)
