"""The distance of gradient matching and its direction, channel by channel, of many classes in one launch.

A table says where the output channels of the layers lie in the flat gradient `[P]`, and which stretches between them
are not compared. One program takes one line of the table for one class: it reads both gradients once, forms three sums
in float64 and writes the direction, zeros where nothing is compared. Equation numbers are those of docs/matching.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError
from .calls import Call, moved
from .row_tiles import WARPS, finish, require_alike, row_stride

if TYPE_CHECKING:
    from ..models.flat import Channels
    from .aot import Production

_MAX_BLOCK = 2048  # entries of a channel that one program holds in registers
_STRETCH = 4096  # entries that are only written, per line of the table


@triton.jit
@no_type_check
def _entries(p_real, p_synthetic, o, length):
    """Entries of both gradients in float64, 0 behind the end of the channel."""
    a = tl.load(p_real + o, mask=o < length, other=0.0).to(tl.float64)
    return a, tl.load(p_synthetic + o, mask=o < length, other=0.0).to(tl.float64)


@triton.jit
@no_type_check
def _distance_kernel(
    p_partial,  # [G, R] float64: what each line adds to the distance
    p_v,  # [G, P]
    p_real,  # [G, P]
    p_synthetic,
    p_table,  # [R, 3] int32: first entry, entries, whether they are compared
    stride,
    real_stride,
    synthetic_stride,
    AT_ONCE: tl.constexpr,  # a channel fits into one block, and is read once
    BLOCK: tl.constexpr,
):
    line, g = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    lines = tl.num_programs(0)
    first = tl.load(p_table + 3 * line)
    length = tl.load(p_table + 3 * line + 1)
    compared = tl.load(p_table + 3 * line + 2)
    p_real += g * real_stride + first
    p_synthetic += g * synthetic_stride + first
    p_v += g * stride + first
    o = tl.arange(0, BLOCK)
    distance = tl.zeros([], tl.float64)
    if compared == 0:
        for start in range(0, length, BLOCK):
            tl.store(p_v + start + o, tl.zeros([BLOCK], p_v.dtype.element_ty), mask=start + o < length)
    else:
        aa = tl.zeros([], tl.float64)
        ab = tl.zeros([], tl.float64)
        bb = tl.zeros([], tl.float64)
        if AT_ONCE:
            a, b = _entries(p_real, p_synthetic, o, length)
            aa += tl.sum(a * a, 0)
            ab += tl.sum(a * b, 0)
            bb += tl.sum(b * b, 0)
        else:
            for start in range(0, length, BLOCK):
                a, b = _entries(p_real, p_synthetic, start + o, length)
                aa += tl.sum(a * a, 0)
                ab += tl.sum(a * b, 0)
                bb += tl.sum(b * b, 0)
        norms = tl.sqrt(aa) * tl.sqrt(bb)
        some = norms > 0
        scale = tl.where(some, 1 / tl.where(some, norms, 1.0), 0.0)
        along = ab * scale / tl.where(some, bb, 1.0)
        distance = 1 - ab * scale  # (1)
        if AT_ONCE:
            v = along * b - scale * a  # (2)
            tl.store(p_v + o, v.to(p_v.dtype.element_ty), mask=o < length)
        else:
            for start in range(0, length, BLOCK):
                a, b = _entries(p_real, p_synthetic, start + o, length)
                v = along * b - scale * a
                tl.store(p_v + start + o, v.to(p_v.dtype.element_ty), mask=start + o < length)
    tl.store(p_partial + g * lines + line, distance)


@dataclass(frozen=True, eq=False)
class Table:
    """Every entry of the flat vector in exactly one line.

    Attributes:
        lines: int32 `[R, 3]`: a channel (first entry, length, 1), or a stretch between channels (first, length, 0).
        longest: entries of the longest channel.
    """

    lines: Tensor
    longest: int


@lru_cache(maxsize=16)
def table(channels: tuple[Channels, ...], parameters: int, device: torch.device) -> Table:
    """The table of these channels in a vector of `parameters` entries; made once for each device."""
    lines: list[tuple[int, int, int]] = []

    def skip(stop: int) -> None:
        at = lines[-1][0] + lines[-1][1] if lines else 0
        lines.extend((start, min(_STRETCH, stop - start), 0) for start in range(at, stop, _STRETCH))

    for piece in channels:
        skip(piece.offset)
        lines.extend((piece.offset + row * piece.length, piece.length, 1) for row in range(piece.rows))
    skip(parameters)
    longest = max(piece.length for piece in channels)
    return Table(torch.tensor(lines, dtype=torch.int32, device="cpu").to(device), longest)


def distance_and_direction(real: Tensor, synthetic: Tensor, where: Table) -> tuple[Tensor, Tensor]:
    """Equations (1), without the sum over classes, and (2).

    Args:
        real, synthetic: gradients `[G, P]` of one dtype (float32 or float64), contiguous.
        where: a :func:`table` on the same device.

    Returns:
        Distances `[G]`, and `v` `[G, P]`, zero outside the channels.

    Raises:
        InputError: tensors that do not agree.
    """
    require_alike(real=real, synthetic=synthetic)
    lines = where.lines
    if real.dim() != 2 or lines.device != real.device:
        raise InputError(
            f"gradients are {list(real.shape)} on {real.device} and the table on {lines.device}; pass [G, P] and a "
            "table on the same device"
        )
    v = torch.empty_like(synthetic)
    partial = torch.empty(len(real), len(lines), dtype=torch.float64, device=real.device)
    out = torch.empty(len(real), dtype=real.dtype, device=real.device)
    _call(partial, v, real, synthetic, lines, where.longest).run()
    finish(out, partial, 1).run()
    return out, v


def _call(partial: Tensor, v: Tensor, real: Tensor, synthetic: Tensor, lines: Tensor, longest: int) -> Call:
    block = min(_MAX_BLOCK, triton.next_power_of_2(max(longest, 32)))
    return Call(
        _distance_kernel,
        (len(lines), len(real)),
        (partial, v, real, synthetic, lines, row_stride(v), row_stride(real), row_stride(synthetic)),
        moved(partial, v, real, synthetic, lines),
        {"AT_ONCE": longest <= block, "BLOCK": block, "num_warps": WARPS},
    )


def production() -> list[Production]:
    """The launches of one update of the ConvNets for 32 px (10 classes), and of a network with longer channels."""
    items = []
    for classes, parameters, lines, longest, dtype in (
        (10, 320010, 397, 2048, torch.float32),
        (10, 320010, 397, 2048, torch.float64),
        (10, 4200000, 1600, 8192, torch.float32),
    ):
        x = torch.empty(classes, parameters, dtype=dtype, device="meta")
        partial = torch.empty(classes, lines, dtype=torch.float64, device="meta")
        where = torch.empty(lines, 3, dtype=torch.int32, device="meta")
        hot = dtype == torch.float32
        name = f"{classes} classes, P = {parameters:,}, channels of up to {longest:,}{', float64' * (not hot)}"
        items.append(_call(partial, x, x, x, where, longest).production(name, hot=hot))
    return items


def naive_distance_and_direction(real: Tensor, synthetic: Tensor, where: Table) -> tuple[Tensor, Tensor]:
    """Twin of :func:`distance_and_direction`."""
    distances = torch.zeros(len(real), dtype=torch.float64, device=real.device)
    v = torch.zeros_like(synthetic, dtype=torch.float64)
    for first, length, compared in where.lines.tolist():
        piece = slice(first, first + length)
        for g in range(len(real) if compared else 0):
            a, b = real[g, piece].double(), synthetic[g, piece].double()
            if not (a.any() and b.any()):
                distances[g] += 1
                continue
            cosine = a @ b / (a.norm() * b.norm())
            distances[g] += 1 - cosine
            v[g, piece] = cosine * b / b.square().sum() - a / (a.norm() * b.norm())
    return distances.to(real.dtype), v.to(real.dtype)
