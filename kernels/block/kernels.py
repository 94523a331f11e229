"""The kernels of norm, ReLU and pooling. Tiles are [4, BW, BC]; what belongs to a plane is [1, 1, BC]."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

EPS = 1e-5
"""Added to the variance of a plane (eq. 2)."""


@triton.jit
@no_type_check
def _place(B, C: tl.constexpr, BC: tl.constexpr):
    """Place of a program: its image, the image's trajectory, channels [1, 1, BC] and which of them exist."""
    pid = tl.program_id(0)
    image = pid // tl.cdiv(C, BC)
    cols = (pid % tl.cdiv(C, BC)) * BC + tl.arange(0, BC)[None, None, :]
    return image.to(tl.int64), (image // B).to(tl.int64), cols, cols < C


@triton.jit
@no_type_check
def _windows(w0, H: tl.constexpr, W: tl.constexpr, BW: tl.constexpr):
    """Pixels [4, BW, 1] of the windows from w0 on and whether they exist, the same of pooled pixels [1, BW, 1]."""
    window = w0 + tl.arange(0, BW)[None, :, None]
    wy, wx = window // ((W + 1) // 2), window % ((W + 1) // 2)
    corner = tl.arange(0, 4)[:, None, None]
    y, x = 2 * wy + corner // 2, 2 * wx + corner % 2
    return y * W + x, (y < H) & (x < W), wy * (W // 2) + wx, (wy < H // 2) & (wx < W // 2)


@triton.jit
@no_type_check
def _tile(p_map, pixel, exists, cols, m_cols, C: tl.constexpr):
    """Pixels of an image's map, 0 where there are none."""
    return tl.load(p_map + pixel * C + cols, mask=exists & m_cols, other=0.0)


@triton.jit
@no_type_check
def _channels(p, cols, m_cols):
    """One value for each channel, 0 where there is none."""
    return tl.load(p + cols, mask=m_cols, other=0.0)


@triton.jit
@no_type_check
def _over_plane(tile):
    return tl.sum(tl.sum(tile, axis=0, keep_dims=True), axis=1, keep_dims=True)


@triton.jit
@no_type_check
def _merge(n, mean, m2, z, inside):
    """Pixels seen, their mean and sum of squares about it, after one more block of the plane (Chan)."""
    count = _over_plane(inside.to(z.dtype))
    block = _over_plane(z) / count
    centred = tl.where(inside, z - block, 0.0)
    step = block - mean
    m2 += _over_plane(centred * centred) + step * step * (n * count / (n + count))
    return n + count, mean + step * (count / (n + count)), m2


@triton.jit
@no_type_check
def _merge_dual(n, mean, m2, mean_d, mixed, z, zd, inside):
    """The same with the mean of zd and the sum of products of both about their means."""
    count = _over_plane(inside.to(z.dtype))
    block, block_d = _over_plane(z) / count, _over_plane(zd) / count
    centred = tl.where(inside, z - block, 0.0)
    step, step_d = block - mean, block_d - mean_d
    weight, share = n * count / (n + count), count / (n + count)
    m2 += _over_plane(centred * centred) + step * step * weight
    mixed += _over_plane(centred * (zd - block_d)) + step * step_d * weight
    return n + count, mean + step * share, m2, mean_d + step_d * share, mixed


@triton.jit
@no_type_check
def kept(a, value):
    """`value` where the ReLU lets it through."""
    # Not a > 0: a NaN must show, in the output and in every gradient.
    return tl.where(a <= 0, 0.0, value)


@triton.jit(do_not_specialize=["g_stride", "b_stride", "B"])
@no_type_check
def forward_kernel(
    p_o, p_stats, p_z, p_g, p_b, g_stride, b_stride, B,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Eq. 2-3."""
    image, k, cols, m_cols = _place(B, C, BC)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    g = _channels(p_g + k * g_stride, cols, m_cols)
    b = _channels(p_b + k * b_stride, cols, m_cols)
    p_z += image * (H * W * C)
    p_o += image * ((H // 2) * (W // 2) * C)
    p_stats += image * (2 * C)

    pixel, inside, _, _ = _windows(0, H, W, BW)
    z = _tile(p_z, pixel, inside, cols, m_cols, C)
    zero = tl.zeros([1, 1, BC], z.dtype)
    n, mean, m2 = _merge(tl.zeros([1, 1, 1], z.dtype), zero, zero, z, inside)
    for w0 in range(BW, WINDOWS, BW):
        pixel, inside, _, _ = _windows(w0, H, W, BW)
        tile = _tile(p_z, pixel, inside, cols, m_cols, C)
        n, mean, m2 = _merge(n, mean, m2, tile, inside)
    r = tl.rsqrt(m2 / (H * W) + EPS)
    tl.store(p_stats + cols, mean, mask=m_cols)
    tl.store(p_stats + C + cols, r, mask=m_cols)

    for w0 in range(0, WINDOWS, BW):
        pixel, inside, o_pixel, pooled = _windows(w0, H, W, BW)
        if WINDOWS > BW:
            z = _tile(p_z, pixel, inside, cols, m_cols, C)
        a = (z - mean) * (g * r) + b
        o = tl.sum(kept(a, a), axis=0, keep_dims=True) * 0.25
        tl.store(p_o + o_pixel * C + cols, o, mask=pooled & m_cols)


@triton.jit(do_not_specialize=["g_stride", "b_stride", "gd_stride", "bd_stride", "B"])
@no_type_check
def tangent_kernel(
    p_o, p_od, p_stats, p_z, p_zd, p_g, p_b, p_gd, p_bd, g_stride, b_stride, gd_stride, bd_stride, B,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Eq. 2-3 and 9-10."""
    image, k, cols, m_cols = _place(B, C, BC)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    g = _channels(p_g + k * g_stride, cols, m_cols)
    b = _channels(p_b + k * b_stride, cols, m_cols)
    gd = _channels(p_gd + k * gd_stride, cols, m_cols)
    bd = _channels(p_bd + k * bd_stride, cols, m_cols)
    p_z += image * (H * W * C)
    p_zd += image * (H * W * C)
    p_o += image * ((H // 2) * (W // 2) * C)
    p_od += image * ((H // 2) * (W // 2) * C)
    p_stats += image * (4 * C)

    pixel, inside, _, _ = _windows(0, H, W, BW)
    z = _tile(p_z, pixel, inside, cols, m_cols, C)
    zd = _tile(p_zd, pixel, inside, cols, m_cols, C)
    zero = tl.zeros([1, 1, BC], z.dtype)
    n, mean, m2, mean_d, mixed = _merge_dual(tl.zeros([1, 1, 1], z.dtype), zero, zero, zero, zero, z, zd, inside)
    for w0 in range(BW, WINDOWS, BW):
        pixel, inside, _, _ = _windows(w0, H, W, BW)
        tile = _tile(p_z, pixel, inside, cols, m_cols, C)
        tile_d = _tile(p_zd, pixel, inside, cols, m_cols, C)
        n, mean, m2, mean_d, mixed = _merge_dual(n, mean, m2, mean_d, mixed, tile, tile_d, inside)
    r = tl.rsqrt(m2 / (H * W) + EPS)
    s = mixed * r / (H * W)
    tl.store(p_stats + cols, mean, mask=m_cols)
    tl.store(p_stats + C + cols, r, mask=m_cols)
    tl.store(p_stats + 2 * C + cols, mean_d, mask=m_cols)
    tl.store(p_stats + 3 * C + cols, s, mask=m_cols)

    h = gd - r * s * g
    for w0 in range(0, WINDOWS, BW):
        pixel, inside, o_pixel, pooled = _windows(w0, H, W, BW)
        if WINDOWS > BW:
            z = _tile(p_z, pixel, inside, cols, m_cols, C)
            zd = _tile(p_zd, pixel, inside, cols, m_cols, C)
        a = (z - mean) * (g * r) + b
        ad = (zd - mean_d) * (g * r) + ((z - mean) * (h * r) + bd)
        o = tl.sum(kept(a, a), axis=0, keep_dims=True) * 0.25
        od = tl.sum(kept(a, ad), axis=0, keep_dims=True) * 0.25
        tl.store(p_o + o_pixel * C + cols, o, mask=pooled & m_cols)
        tl.store(p_od + o_pixel * C + cols, od, mask=pooled & m_cols)


@triton.jit
@no_type_check
def _pulled(
    p_z, p_god, w0, cols, m_cols, mean, gr, b, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr
):
    """Of the windows from w0 on: zc and Ad."""
    pixel, inside, o_pixel, pooled = _windows(w0, H, W, BW)
    zc = _tile(p_z, pixel, inside, cols, m_cols, C) - mean
    up = _tile(p_god, o_pixel, pooled, cols, m_cols, C) * 0.25
    return zc, kept(gr * zc + b, up)


@triton.jit(do_not_specialize=["g_stride", "b_stride", "B"])
@no_type_check
def backward_kernel(
    p_gzd, p_sums, p_z, p_stats, p_g, p_b, p_god, g_stride, b_stride, B, ROWS: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Eq. 5-6, with the sums of Ad n and Ad per image."""
    image, k, cols, m_cols = _place(B, C, BC)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    mean = _channels(p_stats + image * (ROWS * C), cols, m_cols)
    r = _channels(p_stats + image * (ROWS * C) + C, cols, m_cols)
    gr = _channels(p_g + k * g_stride, cols, m_cols) * r
    b = _channels(p_b + k * b_stride, cols, m_cols)
    p_z += image * (H * W * C)
    p_gzd += image * (H * W * C)
    p_god += image * ((H // 2) * (W // 2) * C)
    p_sums += image * (2 * C)

    zc, Ad = _pulled(p_z, p_god, 0, cols, m_cols, mean, gr, b, H, W, C, BW)
    sum_d, sum_dz = _over_plane(Ad), _over_plane(Ad * zc)
    for w0 in range(BW, WINDOWS, BW):
        tile, tile_d = _pulled(p_z, p_god, w0, cols, m_cols, mean, gr, b, H, W, C, BW)
        sum_d += _over_plane(tile_d)
        sum_dz += _over_plane(tile_d * tile)
    tl.store(p_sums + cols, sum_dz * r, mask=m_cols)
    tl.store(p_sums + C + cols, sum_d, mask=m_cols)

    k6, k7 = -gr * r * r * sum_dz / (H * W), -gr * sum_d / (H * W)
    for w0 in range(0, WINDOWS, BW):
        if WINDOWS > BW:
            zc, Ad = _pulled(p_z, p_god, w0, cols, m_cols, mean, gr, b, H, W, C, BW)
        pixel, inside, _, _ = _windows(w0, H, W, BW)
        tl.store(p_gzd + pixel * C + cols, gr * Ad + (k6 * zc + k7), mask=inside & m_cols)


@triton.jit
@no_type_check
def _pulled_dual(
    p_z, p_zd, p_go, p_god, w0, cols, m_cols, mean, mean_d, gr, b,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Of the windows from w0 on: zc and zdc (about their means), A and Ad."""
    pixel, inside, o_pixel, pooled = _windows(w0, H, W, BW)
    zc = _tile(p_z, pixel, inside, cols, m_cols, C) - mean
    zdc = _tile(p_zd, pixel, inside, cols, m_cols, C) - mean_d
    up = _tile(p_go, o_pixel, pooled, cols, m_cols, C) * 0.25
    up_d = _tile(p_god, o_pixel, pooled, cols, m_cols, C) * 0.25
    a = gr * zc + b
    return zc, zdc, kept(a, up), kept(a, up_d)


@triton.jit(do_not_specialize=["g_stride", "b_stride", "gd_stride", "B"])
@no_type_check
def adjoint_kernel(
    p_gz, p_gzd, p_sums, p_z, p_zd, p_stats, p_g, p_b, p_gd, p_go, p_god, g_stride, b_stride, gd_stride, B,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Eq. 11-17, with the sums of A n + Ad nd and A per image."""
    image, k, cols, m_cols = _place(B, C, BC)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    g = _channels(p_g + k * g_stride, cols, m_cols)
    b = _channels(p_b + k * b_stride, cols, m_cols)
    gd = _channels(p_gd + k * gd_stride, cols, m_cols)
    p_stats += image * (4 * C)
    mean = _channels(p_stats, cols, m_cols)
    r = _channels(p_stats + C, cols, m_cols)
    mean_d = _channels(p_stats + 2 * C, cols, m_cols)
    s = _channels(p_stats + 3 * C, cols, m_cols)
    gr = g * r
    p_z += image * (H * W * C)
    p_zd += image * (H * W * C)
    p_gz += image * (H * W * C)
    p_gzd += image * (H * W * C)
    p_go += image * ((H // 2) * (W // 2) * C)
    p_god += image * ((H // 2) * (W // 2) * C)
    p_sums += image * (2 * C)

    zc, zdc, A, Ad = _pulled_dual(p_z, p_zd, p_go, p_god, 0, cols, m_cols, mean, mean_d, gr, b, H, W, C, BW)
    sum_a, sum_az, sum_d, sum_dz = _over_plane(A), _over_plane(A * zc), _over_plane(Ad), _over_plane(Ad * zc)
    sum_dzd = _over_plane(Ad * zdc)
    for w0 in range(BW, WINDOWS, BW):
        tile, tile_zd, tile_a, tile_d = _pulled_dual(
            p_z, p_zd, p_go, p_god, w0, cols, m_cols, mean, mean_d, gr, b, H, W, C, BW
        )
        sum_a += _over_plane(tile_a)
        sum_az += _over_plane(tile_a * tile)
        sum_d += _over_plane(tile_d)
        sum_dz += _over_plane(tile_d * tile)
        sum_dzd += _over_plane(tile_d * tile_zd)
    sum_an, sum_dn = sum_az * r, sum_dz * r
    sum_dnd = r * (sum_dzd - s * sum_dn)  # eq. 13
    tl.store(p_sums + cols, sum_an + sum_dnd, mask=m_cols)
    tl.store(p_sums + C + cols, sum_a, mask=m_cols)

    # Eq. 17: z' = k1 A + k2 Ad + k3 zdc + k4 zc + k5,  zd' = k1 Ad + k3 zc + k7.
    h = gd - s * gr
    q = g * sum_dn / (H * W)
    k2, k3 = r * h, -r * r * q
    k4 = -r * r * ((g * (sum_an + sum_dnd) + h * sum_dn) / (H * W) - r * q * s)
    k5, k7 = -r * (g * sum_a + h * sum_d) / (H * W), -gr * sum_d / (H * W)
    for w0 in range(0, WINDOWS, BW):
        if WINDOWS > BW:
            zc, zdc, A, Ad = _pulled_dual(p_z, p_zd, p_go, p_god, w0, cols, m_cols, mean, mean_d, gr, b, H, W, C, BW)
        pixel, inside, _, _ = _windows(w0, H, W, BW)
        tl.store(p_gz + pixel * C + cols, gr * A + k2 * Ad + (k3 * zdc + (k4 * zc + k5)), mask=inside & m_cols)
        tl.store(p_gzd + pixel * C + cols, gr * Ad + (k3 * zc + k7), mask=inside & m_cols)


@triton.jit(do_not_specialize=["out_stride", "offset0", "offset1", "offset2", "B"])
@no_type_check
def sum_images_kernel(
    p_out, p_parts, out_stride, offset0, offset1, offset2, B,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, ACCUMULATE: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """out[k, ...] = sum of parts[k, :, ...]; in float64, so that a thousand images cost no accuracy."""
    k = tl.program_id(1).to(tl.int64)
    TOTAL: tl.constexpr = N0 + N1 + N2
    col = tl.program_id(0) * BL + tl.arange(0, BL)[None, :]
    p_parts += k * B * TOTAL
    total = tl.zeros([BR, BL], tl.float64)
    for row0 in range(0, B, BR):
        row = row0 + tl.arange(0, BR)[:, None]
        part = tl.load(p_parts + row.to(tl.int64) * TOTAL + col, mask=(row < B) & (col < TOTAL), other=0.0)
        total += part.to(tl.float64)
    value = tl.sum(total, axis=0, keep_dims=True)
    at = tl.where(col < N0, offset0 + col, tl.where(col < N0 + N1, offset1 + col - N0, offset2 + col - N0 - N1))
    p_out += k * out_stride + at
    if ACCUMULATE:
        value += tl.load(p_out, mask=col < TOTAL, other=0.0)
    tl.store(p_out, value.to(p_out.dtype.element_ty), mask=col < TOTAL)
