"""The kernels of the convolutions: implicit matrix products, see :mod:`.operations`."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from ..launch import interpreted

INTERPRETED = tl.constexpr(interpreted())


# Run-time integers are not specialised on: another batch size or offset must not compile another kernel.
@triton.jit(do_not_specialize=["stride", "offset", "spacing"])
@no_type_check
def pack_kernel(
    p_forward,
    p_backward,
    p_theta,
    stride,
    offset,
    spacing,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tap of BLOCK x BLOCK filters: read in torch's order, write both packed orders."""
    blocks_i: tl.constexpr = (INPUTS + BLOCK - 1) // BLOCK
    tile = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64)
    trajectory = tl.program_id(2).to(tl.int64)
    tap = tile % 9
    i = tile // 9 % blocks_i * BLOCK + tl.arange(0, BLOCK)
    o = tile // (9 * blocks_i) * BLOCK + tl.arange(0, BLOCK)
    mask = (o < OUTPUTS)[:, None] & (i < INPUTS)[None, :]
    source = p_theta + trajectory * stride + offset + layer * spacing
    block = tl.load(source + (o[:, None] * INPUTS + i[None, :]) * 9 + tap, mask=mask, other=0.0)  # [o, i]
    block = block.to(p_forward.dtype.element_ty)
    start = (layer * tl.num_programs(2) + trajectory) * (9 * INPUTS * OUTPUTS)
    tl.store(p_forward + start + (o[:, None] * 9 + tap) * INPUTS + i[None, :], block, mask=mask)
    tl.store(p_backward + start + (i[None, :] * 9 + 8 - tap) * OUTPUTS + o[:, None], block, mask=mask)


@triton.jit
@no_type_check
def border(position, positions, H: tl.constexpr, W: tl.constexpr):
    """Nine bits per position: bit t tells whether the image goes on there, shifted by s_t."""
    x = position % W
    y = position // W % H
    # Columns as bits 0, 1, 2 of three rows of three.
    columns = 2 + (x > 0).to(tl.int32) + (x < W - 1).to(tl.int32) * 4
    bits = columns * 8 + tl.where(y > 0, columns, 0) + tl.where(y < H - 1, columns * 64, 0)
    return tl.where(position < positions, bits, 0)


@triton.jit
@no_type_check
def below(index, size: tl.constexpr, block: tl.constexpr):
    """`index < size`, a constant where blocks fit exactly."""
    if size % block == 0:
        inside = tl.full(index.shape, True, dtype=tl.int1)
    else:
        inside = index < size
    return inside


@triton.jit
@no_type_check
def product(a, b, acc, PRECISION: tl.constexpr):
    """`acc` plus the matrix product of the two."""
    if PRECISION == "bf16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if INTERPRETED:  # products of bfloat16 are those of the bits taken as integers there
            a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32" if PRECISION == "tf32" else "ieee", out_dtype=acc.dtype)


@triton.jit(do_not_specialize=["batch"])
@no_type_check
def convolution_kernel(
    p_z,
    p_h,
    p_w,
    p_h2,
    p_w2,
    batch,
    H: tl.constexpr,
    W: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Correlate: z = w * h, or z = w * h + w2 * h2 with PAIRS = 2.

    With SPLITS = 3, z is [SPLITS, K, B, H, W, O], and each program takes a row of taps.
    """
    taps: tl.constexpr = 9 // SPLITS
    chunks: tl.constexpr = (INPUTS + BLOCK_I - 1) // BLOCK_I
    positions = batch * (H * W)
    trajectory = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1) % SPLITS
    first = tl.program_id(0) * BLOCK_P
    row = tl.arange(0, BLOCK_P)
    o = tl.program_id(1) // SPLITS * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.arange(0, BLOCK_I)
    inside = border(first + row, positions, H, W)
    start = (trajectory * positions + first) * INPUTS
    p_h += start
    p_w += trajectory * (OUTPUTS * 9 * INPUTS)
    p_h2 += start
    p_w2 += trajectory * (OUTPUTS * 9 * INPUTS)
    o_h = row[:, None] * INPUTS + i[None, :]
    o_w = o[None, :] * (9 * INPUTS) + i[:, None]
    m_o = below(o, OUTPUTS, BLOCK_O)[None, :]
    acc = tl.zeros([BLOCK_P, BLOCK_O], dtype=p_z.dtype.element_ty)
    # The taps run innermost: nine steps in a row read nearly the same rows of h, which stay in L1 where the compiler
    # heeds .ca (Triton 3.9; before, copies of 16 bytes go around L1, and those of 8 would take the filters through it).
    for step in range(PAIRS * chunks * taps):
        tap = split * taps + step % taps
        chunk = step // taps
        b_h = p_h
        b_w = p_w
        if PAIRS == 2:
            second = chunk >= chunks
            chunk = tl.where(second, chunk - chunks, chunk)
            b_h = tl.where(second, p_h2, p_h)
            b_w = tl.where(second, p_w2, p_w)
        c = chunk * BLOCK_I
        b_h += ((tap // 3 - 1) * W + tap % 3 - 1) * INPUTS + c
        b_w += tap * INPUTS + c
        m_h = (((inside >> tap) & 1) != 0)[:, None]
        m_w = m_o
        if INPUTS % BLOCK_I != 0:
            m_h = m_h & (c + i < INPUTS)[None, :]
            m_w = m_w & (c + i < INPUTS)[:, None]
        a = tl.load(b_h + o_h, mask=m_h, other=0.0, cache_modifier=".ca")  # [positions, i]
        b = tl.load(b_w + o_w, mask=m_w, other=0.0)  # [i, o]
        acc = product(a, b, acc, PRECISION)
    m_z = (first + row < positions)[:, None] & m_o
    start = ((split * tl.num_programs(2) + trajectory) * positions + first) * OUTPUTS
    tl.store(p_z + start + row[:, None] * OUTPUTS + o[None, :], acc, mask=m_z)


@triton.jit(do_not_specialize=["batch"])
@no_type_check
def convolution_dual_kernel(
    p_z,
    p_zd,
    p_h,
    p_hd,
    p_w,
    p_v,
    batch,
    H: tl.constexpr,
    W: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Both of a tangent: z = w * h and zd = w * hd + v * h: three products for four loads.

    With SPLITS = 3, z and zd are the halves of [SPLITS, 2, K, B, H, W, O]; see `convolution_kernel`.
    """
    taps: tl.constexpr = 9 // SPLITS
    chunks: tl.constexpr = (INPUTS + BLOCK_I - 1) // BLOCK_I
    positions = batch * (H * W)
    trajectory = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1) % SPLITS
    first = tl.program_id(0) * BLOCK_P
    row = tl.arange(0, BLOCK_P)
    o = tl.program_id(1) // SPLITS * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.arange(0, BLOCK_I)
    inside = border(first + row, positions, H, W)
    start = (trajectory * positions + first) * INPUTS
    p_h += start
    p_hd += start
    p_w += trajectory * (OUTPUTS * 9 * INPUTS)
    p_v += trajectory * (OUTPUTS * 9 * INPUTS)
    o_h = row[:, None] * INPUTS + i[None, :]
    o_w = o[None, :] * (9 * INPUTS) + i[:, None]
    m_o = below(o, OUTPUTS, BLOCK_O)[None, :]
    z = tl.zeros([BLOCK_P, BLOCK_O], dtype=p_z.dtype.element_ty)
    zd = tl.zeros([BLOCK_P, BLOCK_O], dtype=p_z.dtype.element_ty)
    for step in range(chunks * taps):
        tap = split * taps + step % taps
        c = step // taps * BLOCK_I
        shift = ((tap // 3 - 1) * W + tap % 3 - 1) * INPUTS + c
        m_h = (((inside >> tap) & 1) != 0)[:, None]
        m_w = m_o
        if INPUTS % BLOCK_I != 0:
            m_h = m_h & (c + i < INPUTS)[None, :]
            m_w = m_w & (c + i < INPUTS)[:, None]
        h = tl.load(p_h + shift + o_h, mask=m_h, other=0.0, cache_modifier=".ca")
        hd = tl.load(p_hd + shift + o_h, mask=m_h, other=0.0, cache_modifier=".ca")
        w = tl.load(p_w + (tap * INPUTS + c) + o_w, mask=m_w, other=0.0)
        v = tl.load(p_v + (tap * INPUTS + c) + o_w, mask=m_w, other=0.0)
        z = product(h, w, z, PRECISION)
        zd = product(hd, w, zd, PRECISION)
        zd = product(h, v, zd, PRECISION)
    start = ((2 * split * tl.num_programs(2) + trajectory) * positions + first) * OUTPUTS
    o_z = row[:, None] * OUTPUTS + o[None, :]
    m_z = (first + row < positions)[:, None] & m_o
    tl.store(p_z + start + o_z, z, mask=m_z)
    tl.store(p_zd + start + o_z, zd, mask=m_z)


@triton.jit
@no_type_check
def split_sum_kernel(p_z, p_part, entries, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """z[e] = sum over the splits of part[split, e], in order."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    total = tl.load(p_part + entry, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(p_part + split * entries + entry, mask=inside, other=0.0)
    tl.store(p_z + entry, total, mask=inside)


@triton.jit(do_not_specialize=["batch", "span"])
@no_type_check
def weight_gradient_kernel(
    p_part,
    p_h,
    p_g,
    p_h2,
    p_g2,
    batch,
    span,
    H: tl.constexpr,
    W: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Three neighbouring taps' sums over `span` positions (a multiple of BLOCK_P; the last program may have fewer).

    part[k, split, t, o, i] = sum_p g[p, o] h[p + s_t, i], with PAIRS = 2 plus the same of g2 and h2.
    """
    blocks_i: tl.constexpr = (INPUTS + BLOCK_I - 1) // BLOCK_I
    positions = batch * (H * W)
    tile = tl.program_id(0)
    split = tl.program_id(1)
    trajectory = tl.program_id(2).to(tl.int64)
    dy = tile % 3 - 1
    i = tile // 3 % blocks_i * BLOCK_I + tl.arange(0, BLOCK_I)
    o = tile // (3 * blocks_i) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_i = below(i, INPUTS, BLOCK_I)
    m_o = below(o, OUTPUTS, BLOCK_O)
    first = split * span
    row = tl.arange(0, BLOCK_P)
    steps = tl.cdiv(tl.minimum(span, positions - first), BLOCK_P)
    o_g = row[:, None] * OUTPUTS + o[None, :]
    o_h = row[None, :] * INPUTS + tl.max_contiguous(i, 2)[:, None]
    left = tl.zeros([BLOCK_I, BLOCK_O], dtype=p_part.dtype.element_ty)
    middle = left
    right = left
    for step in range(PAIRS * steps):
        turn = step
        b_h = p_h
        b_g = p_g
        if PAIRS == 2:
            second = step >= steps
            turn = tl.where(second, step - steps, step)
            b_h = tl.where(second, p_h2, p_h)
            b_g = tl.where(second, p_g2, p_g)
        begin = first + turn * BLOCK_P
        b_h += (trajectory * positions + begin + dy * W) * INPUTS
        b_g += (trajectory * positions + begin) * OUTPUTS
        position = begin + row
        x = position % W
        y = position // W % H + dy
        m_g = position < positions
        m_h = m_g & (y >= 0) & (y < H)
        m_left = m_h & (x > 0)
        m_right = m_h & (x < W - 1)
        m_h = m_h[None, :] & m_i[:, None]
        m_left = m_left[None, :] & m_i[:, None]
        m_right = m_right[None, :] & m_i[:, None]
        g = tl.load(b_g + o_g, mask=m_g[:, None] & m_o[None, :], other=0.0)  # [positions, o]
        # Nearly the same rows three times: twice out of L1, which copies of 8 bytes pass and those of 16 go around.
        h = tl.load(b_h - INPUTS + o_h, mask=m_left, other=0.0, cache_modifier=".ca")  # [i, positions]
        left = product(h, g, left, PRECISION)
        h = tl.load(b_h + o_h, mask=m_h, other=0.0, cache_modifier=".ca")
        middle = product(h, g, middle, PRECISION)
        h = tl.load(b_h + INPUTS + o_h, mask=m_right, other=0.0, cache_modifier=".ca")
        right = product(h, g, right, PRECISION)
    p_part += ((trajectory * tl.num_programs(1) + split) * 9 + tile % 3 * 3) * (OUTPUTS * INPUTS)
    o_part = o[None, :] * INPUTS + i[:, None]
    m_part = m_o[None, :] & m_i[:, None]
    tl.store(p_part + o_part, left, mask=m_part)
    tl.store(p_part + OUTPUTS * INPUTS + o_part, middle, mask=m_part)
    tl.store(p_part + 2 * OUTPUTS * INPUTS + o_part, right, mask=m_part)


@triton.jit(do_not_specialize=["splits", "stride", "offset"])
@no_type_check
def weight_gradient_sum_kernel(
    p_out,
    p_part,
    splits,
    stride,
    offset,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[k, offset + (o INPUTS + i) 9 + t] = sum over the splits of part[k, split, t, o, i], in a fixed order."""
    trajectory = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)
    m_e = element < OUTPUTS * INPUTS * 9
    source = p_part + trajectory * splits * (OUTPUTS * INPUTS * 9)
    o_part = split[:, None] * (OUTPUTS * INPUTS * 9) + (element % 9 * (OUTPUTS * INPUTS) + element // 9)[None, :]
    block = tl.load(source + o_part, mask=(split < splits)[:, None] & m_e[None, :], other=0.0)  # [splits, elements]
    total = tl.sum(block, 0)
    target = p_out + trajectory * stride + offset + element
    if ACCUMULATE:
        total += tl.load(target, mask=m_e, other=0.0)
    tl.store(target, total, mask=m_e)
