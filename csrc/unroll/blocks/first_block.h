// The first block without its map (docs section 6). It has few input channels, so z = w . p is linear in the 9 C
// values p of a patch, and everything instance norm asks of z follows from the patches' mean and covariance per
// image; the ReLU needs z once, in registers; its backward pass needs the signs and two sums over patches.
#pragma once
#include "block.h"
#include "first_windows.h"
#include "unroll/network.h"
#include "unroll/vector/carver.h"
#include "unroll/vector/gemm.h"
#if defined(PAD_TILES)
#include "first_tiles.h"
#endif

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

// Floats of an instruction set with matrix tiles go through FirstTiles.
struct NoTiles {
  static constexpr bool used = false;
  struct Scratch {
    void carve(Carver&, const NoTiles&) {}
  };
};
template <class T> struct TilesOf { using type = NoTiles; };
#if defined(PAD_TILES)
template <> struct TilesOf<float> { using type = FirstTiles; };
#endif

template <class T> struct FirstBlock {
  using V = Vec<T>;
  static constexpr int L = lanes<T>;

  index_t channels, in_height, in_width, pad;
  index_t taps, taps_padded, height, width, pooled_h, pooled_w;
  index_t row, plane;  // of the padded image, channel by channel
  index_t outputs, outputs_padded, stride, vectors;
  index_t offset[kMostTaps + 4];  // moments() takes taps four or eight at a time
  PoolWindows<T> windows;
  using Tiles = typename TilesOf<T>::type;
  Tiles tiles;

  static bool serves(const Network& net) { return 9 * net.channels <= kMostTaps; }

  void set_up(const Network& net) {
    channels = net.channels, in_height = net.height, in_width = net.width, pad = net.pad_first;
    height = in_height + 2 * (pad - 1), width = in_width + 2 * (pad - 1);
    pooled_h = height / 2, pooled_w = width / 2;
    taps = 9 * channels, taps_padded = padded<T>(taps);
    row = width + 2 + 2 * L;  // slack: whole vectors and pairs of pixels may be read past the end of a row
    plane = (height + 3) * row;
    outputs = net.net_width, outputs_padded = padded<T>(outputs), stride = pixel_stride<T>(outputs);
    vectors = outputs_padded / L;
    windows = {channels, row, plane, pooled_h, pooled_w, vectors, stride};
    for (index_t k = 0; k < kMostTaps + 4; ++k) offset[k] = k < taps ? (k / 9) * plane + (k % 9 / 3) * row + k % 3 : 0;
    if constexpr (Tiles::used) tiles.set_up({channels, taps, row, plane, pooled_h, pooled_w, vectors, stride});
  }

  // --- memory ------------------------------------------------------------------------------------------------------
  index_t padded_elements() const { return channels * plane + 2 * row; }

  // Filters: transposed [taps][stride] for the kernels and, in double, for the quadratic forms; by row for d/dx.
  struct Weights {
    T* columns;
    T* rows;  // [outputs_padded][taps_padded]
    double* exact;

    void carve(Carver& memory, const FirstBlock& f) {
      memory.take(columns, f.taps * f.stride), memory.take(rows, f.outputs_padded * f.taps_padded);
      memory.take(exact, f.taps * f.stride);
    }
  };

  // Kept from the plain step for its adjoint, per image: moments of the patches and the signs.
  struct Saved {
    double *covariance, *mean;  // [taps][taps], [taps]: of the shifted image
    Mask* signs;                // [pooled pixels][vectors][4]

    void carve(Carver& memory, const FirstBlock& f) {
      memory.take(covariance, f.taps * f.taps), memory.take(mean, f.taps);
      memory.take(signs, f.pooled_h * f.pooled_w * f.vectors * 4);
    }
  };

  // Per image of the group: the padded image and everything that depends on its moments.
  struct Image {
    T *x, *r, *s, *w1, *w2, *c1, *c2;  // a/4 = w1 . p + c1, ad/4 = w2 . p + c2    (eq. 31); c1, c2 end w1, w2
    double *cw, *cv, *work;            // covariance times filters [taps][stride]; five rows

    void carve(Carver& memory, const FirstBlock& f) {
      memory.take(x, f.padded_elements()), memory.take(r, f.stride), memory.take(s, f.stride);
      memory.take(w1, (f.taps + 1) * f.stride), memory.take(w2, (f.taps + 1) * f.stride);
      c1 = w1 + f.taps * f.stride, c2 = w2 + f.taps * f.stride;
      memory.take(cw, f.taps * f.stride), memory.take(cv, f.taps * f.stride);
      memory.take(work, 5 * f.stride);
    }
  };

  // Scratch of one thread.
  struct Scratch {
    T *sa, *sd, *k;        // patch sums [taps][stride]; coefficients [12][stride]
    T *windows, *points;   // transformed windows; sums by point [channels][16][stride]
    T *left, *right;       // [outputs_padded][taps_padded] twice: factors of Q
    T* filters;            // transformed, of both streams (window_pull)
    T *q, *q0;             // Q [taps][taps_padded], q0 [taps_padded]
    T* dx;                 // padded image gradient, one for each column of taps
    typename Tiles::Scratch tiles;

    void carve(Carver& memory, const FirstBlock& f) {
      memory.take(sa, f.taps * f.stride), memory.take(sd, f.taps * f.stride), memory.take(k, 12 * f.stride);
      memory.take(windows, f.windows.window_elements()), memory.take(points, f.windows.point_elements());
      memory.take(left, f.outputs_padded * f.taps_padded), memory.take(right, f.outputs_padded * f.taps_padded);
      memory.take(filters, f.windows.filter_elements());
      memory.take(q, f.taps * f.taps_padded), memory.take(q0, f.taps_padded);
      memory.take(dx, 3 * f.padded_elements());
      tiles.carve(memory, f.tiles);
    }
  };

  // --- once per call -----------------------------------------------------------------------------------------------
  void prepare(const T* w, Weights to) const {
    for (index_t n = 0; n < outputs; ++n)
      for (index_t k = 0; k < taps; ++k) {
        const T value = w[n * taps + k];
        to.columns[k * stride + n] = value, to.exact[k * stride + n] = double(value);
        to.rows[n * taps_padded + k] = value;
      }
  }
  void weight_gradient(T* const* parts, int count, T* w) const {
    for (index_t n = 0; n < outputs; ++n)
      for (index_t k = 0; k < taps; ++k) {
        T sum = 0;
        for (int i = 0; i < count; ++i) sum += parts[i][k * stride + n];
        w[n * taps + k] = sum;
      }
  }

  // --- once per image ----------------------------------------------------------------------------------------------
  // The padded image, shifted by each channel's mean (border included): instance norm ignores the shift, and the
  // moments lose their cancellation.
  void load_image(const T* x, T* to) const {
    for (index_t c = 0; c < channels; ++c) {
      const T* from = x + c * in_height * in_width;
      double sum = 0;
      for (index_t i = 0; i < in_height * in_width; ++i) sum += double(from[i]);
      const T shift = T(sum / double(in_height * in_width));
      T* out = to + c * plane;
      for (index_t i = 0; i < plane; ++i) out[i] = -shift;
      for (index_t y = 0; y < in_height; ++y)
        for (index_t i = 0; i < in_width; ++i) out[(y + pad) * row + pad + i] = from[y * in_width + i] - shift;
    }
  }

  // to[i] += the sum of the lanes of x[i], in double.
  template <int count> static PAD_INLINE void add_lanes(const V* x, double* to) {
    constexpr int D = lanes<double>;
    static_assert(count % D == 0, "whole vectors of sums");
#pragma GCC unroll 8
    for (int i = 0; i < count; i += D) {
      VecDouble rows[D];
#pragma GCC unroll 8
      for (int j = 0; j < D; ++j) rows[j] = widened(x[i + j]);
      store_unaligned(to + i, load_unaligned(to + i) + sums_of_rows<double>(rows));
    }
  }
  static PAD_INLINE VecDouble widened(VecDouble v) { return v; }
  static PAD_INLINE VecDouble widened(VecFloat v) {  // the sum of its halves
    typedef float Half __attribute__((vector_size(PAD_VECTOR_BYTES / 2)));
    Half half[2];
    __builtin_memcpy(half, &v, sizeof(v));
    return __builtin_convertvector(half[0], VecDouble) + __builtin_convertvector(half[1], VecDouble);
  }

  // Mean and covariance of the patches (eq. 28).
  void moments(const T* x, Saved to) const {
    constexpr int B = 4, M = 8;
    V tail = V{};
    for (int l = 0; l < L; ++l) tail[l] = l < (width - 1) % L + 1 ? T(1) : T(0);
    const index_t last = (width - 1) / L * L;
    const double scale = 1.0 / double(height * width);
    const index_t rows_at_once = max_of<index_t>(1, 64 * L / width);  // so long do sums stay in T
    for (index_t k = 0; k < taps; k += M) {
      double sum[M] = {};
      for (index_t y0 = 0; y0 < height; y0 += rows_at_once) {
        V part[M] = {};
        for (index_t y = y0; y < min_of(height, y0 + rows_at_once); ++y)
#pragma GCC unroll 8
          for (int i = 0; i < M; ++i) {
            const T* p = x + offset[k + i] + y * row;
            for (index_t at = 0; at < last; at += L) part[i] += load_unaligned(p + at);
            part[i] += tail * load_unaligned(p + last);
          }
        add_lanes<M>(part, sum);
      }
      for (index_t i = 0; i < min_of<index_t>(M, taps - k); ++i) to.mean[k + i] = sum[i] * scale;
    }
    for (index_t a = 0; a < taps; a += B)
      for (index_t b = a; b < taps; b += B) {
        double sum[B * B] = {};
        for (index_t y0 = 0; y0 < height; y0 += rows_at_once) {
          V part[B * B];
#pragma GCC unroll 16
          for (int i = 0; i < B * B; ++i) part[i] = V{};
          for (index_t y = y0; y < min_of(height, y0 + rows_at_once); ++y)
            for (index_t s = 0; s <= last; s += L) {
              V u[B], v[B];
#pragma GCC unroll 4
              for (int i = 0; i < B; ++i) {
                u[i] = load_unaligned(x + offset[a + i] + y * row + s);
                v[i] = load_unaligned(x + offset[b + i] + y * row + s);
                if (s == last) u[i] *= tail;
              }
#pragma GCC unroll 4
              for (int i = 0; i < B; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < B; ++j) part[i * B + j] += u[i] * v[j];
            }
          add_lanes<B * B>(part, sum);
        }
        for (int i = 0; i < B; ++i)
          for (int j = 0; j < B; ++j)
            if (a + i < taps && b + j < taps) {
              const double value = sum[i * B + j] * scale - to.mean[a + i] * to.mean[b + j];
              to.covariance[(a + i) * taps + b + j] = to.covariance[(b + j) * taps + a + i] = value;
            }
      }
  }

  // r, s and the image's own linear maps (eq. 29-31). `v` null: no tangent.
  void derive(Saved from, Weights w, const Weights* v, NormParameters<T> np, Image to) const {
    gemm<double, false>(taps, stride, taps, from.covariance, taps, w.exact, stride, to.cw, stride, false);
    if (v) gemm<double, false>(taps, stride, taps, from.covariance, taps, v->exact, stride, to.cv, stride, false);
    double *gr = to.work, *hr = gr + stride, *c1 = hr + stride, *c2 = c1 + stride, *cross = c2 + stride;
    std::memset(to.work, 0, 5 * stride * sizeof(double));
    for (index_t k = 0; k < taps; ++k) {
      const double *wk = w.exact + k * stride, *cwk = to.cw + k * stride;
      PAD_INDEPENDENT
      for (index_t n = 0; n < outputs_padded; ++n) gr[n] += wk[n] * cwk[n];
      if (!v) continue;
      const double* vk = v->exact + k * stride;
      PAD_INDEPENDENT
      for (index_t n = 0; n < outputs_padded; ++n) cross[n] += vk[n] * cwk[n];
    }
    for (index_t n = 0; n < outputs_padded; ++n) {
      const double r = 1 / __builtin_sqrt((gr[n] <= 0 ? 0 : gr[n]) + 1e-5), g = double(np.g[n]), s = r * cross[n];
      to.r[n] = T(r), to.s[n] = T(s);
      gr[n] = 0.25 * g * r;
      if (v) hr[n] = 0.25 * r * (double(np.gd[n]) - r * s * g);
    }
    for (index_t k = 0; k < taps; ++k) {
      const double *wk = w.exact + k * stride, mean = from.mean[k];
      T* w1 = to.w1 + k * stride;
      PAD_INDEPENDENT
      for (index_t n = 0; n < outputs_padded; ++n) {
        const double value = gr[n] * wk[n];
        w1[n] = T(value), c1[n] += value * mean;
      }
      if (!v) continue;
      const double* vk = v->exact + k * stride;
      T* w2 = to.w2 + k * stride;
      PAD_INDEPENDENT
      for (index_t n = 0; n < outputs_padded; ++n) {
        const double value = gr[n] * vk[n] + hr[n] * wk[n];
        w2[n] = T(value), c2[n] += value * mean;
      }
    }
    PAD_INDEPENDENT
    for (index_t n = 0; n < outputs_padded; ++n) to.c1[n] = T(0.25 * double(np.b[n]) - c1[n]);
    if (!v) return;
    PAD_INDEPENDENT
    for (index_t n = 0; n < outputs_padded; ++n) to.c2[n] = T(0.25 * double(np.bd[n]) - c2[n]);
  }

  // --- kernels -----------------------------------------------------------------------------------------------------
  // Two streams of linear maps of the patches of P pooled pixels (2 x 2P pixels): sum[pixel][stream].
  template <int P>
  PAD_INLINE void respond(const T* x, const T* wa, const T* wb, index_t ldw, V ca, V cb, V (&sum)[4 * P][2]) const {
#pragma GCC unroll 16
    for (int i = 0; i < 4 * P; ++i) sum[i][0] = ca, sum[i][1] = cb;
    for (index_t k = 0; k < taps; ++k) {
      const T* const p[2] = {x + offset[k], x + offset[k] + row};
      const V a = load(wa + k * ldw), b = load(wb + k * ldw);
#pragma GCC unroll 16
      for (int i = 0; i < 4 * P; ++i) {
        const V value = splat(p[i % 4 / 2][2 * (i / 4) + i % 2]);
        sum[i][0] += value * a, sum[i][1] += value * b;
      }
    }
  }

  enum Mode { kValues, kBoth, kTangentOnly };
  template <int P, Mode mode>
  PAD_INLINE void forward_pixels(const T* x, Image im, index_t n, index_t second, index_t y, index_t at, Mask* signs,
                                 View<T> o, View<T> od) const {
    V sum[4 * P][2];
    const T* wa = (mode == kTangentOnly ? im.w2 : im.w1) + n;
    const T* wb = mode == kBoth ? im.w2 + n : mode == kValues ? im.w1 + second : im.w2 + second;
    const T* ca = (mode == kTangentOnly ? im.c2 : im.c1) + n;
    const T* cb = mode == kBoth ? im.c2 + n : mode == kValues ? im.c1 + second : im.c2 + second;
    respond<P>(x + 2 * y * row + 2 * at, wa, wb, stride, load(ca), load(cb), sum);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      Mask* bits = signs + ((y * pooled_w + at + p) * vectors) * 4;
      Mask *first = bits + n / L * 4, *other = bits + second / L * 4;
      V left = V{}, right = V{};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const V a = sum[4 * p + i][0], b = sum[4 * p + i][1];
        if (mode == kTangentOnly) {
          left += select(first[i], a), right += select(other[i], b);
        } else if (mode == kBoth) {
          first[i] = positive(a);
          left += relu<T>(a), right += select(first[i], b);
        } else {
          first[i] = positive(a), other[i] = positive(b);
          left += relu<T>(a), right += relu<T>(b);
        }
      }
      if (mode == kBoth) {
        store(o.at(y, at + p) + n, left), store(od.at(y, at + p) + n, right);
      } else {
        const View<T>& to = mode == kValues ? o : od;
        store(to.at(y, at + p) + n, left);
        if (second != n) store(to.at(y, at + p) + second, right);
      }
    }
  }
  // o (and od) of one image, with the signs (eq. 31).
  template <Mode mode> void forward(Image im, Mask* signs, View<T> o, View<T> od, Scratch s) const {
    if constexpr (Tiles::used) {
      tiles.template forward<3, typename Tiles::Mode(mode)>(im.x, im.w1, im.w2, signs, o, od, s.tiles);
      return;
    }
    constexpr int P = kManyRegisters ? 2 : 1;
    const index_t step = mode == kBoth ? L : 2 * L;
    for (index_t n = 0; n < outputs_padded; n += step) {
      const index_t second = mode != kBoth && n + L < outputs_padded ? n + L : n;
      for (index_t y = 0; y < pooled_h; ++y) {
        index_t at = 0;
        for (; at + P <= pooled_w; at += P) forward_pixels<P, mode>(im.x, im, n, second, y, at, signs, o, od);
        for (; at < pooled_w; ++at) forward_pixels<1, mode>(im.x, im, n, second, y, at, signs, o, od);
      }
    }
  }

  // --- backward ----------------------------------------------------------------------------------------------------
  // Plain step: dW += sum zd' p (eq. 33).
  void backward_plain(Image im, Saved from, Weights w, NormParameters<T> np, View<const T> god, Scratch s, T* dw,
                      NormGradients<T> out) const {
    T* total = s.k;
    if constexpr (Tiles::used) {
      tiles.template pack_lines<3>(im.x, s.tiles.lines);
      tiles.template patch_sums<3>(from.signs, &god, nullptr, {s.sd, s.sd}, {total, total}, s.tiles);
    } else {
      windows.transform_image(im.x, s.windows);
      windows.patch_sums(s.windows, from.signs, god, s.points, s.sd, total);
    }
    center(s.sd, total, from.mean);
    accumulate_plain(im, w, np, s, total, dw, out);
  }
  // S <- (S - mean * total) / 4: the sums of the plane-centred patches; the 1/4 is the pooling's.
  void center(T* sums, T* total, const double* mean) const {
    for (index_t k = 0; k < taps; ++k) {
      T* row_k = sums + k * stride;
      const T mean_k = T(mean[k]);
      PAD_INDEPENDENT
      for (index_t n = 0; n < outputs_padded; ++n) row_k[n] = T(0.25) * (row_k[n] - mean_k * total[n]);
    }
    for (index_t n = 0; n < outputs_padded; ++n) total[n] *= T(0.25);
  }
  // out[n] = sum over taps of a[k][n] b[k][n]
  void dot(const T* a, const T* b, T* out) const {
    std::memset(out, 0, outputs_padded * sizeof(T));
    for (index_t k = 0; k < taps; ++k) {
      PAD_INDEPENDENT
      for (index_t n = 0; n < outputs_padded; ++n) out[n] += a[k * stride + n] * b[k * stride + n];
    }
  }
  void accumulate_plain(Image im, Weights w, NormParameters<T> np, Scratch s, const T* total, T* dw,
                        NormGradients<T> out) const {
    T *k1 = s.k + 6 * stride, *k6 = k1 + stride;
    dot(w.columns, s.sd, k6);
    for (index_t n = 0; n < outputs_padded; ++n) {
      const T r = im.r[n], sum_n = r * k6[n];  // sum Ad n
      out.g[n] += sum_n, out.b[n] += total[n];
      k1[n] = r * np.g[n], k6[n] = -r * r * np.g[n] * sum_n;  // times M / M
    }
    for (index_t k = 0; k < taps; ++k) {
      const index_t i = k * stride;
      PAD_INDEPENDENT
      for (index_t n = 0; n < outputs_padded; ++n) dw[i + n] += k1[n] * s.sd[i + n] + k6[n] * T(im.cw[i + n]);
    }
  }

  // Adjoint: dW += sum z' p, the norm's gradient, and the image's gradient if `dx` is not null (eq. 34-36).
  void backward_adjoint(Image im, Saved from, Weights w, Weights v, NormParameters<T> np, View<const T> go,
                        View<const T> god, Scratch s, T* dw, NormGradients<T> out, T* plain_dw,
                        NormGradients<T> plain_out, T* dx) const {
    T *total_a = s.k, *total_d = s.k + stride;
    T *k1 = s.k + 2 * stride, *k2 = k1 + stride, *k3 = k2 + stride, *k4 = k3 + stride;
    if constexpr (Tiles::used) {
      tiles.template pack_lines<3>(im.x, s.tiles.lines);
      tiles.template patch_sums<3>(from.signs, &go, &god, {s.sa, s.sd}, {total_a, total_d}, s.tiles);
    } else {
      windows.transform_image(im.x, s.windows);
      windows.patch_sums(s.windows, from.signs, go, s.points, s.sa, total_a);
      windows.patch_sums(s.windows, from.signs, god, s.points, s.sd, total_d);
    }
    center(s.sa, total_a, from.mean);
    center(s.sd, total_d, from.mean);
    const T count = T(height * width), scale = T(1) / count;
    T *an = s.k + 8 * stride, *dn = an + stride, *dz = dn + stride;
    dot(w.columns, s.sa, an), dot(w.columns, s.sd, dn), dot(v.columns, s.sd, dz);
    PAD_INDEPENDENT
    for (index_t n = 0; n < outputs_padded; ++n) {
      const T r = im.r[n], sn = im.s[n], g = np.g[n], h = np.gd[n] - r * sn * g;
      const T m_an = r * an[n] * scale, m_dn = r * dn[n] * scale, m_dnd = r * (dz[n] * scale - sn * m_dn), q = g * m_dn;
      out.g[n] += count * (m_an + m_dnd), out.b[n] += total_a[n];
      k1[n] = r * g, k2[n] = r * h, k3[n] = -r * r * q;
      k4[n] = -r * r * (g * m_an + h * m_dn - r * q * sn + g * m_dnd);
    }
    for (index_t k = 0; k < taps; ++k) {
      const index_t i = k * stride;
      PAD_INDEPENDENT
      for (index_t n = 0; n < outputs_padded; ++n)
        dw[i + n] +=
            k1[n] * s.sa[i + n] + k2[n] * s.sd[i + n] + count * (k3[n] * T(im.cv[i + n]) + k4[n] * T(im.cw[i + n]));
    }
    if (plain_dw) accumulate_plain(im, w, np, s, total_d, plain_dw, plain_out);
    if (dx) image_gradient(im, from, w, v, go, god, s, dx);
  }

  // The transpose of taking patches, of dp = A w1 + Ad w2 + Q p + q0 for every pixel (eq. 35, 36). The first two terms
  // go window by window in the transformed domain, the others pixel by pixel.
  void image_gradient(Image im, Saved from, Weights w, Weights v, View<const T> go, View<const T> god, Scratch s,
                      T* dx) const {
    const T *total_a = s.k, *total_d = s.k + stride;
    const T *k1 = s.k + 2 * stride, *k2 = k1 + stride, *k3 = k2 + stride, *k4 = k3 + stride;
    const T scale = T(1) / T(height * width);
    std::memset(s.q0, 0, taps_padded * sizeof(T));
    for (index_t n = 0; n < outputs_padded; ++n) {
      // z' = ... + k3 v.pc + k4 w.pc + k5,  zd' = ... + k3 w.pc + k7  (k6 = k3)
      const T k5 = -scale * (k1[n] * total_a[n] + k2[n] * total_d[n]), k7 = -scale * k1[n] * total_d[n];
      const T *wr = w.rows + n * taps_padded, *vr = v.rows + n * taps_padded;
      T *left = s.left + n * taps_padded, *right = s.right + n * taps_padded;
      PAD_INDEPENDENT
      for (index_t k = 0; k < taps_padded; ++k) {
        left[k] = k3[n] * vr[k] + k4[n] * wr[k];
        right[k] = k3[n] * wr[k];
        s.q0[k] += k5 * wr[k] + k7 * vr[k];
      }
    }
    gemm<T, true>(taps, taps_padded, outputs_padded, s.left, taps_padded, w.rows, taps_padded, s.q, taps_padded, false);
    gemm<T, true>(taps, taps_padded, outputs_padded, s.right, taps_padded, v.rows, taps_padded, s.q, taps_padded, true);
    for (index_t j = 0; j < taps; ++j)
      for (index_t k = 0; k < taps_padded; ++k) s.q0[k] -= T(from.mean[j]) * s.q[j * taps_padded + k];

    std::memset(s.dx, 0, 3 * padded_elements() * sizeof(T));
    windows.transform_filters(w.columns, v.columns, k1, k2, s.filters);
    windows.pull_streams(s.filters, from.signs, go, god, s.windows);
    windows.add_to_image(s.windows, s.dx);
    for (index_t y = 0; y < height; ++y) {
      constexpr int X = kManyRegisters ? 2 : 1;
      index_t x = 0;
      for (; x + X * L <= width; x += X * L) moments_part<X>(im.x, s, y, x);
      for (; x < width; x += L) moments_part<1>(im.x, s, y, x);
    }
    const index_t part = padded_elements();
    for (index_t c = 0; c < channels; ++c)
      for (index_t y = 0; y < in_height; ++y) {
        const T* from_row = s.dx + c * plane + (y + pad) * row + pad;
        T* to = dx + (c * in_height + y) * in_width;
        for (index_t x = 0; x < in_width; ++x) to[x] = from_row[x] + from_row[part + x] + from_row[2 * part + x];
      }
  }
  // The pull of Q p + q0 from X vectors of pixels. Each column of taps has an image of its own, since a store just
  // ahead of a load that overlaps it would hold that up.
  template <int X> PAD_INLINE void moments_part(const T* image, Scratch s, index_t y, index_t x) const {
    const T* from = image + y * row + x;
    for (index_t c = 0; c < channels; ++c) {
      V sum[9][X];
#pragma GCC unroll 9
      for (int k = 0; k < 9; ++k)
#pragma GCC unroll 2
        for (int i = 0; i < X; ++i) sum[k][i] = splat(s.q0[9 * c + k]);
      const T* q = s.q + 9 * c;
      for (index_t j = 0; j < taps; ++j, q += taps_padded) {
        V value[X];
#pragma GCC unroll 2
        for (int i = 0; i < X; ++i) value[i] = load_unaligned(from + offset[j] + i * L);
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) {
          const V factor = splat(q[k]);
#pragma GCC unroll 2
          for (int i = 0; i < X; ++i) sum[k][i] += factor * value[i];
        }
      }
#pragma GCC unroll 9
      for (int k = 0; k < 9; ++k) {
        T* to = s.dx + k % 3 * padded_elements() + c * plane + (y + k / 3) * row + x + k % 3;
        if (x + X * L <= width) {
#pragma GCC unroll 2
          for (int i = 0; i < X; ++i) store_unaligned(to + i * L, load_unaligned(to + i * L) + sum[k][i]);
        } else {
          for (int i = 0; i < X * L && x + i < width; ++i) to[i] += sum[k][i / L][i % L];
        }
      }
    }
  }
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
