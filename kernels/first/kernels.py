"""The kernels of the first block. Tiles: taps x pixels [T, BW], pixels x outputs [BW, BN], taps x outputs [T, BN]."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from ..block.kernels import kept
from ..launch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
@no_type_check
def _product(a, b, PRECISION: tl.constexpr):
    """The matrix product of the two."""
    if PRECISION == "bf16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if INTERPRETED:  # its products of bfloat16 are those of the bits taken as integers
            a, b = a.to(tl.float32), b.to(tl.float32)
        c = tl.dot(a, b)
    elif a.dtype == tl.float64:
        c = tl.dot(a, b, input_precision="ieee", out_dtype=tl.float64)
    else:
        c = tl.dot(a, b, input_precision=PRECISION)
    return c


@triton.jit
@no_type_check
def _patches(
    p_image, y, x, exists, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr
):
    """Patches [T, BW] of pixels [1, BW] of the map, a 1 behind them; 0 where there is no such pixel."""
    # Taps are the rows: neighbouring threads then read neighbouring pixels.
    HP: tl.constexpr = H + 2 * PAD
    WP: tl.constexpr = W + 2 * PAD
    tap = tl.arange(0, T)[:, None]
    offset = (tap // 9) * (HP * WP) + (tap % 9 // 3) * WP + tap % 3
    p = tl.load(p_image + (y * WP + x) + offset, mask=(tap < 9 * C) & exists, other=0.0)
    return tl.where(tap == 9 * C, exists.to(p.dtype), p)


@triton.jit
@no_type_check
def _filters(p_theta, at, o, C: tl.constexpr, N: tl.constexpr, T: tl.constexpr):
    """Filters [T, BN] of outputs [1, BN]."""
    tap = tl.arange(0, T)[:, None]
    return tl.load(p_theta + at + o * (9 * C) + tap, mask=(tap < 9 * C) & (o < N), other=0.0)


@triton.jit(do_not_specialize=["x_stride_k", "x_stride_b", "B"])
@no_type_check
def moments_kernel(
    p_gram, p_images, p_x, x_stride_k, x_stride_b, B, CHUNK: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A shifted image with its border, and the sum of p p^T over one chunk of the map's pixels (eq. 28)."""
    image = tl.program_id(0).to(tl.int64)
    ROWS: tl.constexpr = H + 2 * PAD - 2
    COLUMNS: tl.constexpr = W + 2 * PAD - 2
    HP: tl.constexpr = H + 2 * PAD
    WP: tl.constexpr = W + 2 * PAD
    p_x += (image // B) * x_stride_k + (image % B) * x_stride_b
    p_images += image * (C * HP * WP)
    first = tl.program_id(1) * CHUNK
    last = tl.minimum(first + CHUNK, ROWS * COLUMNS)
    # The rows under the chunk's patches. Two chunks may both write a row, with the same values.
    begin, end = first // COLUMNS * WP, ((last - 1) // COLUMNS + 3) * WP
    for c in tl.static_range(C):
        total = tl.zeros([BP], tl.float64)
        for m0 in range(0, H * W, BP):
            pixel = m0 + tl.arange(0, BP)
            total += tl.load(p_x + c * (H * W) + pixel, mask=pixel < H * W, other=0.0).to(tl.float64)
        mean = (tl.sum(total, axis=0) / (H * W)).to(p_x.dtype.element_ty)
        for m0 in range(begin, end, BP):
            pixel = m0 + tl.arange(0, BP)
            y, x = pixel // WP - PAD, pixel % WP - PAD
            inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
            value = tl.load(p_x + c * (H * W) + y * W + x, mask=inside, other=0.0) - mean
            tl.store(p_images + c * (HP * WP) + pixel, value, mask=pixel < end)
    tl.debug_barrier()  # the program now reads what its other threads have written

    gram = tl.zeros([T, T], tl.float64)
    for m0 in range(first, last, BM):
        pixel = m0 + tl.arange(0, BM)[None, :]
        p = _patches(p_images, pixel // COLUMNS, pixel % COLUMNS, pixel < last, C, H, W, PAD, T)
        gram += _product(p, tl.trans(p), PRECISION).to(tl.float64)
    p_gram += (image * tl.num_programs(1) + tl.program_id(1)) * (T * T)
    tl.store(p_gram + tl.arange(0, T)[:, None] * T + tl.arange(0, T)[None, :], gram)


@triton.jit(do_not_specialize=["w_offset", "theta_stride", "v_stride", "B"])
@no_type_check
def planes_kernel(
    p_planes, p_mean, p_cov, p_gram, p_theta, p_v, w_offset, theta_stride, v_stride, B,
    SHARED: tl.constexpr, CHUNKS: tl.constexpr, DUAL: tl.constexpr, EPS: tl.constexpr, BN: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Mean and covariance of an image's patches (eq. 28), r and s of a few of its planes (eq. 29-30)."""
    image = tl.program_id(0).to(tl.int64)
    k = image // B
    source = image % B if SHARED else image
    tap, column = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    p_gram += source * (CHUNKS * T * T) + tap * T + column
    gram = tl.load(p_gram)
    for chunk in range(1, CHUNKS):
        gram += tl.load(p_gram + chunk * (T * T))
    gram = gram / ((H + 2 * PAD - 2) * (W + 2 * PAD - 2))
    # The 1 behind the taps has left their sums in its row and column.
    mean_rows = tl.sum(tl.where(column == 9 * C, gram, 0.0), axis=1)[:, None]
    mean_columns = tl.sum(tl.where(tap == 9 * C, gram, 0.0), axis=0)[None, :]
    cov = tl.where((tap < 9 * C) & (column < 9 * C), gram - mean_rows * mean_columns, 0.0)
    if tl.program_id(1) == 0 and source == image:
        mean_columns = tl.where(column < 9 * C, mean_columns, 0.0)
        tl.store(p_mean + image * T + column, mean_columns.to(p_mean.dtype.element_ty))
        tl.store(p_cov + image * (T * T) + tap * T + column, cov.to(p_cov.dtype.element_ty))

    # Quadratic forms cancel where a filter is a derivative and the image smooth: in double precision.
    o = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    w = _filters(p_theta, k * theta_stride + w_offset, o, C, N, T).to(tl.float64)
    cw = _product(cov, w, "ieee")
    var = tl.sum(w * cw, axis=0, keep_dims=True)
    r = 1.0 / tl.sqrt(tl.where(var < 0.0, 0.0, var) + EPS)
    p_planes += image * ((1 + DUAL) * N) + o
    tl.store(p_planes, r.to(p_planes.dtype.element_ty), mask=o < N)
    if DUAL:
        v = _filters(p_v, k * v_stride + w_offset, o, C, N, T).to(tl.float64)
        s = r * tl.sum(v * cw, axis=0, keep_dims=True)
        tl.store(p_planes + N, s.to(p_planes.dtype.element_ty), mask=o < N)


@triton.jit
@no_type_check
def _source(p_mean, image, B, SHARED: tl.constexpr, T: tl.constexpr):
    """The image that has the patches, and their mean [T, 1]."""
    source = image % B if SHARED else image
    return source, tl.load(p_mean + source * T + tl.arange(0, T)[:, None])


@triton.jit
@no_type_check
def _vector(p, at, o, N: tl.constexpr):
    return tl.load(p + at + o, mask=o < N, other=0.0)


@triton.jit
@no_type_check
def _rectified(
    p_theta, w_offset, g_offset, b_offset, p_plane, mean, o, C: tl.constexpr, N: tl.constexpr, T: tl.constexpr
):
    """Eq. 31: w1 [T, BN] and c1 [1, BN] with a / 4 = w1 . p + c1; p_theta is the trajectory's, p_plane the image's."""
    scale = _vector(p_theta, g_offset, o, N) * _vector(p_plane, 0, o, N) * 0.25
    w = _filters(p_theta, w_offset, o, C, N, T) * scale
    return w, _vector(p_theta, b_offset, o, N) * 0.25 - tl.sum(w * mean, axis=0, keep_dims=True)


@triton.jit
@no_type_check
def _rectified_dual(
    p_theta, p_v, w_offset, g_offset, b_offset, p_plane, mean, o, C: tl.constexpr, N: tl.constexpr, T: tl.constexpr
):
    """Eq. 31: w2 [T, BN] and c2 [1, BN] with ad / 4 = w2 . p + c2."""
    r = _vector(p_plane, 0, o, N) * 0.25
    scale = _vector(p_theta, g_offset, o, N) * r
    h_scale = _vector(p_v, g_offset, o, N) * r - _vector(p_plane, N, o, N) * scale * (4.0 * r)
    w = _filters(p_v, w_offset, o, C, N, T) * scale + _filters(p_theta, w_offset, o, C, N, T) * h_scale
    return w, _vector(p_v, b_offset, o, N) * 0.25 - tl.sum(w * mean, axis=0, keep_dims=True)


@triton.jit(
    do_not_specialize=[
        "w_offset", "g_offset", "b_offset", "theta_stride", "v_stride", "B",
    ]
)  # fmt: skip
@no_type_check
def pooled_kernel(
    p_o, p_od, p_planes, p_images, p_mean, p_theta, p_v, w_offset, g_offset, b_offset,
    theta_stride, v_stride, B,
    SHARED: tl.constexpr, DUAL: tl.constexpr, SHARES: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """O and od are sums of relu(a) / 4 and [a > 0] ad / 4, both affine in a patch."""
    image = (tl.program_id(0) // SHARES).to(tl.int64)
    k = image // B
    o = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    WW: tl.constexpr = (W + 2 * PAD - 2) // 2
    WINDOWS: tl.constexpr = ((H + 2 * PAD - 2) // 2) * WW
    SHARE: tl.constexpr = tl.cdiv(tl.cdiv(WINDOWS, BW), SHARES) * BW
    source, mean = _source(p_mean, image, B, SHARED, T)
    p_images += source * (C * (H + 2 * PAD) * (W + 2 * PAD))
    p_theta += k * theta_stride
    p_v += k * v_stride
    p_planes += image * ((1 + DUAL) * N)
    w, c = _rectified(p_theta, w_offset, g_offset, b_offset, p_planes, mean, o, C, N, T)
    if DUAL:
        wd, cd = _rectified_dual(p_theta, p_v, w_offset, g_offset, b_offset, p_planes, mean, o, C, N, T)
    first = (tl.program_id(0) % SHARES) * SHARE
    for w0 in range(first, tl.minimum(first + SHARE, WINDOWS), BW):
        window = w0 + tl.arange(0, BW)[None, :]
        total = tl.zeros([BW, BN], w.dtype)
        total_d = tl.zeros([BW, BN], w.dtype)
        for q in range(4):
            y, x = 2 * (window // WW) + q // 2, 2 * (window % WW) + q % 2
            p = tl.trans(_patches(p_images, y, x, window < WINDOWS, C, H, W, PAD, T))
            a = _product(p, w, PRECISION) + c
            total += kept(a, a)
            if DUAL:
                total_d += kept(a, _product(p, wd, PRECISION) + cd)
        row = w0 + tl.arange(0, BW)[:, None]
        at = image * (WINDOWS * N) + row * N + o
        tl.store(p_o + at, total, mask=(row < WINDOWS) & (o < N))
        if DUAL:
            tl.store(p_od + at, total_d, mask=(row < WINDOWS) & (o < N))


@triton.jit(do_not_specialize=["w_offset", "g_offset", "b_offset", "theta_stride", "B"])
@no_type_check
def patch_sums_kernel(
    p_sums, p_planes, p_images, p_mean, p_theta, p_go, p_god, w_offset, g_offset, b_offset,
    theta_stride, B,
    SHARED: tl.constexpr, PLANES: tl.constexpr, DUAL: tl.constexpr,
    SHARES: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Eq. 32: sums of A p and Ad p, or of Ad p alone, over a share of the windows; behind the taps the plain sum."""
    image = (tl.program_id(0) // SHARES).to(tl.int64)
    k = image // B
    o = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    WW: tl.constexpr = (W + 2 * PAD - 2) // 2
    WINDOWS: tl.constexpr = ((H + 2 * PAD - 2) // 2) * WW
    SHARE: tl.constexpr = tl.cdiv(tl.cdiv(WINDOWS, BW), SHARES) * BW
    source, mean = _source(p_mean, image, B, SHARED, T)
    p_images += source * (C * (H + 2 * PAD) * (W + 2 * PAD))
    p_theta += k * theta_stride
    w, c = _rectified(p_theta, w_offset, g_offset, b_offset, p_planes + image * (PLANES * N), mean, o, C, N, T)
    sum_a = tl.zeros([BN, T], w.dtype)
    sum_d = tl.zeros([BN, T], w.dtype)
    first = (tl.program_id(0) % SHARES) * SHARE
    for w0 in range(first, tl.minimum(first + SHARE, WINDOWS), BW):
        window = w0 + tl.arange(0, BW)[None, :]
        row = w0 + tl.arange(0, BW)[:, None]
        at = image * (WINDOWS * N) + row * N + o
        up_d = tl.load(p_god + at, mask=(row < WINDOWS) & (o < N), other=0.0)
        if DUAL:
            up = tl.load(p_go + at, mask=(row < WINDOWS) & (o < N), other=0.0)
        for q in range(4):
            y, x = 2 * (window // WW) + q // 2, 2 * (window % WW) + q % 2
            p = _patches(p_images, y, x, window < WINDOWS, C, H, W, PAD, T)
            a = _product(tl.trans(p), w, PRECISION) + c
            sum_d += _product(tl.trans(kept(a, up_d)), tl.trans(p), PRECISION)
            if DUAL:
                sum_a += _product(tl.trans(kept(a, up)), tl.trans(p), PRECISION)
    rows, tap = tl.program_id(1) * BN + tl.arange(0, BN)[:, None], tl.arange(0, T)[None, :]
    p_sums += tl.program_id(0).to(tl.int64) * ((1 + DUAL) * N * T)
    if DUAL:
        tl.store(p_sums + rows * T + tap, sum_a * 0.25, mask=rows < N)
        p_sums += N * T
    tl.store(p_sums + rows * T + tap, sum_d * 0.25, mask=rows < N)


@triton.jit
@no_type_check
def _total(p_sums, o, C: tl.constexpr, N: tl.constexpr, T: tl.constexpr, SHARES: tl.constexpr, STRIDE: tl.constexpr):
    """A sum over patches [T, BN] from its shares, and the plain sum behind it [1, BN]."""
    tap = tl.arange(0, T)[:, None]
    total = tl.load(p_sums + o * T + tap, mask=o < N, other=0.0)
    for share in range(1, SHARES):
        total += tl.load(p_sums + share * STRIDE + o * T + tap, mask=o < N, other=0.0)
    plain = tl.sum(tl.where(tap == 9 * C, total, 0.0), axis=0, keep_dims=True)
    return tl.where(tap < 9 * C, total, 0.0), plain


@triton.jit(do_not_specialize=["w_offset", "g_offset", "theta_stride", "v_stride", "B"])
@no_type_check
def gradients_kernel(
    p_parts, p_quadratic, p_planes, p_mean, p_cov, p_sums, p_theta, p_v, w_offset, g_offset,
    theta_stride, v_stride, B,
    SHARED: tl.constexpr, PLANES: tl.constexpr, SHARES: tl.constexpr, DUAL: tl.constexpr, IMAGES: tl.constexpr,
    BN: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr,
    T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """An image's W', g' and b' (eq. 33-34, 16 or 6), and a few outputs' share of Q with q0 as its last row (eq. 36)."""
    image = tl.program_id(0).to(tl.int64)
    k = image // B
    M: tl.constexpr = (H + 2 * PAD - 2) * (W + 2 * PAD - 2)
    source, mean = _source(p_mean, image, B, SHARED, T)
    tap, column = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    cov = tl.load(p_cov + source * (T * T) + tap * T + column)
    p_theta += k * theta_stride
    p_v += k * v_stride
    p_parts += image * ((9 * C + 2) * N)
    p_planes += image * (PLANES * N)
    STRIDE: tl.constexpr = (1 + DUAL) * T * N
    p_sums += image * (SHARES * STRIDE)
    o = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    w = _filters(p_theta, w_offset, o, C, N, T)
    g = _vector(p_theta, g_offset, o, N)
    r = _vector(p_planes, 0, o, N)
    cw = _product(cov, w, PRECISION)
    if DUAL:
        v = _filters(p_v, w_offset, o, C, N, T)
        s = _vector(p_planes, N, o, N)
        h = _vector(p_v, g_offset, o, N) - r * s * g
        Ap, sum_a = _total(p_sums, o, C, N, T, SHARES, STRIDE)
        Adp, sum_d = _total(p_sums + N * T, o, C, N, T, SHARES, STRIDE)
        Ap -= mean * sum_a
        Adp -= mean * sum_d
        sum_an = r * tl.sum(w * Ap, axis=0, keep_dims=True)
        sum_dn = r * tl.sum(w * Adp, axis=0, keep_dims=True)
        sum_dnd = r * (tl.sum(v * Adp, axis=0, keep_dims=True) - s * sum_dn)  # eq. 13
        q = g * sum_dn / M
        k3 = -r * r * q
        k4 = -r * r * ((g * (sum_an + sum_dnd) + h * sum_dn) / M - r * q * s)
        gw = (r * g) * Ap + (r * h) * Adp + M * (k3 * _product(cov, v, PRECISION) + k4 * cw)
        gg, gb = sum_an + sum_dnd, sum_a
        if IMAGES:
            # Q is symmetric, so that its rows are its columns.
            quadratic = _product(w, tl.trans(k3 * v + k4 * w), PRECISION)
            quadratic += _product(v, tl.trans(k3 * w), PRECISION)
            linear = tl.sum(-r * (g * sum_a + h * sum_d) / M * w - r * g * sum_d / M * v, axis=1, keep_dims=True)
            constant = linear - tl.sum(quadratic * tl.trans(mean), axis=1, keep_dims=True)
            p_quadratic += (image * tl.num_programs(1) + tl.program_id(1)) * (T * T)
            tl.store(p_quadratic + tap * T + column, quadratic, mask=tap != 9 * C)
            tl.store(p_quadratic + 9 * C * T + tap, constant)
    else:
        Adp, gb = _total(p_sums, o, C, N, T, SHARES, STRIDE)
        Adp -= mean * gb
        gg = r * tl.sum(w * Adp, axis=0, keep_dims=True)
        gw = (r * g) * (Adp - (r * gg) * cw)
    tl.store(p_parts + o * (9 * C) + tap, gw, mask=(tap < 9 * C) & (o < N))
    tl.store(p_parts + 9 * C * N + o, gg, mask=o < N)
    tl.store(p_parts + (9 * C + 1) * N + o, gb, mask=o < N)


@triton.jit(
    do_not_specialize=[
        "w_offset", "g_offset", "b_offset", "theta_stride", "v_stride", "B",
    ]
)  # fmt: skip
@no_type_check
def patch_gradient_kernel(
    p_patches, p_planes, p_images, p_mean, p_quadratic, p_theta, p_v, p_go, p_god, w_offset, g_offset, b_offset,
    theta_stride, v_stride, B,
    SHARED: tl.constexpr, SHARES: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Eq. 35 for every pixel of the map, windows that are not pooled included."""
    ROWS: tl.constexpr = H + 2 * PAD - 2
    COLUMNS: tl.constexpr = W + 2 * PAD - 2
    WW: tl.constexpr = (COLUMNS + 1) // 2
    WINDOWS: tl.constexpr = ((ROWS + 1) // 2) * WW
    CHUNKS: tl.constexpr = tl.cdiv(WINDOWS, BW)
    image = (tl.program_id(0) // CHUNKS).to(tl.int64)
    w0 = (tl.program_id(0) % CHUNKS) * BW
    k = image // B
    source, mean = _source(p_mean, image, B, SHARED, T)
    p_images += source * (C * (H + 2 * PAD) * (W + 2 * PAD))
    p_theta += k * theta_stride
    p_v += k * v_stride
    p_planes += image * (2 * N)
    p_patches += image * (4 * 9 * C * WINDOWS)
    tap, column = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    p_quadratic += image * (SHARES * T * T) + tap * T + column
    quadratic = tl.load(p_quadratic)
    for share in range(1, SHARES):
        quadratic += tl.load(p_quadratic + share * (T * T))

    window = w0 + tl.arange(0, BW)[None, :]
    row = w0 + tl.arange(0, BW)[:, None]
    pooled = (row // WW < ROWS // 2) & (row % WW < COLUMNS // 2)
    at = image * ((ROWS // 2) * (COLUMNS // 2) * N) + ((row // WW) * (COLUMNS // 2) + row % WW) * N
    # A pixel of the windows at a time: four patches and their gradients would not fit into registers.
    for q in range(4):
        y, x = 2 * (window // WW) + q // 2, 2 * (window % WW) + q % 2
        exists = (window < WINDOWS) & (y < ROWS) & (x < COLUMNS)
        p = tl.trans(_patches(p_images, y, x, exists, C, H, W, PAD, T))
        gp = _product(p, quadratic, PRECISION)
        for o0 in range(0, N, BN):
            o = o0 + tl.arange(0, BN)[None, :]
            w, c = _rectified(p_theta, w_offset, g_offset, b_offset, p_planes, mean, o, C, N, T)
            wd, _ = _rectified_dual(p_theta, p_v, w_offset, g_offset, b_offset, p_planes, mean, o, C, N, T)
            up = tl.load(p_go + at + o, mask=pooled & (o < N), other=0.0)
            up_d = tl.load(p_god + at + o, mask=pooled & (o < N), other=0.0)
            a = _product(p, w, PRECISION) + c
            gp += _product(kept(a, up), tl.trans(w), PRECISION)
            gp += _product(kept(a, up_d), tl.trans(wd), PRECISION)
        # Windows innermost: the next kernel reads neighbouring pixels.
        place = (q * 9 * C + column) * WINDOWS + row
        tl.store(p_patches + place, gp, mask=(column < 9 * C) & (row < WINDOWS))


@triton.jit
@no_type_check
def fold_kernel(
    p_gx, p_patches,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The transpose of taking patches: a pixel's gradient is the sum over the patches that it is in."""
    ROWS: tl.constexpr = H + 2 * PAD - 2
    COLUMNS: tl.constexpr = W + 2 * PAD - 2
    WW: tl.constexpr = (COLUMNS + 1) // 2
    WINDOWS: tl.constexpr = ((ROWS + 1) // 2) * WW
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    p_patches += image * (4 * 9 * C * WINDOWS)
    for c in tl.static_range(C):
        total = tl.zeros([BM], p_gx.dtype.element_ty)
        for tap in tl.static_range(9):
            y, x = pixel // W + (PAD - tap // 3), pixel % W + (PAD - tap % 3)
            inside = (y >= 0) & (y < ROWS) & (x >= 0) & (x < COLUMNS) & (pixel < H * W)
            place = ((y % 2 * 2 + x % 2) * (9 * C) + c * 9 + tap) * WINDOWS + (y // 2) * WW + x // 2
            total += tl.load(p_patches + place, mask=inside, other=0.0)
        tl.store(p_gx + image * (C * H * W) + c * (H * W) + pixel, total, mask=pixel < H * W)
