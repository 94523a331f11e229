// Folder blocks/: what a network has beside its convolutions, the fused first block and the classifier. It includes
// conv/, vector/ and network.h; layout and step may include it.
//
// Instance norm, ReLU and 2x2 average pooling of one channels-last image, fused: forward, tangent, and the backward
// passes of the plain step and of (z, zd) -> (o, od). Equation numbers are those of docs/cpu_engine.md.
#pragma once
#include "unroll/conv/tiles.h"
#include "unroll/vector/simd.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

// Per (image, channel): mean of z, r = (var + eps)^-1/2, mean of zd, s = mean(n zd).
template <class T> struct Stats {
  T *mean, *r, *mean_d, *s;
  static Stats at(T* base, index_t stride) { return {base, base + stride, base + 2 * stride, base + 3 * stride}; }
};

// Norm parameters and their components along v, padded with zeros to whole cache lines.
template <class T> struct NormParameters { const T *g, *b, *gd, *bd; };

template <class T> struct NormGradients {
  T *g, *b;  // padded accumulators
};

template <class T> PAD_INLINE Vec<T> rsqrt_eps(Vec<T> variance) {
  Vec<T> r;
  for (int l = 0; l < lanes<T>; ++l) r[l] = T(1) / T(__builtin_sqrt(double(variance[l]) + 1e-5));
  return r;
}

template <class T> struct Plane {
  using V = Vec<T>;
  static constexpr int L = lanes<T>;
  index_t height, width, channels, row, pixel;  // channels padded; row and pixel strides of z, zd, z', zd'

  // Sums over the plane, row by row, of N vectors of channels. F: (y, x, n, sums) adds to its sums.
  template <int N, int S, class F> PAD_INLINE void sum_rows(V (&total)[S][N], F add) const {
    for (int s = 0; s < S; ++s)
      for (int n = 0; n < N; ++n) total[s][n] = V{};
    for (index_t y = 0; y < height; ++y) {
      V part[S][N];
#pragma GCC unroll 5
      for (int s = 0; s < S; ++s)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) part[s][n] = V{};
      for (index_t x = 0; x < width; ++x) add(y, x, part);
#pragma GCC unroll 5
      for (int s = 0; s < S; ++s)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) total[s][n] += part[s][n];
    }
  }

  // eq. 2 and 9
  template <int N, bool tangent> void stats_of(index_t c, const T* z, const T* zd, Stats<T> st) const {
    const T scale = T(1) / T(height * width);
    V total[2][N], mean[N], mean_d[N];
    sum_rows<N, 2>(total, [&](index_t y, index_t x, V(&s)[2][N]) __attribute__((always_inline)) {
      const index_t at = y * row + x * pixel + c;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        s[0][n] += load(z + at + n * L);
        if (tangent) s[1][n] += load(zd + at + n * L);
      }
    });
    for (int n = 0; n < N; ++n) mean[n] = total[0][n] * scale, mean_d[n] = total[1][n] * scale;
    sum_rows<N, 2>(total, [&](index_t y, index_t x, V(&s)[2][N]) __attribute__((always_inline)) {
      const index_t at = y * row + x * pixel + c;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const V zc = load(z + at + n * L) - mean[n];
        s[0][n] += zc * zc;
        if (tangent) s[1][n] += zc * (load(zd + at + n * L) - mean_d[n]);
      }
    });
    for (int n = 0; n < N; ++n) {
      const V r = rsqrt_eps<T>(total[0][n] * scale);
      store(st.mean + c + n * L, mean[n]);
      store(st.r + c + n * L, r);
      if (tangent) store(st.mean_d + c + n * L, mean_d[n]), store(st.s + c + n * L, r * total[1][n] * scale);
    }
  }

  // o = pool(relu(g n + b)), od = pool([a > 0] ad)   (eq. 3, 10)
  template <int N, bool tangent>
  void pool(index_t c, const T* z, const T* zd, Stats<T> st, NormParameters<T> np, View<T> o, View<T> od) const {
    V mean[N], gr[N], b[N], mean_d[N], hr[N], bd[N];
    for (int n = 0; n < N; ++n) {
      const index_t k = c + n * L;
      mean[n] = load(st.mean + k), gr[n] = load(np.g + k) * load(st.r + k), b[n] = load(np.b + k);
      if (tangent) {
        mean_d[n] = load(st.mean_d + k), bd[n] = load(np.bd + k);
        hr[n] = (load(np.gd + k) - load(st.r + k) * load(st.s + k) * load(np.g + k)) * load(st.r + k);
      }
    }
    for (index_t y = 0; y < height / 2; ++y)
      for (index_t x = 0; x < width / 2; ++x) {
        V sum[N], sum_d[N];
        for (int n = 0; n < N; ++n) sum[n] = V{}, sum_d[n] = V{};
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          const index_t at = (2 * y + q / 2) * row + (2 * x + q % 2) * pixel + c;
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            const V zc = load(z + at + n * L) - mean[n];
            const V a = gr[n] * zc + b[n];
            sum[n] += relu<T>(a);
            if (tangent) {
              const V ad = gr[n] * (load(zd + at + n * L) - mean_d[n]) + (hr[n] * zc + bd[n]);
              sum_d[n] += keep_positive<T>(a, ad);
            }
          }
        }
        for (int n = 0; n < N; ++n) {
          store(o.at(y, x) + c + n * L, sum[n] * T(0.25));
          if (tangent) store(od.at(y, x) + c + n * L, sum_d[n] * T(0.25));
        }
      }
  }

  template <bool tangent>
  void forward(const T* z, const T* zd, Stats<T> st, NormParameters<T> np, View<T> o, View<T> od) const {
    index_t c = 0;
    for (; c + 4 * L <= channels; c += 4 * L) {
      stats_of<4, tangent>(c, z, zd, st);
      pool<4, tangent>(c, z, zd, st, np, o, od);
    }
    for (; c < channels; c += L) {
      stats_of<1, tangent>(c, z, zd, st);
      pool<1, tangent>(c, z, zd, st, np, o, od);
    }
  }

  // zd' of the plain step from od' (eq. 5-6): gzd and, when wanted, the norm's gradient.
  template <int N>
  void plain(index_t c, const T* z, Stats<T> st, NormParameters<T> np, View<const T> god, T* gzd,
             NormGradients<T> out) const {
    const T count = T(height * width), scale = T(1) / count;
    V mean[N], r[N], gr[N], b[N], total[2][N];
    for (int n = 0; n < N; ++n) {
      const index_t k = c + n * L;
      mean[n] = load(st.mean + k), r[n] = load(st.r + k), gr[n] = load(np.g + k) * r[n], b[n] = load(np.b + k);
    }
    const index_t h2 = height / 2, w2 = width / 2;
    // Rows and columns beyond the pooled area receive no gradient.
    const Plane pooled{h2 * 2, w2 * 2, channels, row, pixel};
    pooled.template sum_rows<N, 2>(total, [&](index_t y, index_t x, V(&s)[2][N]) __attribute__((always_inline)) {
      const index_t at = y * row + x * pixel + c;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const V zc = load(z + at + n * L) - mean[n];
        const V ad = keep_positive<T>(gr[n] * zc + b[n], load(god.at(y / 2, x / 2) + c + n * L) * T(0.25));
        s[0][n] += ad;
        s[1][n] += ad * zc;
      }
    });
    V k1[N], k2[N], k3[N];
    for (int n = 0; n < N; ++n) {
      const V sum_n = total[1][n] * r[n];  // sum of Ad n
      if (out.g) {
        const index_t k = c + n * L;
        store(out.g + k, load(out.g + k) + sum_n);
        store(out.b + k, load(out.b + k) + total[0][n]);
      }
      k1[n] = gr[n], k2[n] = -gr[n] * r[n] * sum_n * scale, k3[n] = -gr[n] * total[0][n] * scale;
    }
    for (index_t y = 0; y < height; ++y)
      for (index_t x = 0; x < width; ++x) {
        const index_t at = y * row + x * pixel + c;
        const bool inside = y < 2 * h2 && x < 2 * w2;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const V zc = load(z + at + n * L) - mean[n];
          V value = k2[n] * zc + k3[n];
          if (inside)
            value += k1[n] * keep_positive<T>(gr[n] * zc + b[n], load(god.at(y / 2, x / 2) + c + n * L) * T(0.25));
          store(gzd + at + n * L, value);
        }
      }
  }
  void backward_plain(const T* z, Stats<T> st, NormParameters<T> np, View<const T> god, T* gzd,
                      NormGradients<T> out) const {
    index_t c = 0;
    for (; c + 4 * L <= channels; c += 4 * L) plain<4>(c, z, st, np, god, gzd, out);
    for (; c < channels; c += L) plain<1>(c, z, st, np, god, gzd, out);
  }

  // (z', zd') from (o', od') in one pass after five sums (eq. 11-17); `plain_out` gets the plain step's norm gradient.
  template <int N>
  void adjoint(index_t c, const T* z, const T* zd, Stats<T> st, NormParameters<T> np, View<const T> go,
               View<const T> god, T* gz, T* gzd, NormGradients<T> out, NormGradients<T> plain_out) const {
    const T count = T(height * width), scale = T(1) / count;
    V mean[N], mean_d[N], r[N], gr[N], b[N], total[5][N];
    for (int n = 0; n < N; ++n) {
      const index_t k = c + n * L;
      mean[n] = load(st.mean + k), mean_d[n] = load(st.mean_d + k), r[n] = load(st.r + k);
      gr[n] = load(np.g + k) * r[n], b[n] = load(np.b + k);
    }
    const index_t h2 = height / 2, w2 = width / 2;
    const Plane pooled{h2 * 2, w2 * 2, channels, row, pixel};
    pooled.template sum_rows<N, 5>(total, [&](index_t y, index_t x, V(&s)[5][N]) __attribute__((always_inline)) {
      const index_t at = y * row + x * pixel + c;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const V zc = load(z + at + n * L) - mean[n], zdc = load(zd + at + n * L) - mean_d[n];
        const V a = gr[n] * zc + b[n];
        const V ga = keep_positive<T>(a, load(go.at(y / 2, x / 2) + c + n * L) * T(0.25));
        const V gad = keep_positive<T>(a, load(god.at(y / 2, x / 2) + c + n * L) * T(0.25));
        s[0][n] += ga;
        s[1][n] += ga * zc;
        s[2][n] += gad;
        s[3][n] += gad * zc;
        s[4][n] += gad * zdc;
      }
    });
    V k1[N], k2[N], k3[N], k4[N], k5[N], k6[N], k7[N];
    for (int n = 0; n < N; ++n) {
      const index_t k = c + n * L;
      const V g = load(np.g + k), s = load(st.s + k);
      const V h = load(np.gd + k) - r[n] * s * g;                               // eq. 12
      const V m_a = total[0][n] * scale, m_an = total[1][n] * r[n] * scale;     // mean A, mean A n
      const V m_d = total[2][n] * scale, m_dn = total[3][n] * r[n] * scale;     // mean Ad, mean Ad n
      const V m_dnd = r[n] * (total[4][n] * scale - s * m_dn);                  // mean Ad nd
      const V q = g * m_dn;
      store(out.g + k, load(out.g + k) + count * (m_an + m_dnd));
      store(out.b + k, load(out.b + k) + total[0][n]);
      if (plain_out.g) {
        store(plain_out.g + k, load(plain_out.g + k) + count * m_dn);
        store(plain_out.b + k, load(plain_out.b + k) + total[2][n]);
      }
      k1[n] = r[n] * g, k2[n] = r[n] * h;
      k3[n] = -r[n] * r[n] * q;
      k4[n] = -r[n] * r[n] * (g * m_an + h * m_dn - r[n] * q * s + g * m_dnd);
      k5[n] = -r[n] * (g * m_a + h * m_d);
      k6[n] = -r[n] * r[n] * q;
      k7[n] = -r[n] * g * m_d;
    }
    for (index_t y = 0; y < height; ++y)
      for (index_t x = 0; x < width; ++x) {
        const index_t at = y * row + x * pixel + c;
        const bool inside = y < 2 * h2 && x < 2 * w2;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const V zc = load(z + at + n * L) - mean[n], zdc = load(zd + at + n * L) - mean_d[n];
          V value = k3[n] * zdc + (k4[n] * zc + k5[n]), value_d = k6[n] * zc + k7[n];
          if (inside) {
            const V a = gr[n] * zc + b[n];
            const V ga = keep_positive<T>(a, load(go.at(y / 2, x / 2) + c + n * L) * T(0.25));
            const V gad = keep_positive<T>(a, load(god.at(y / 2, x / 2) + c + n * L) * T(0.25));
            value += k1[n] * ga + k2[n] * gad;
            value_d += k1[n] * gad;
          }
          store(gz + at + n * L, value);
          store(gzd + at + n * L, value_d);
        }
      }
  }
  void backward_adjoint(const T* z, const T* zd, Stats<T> st, NormParameters<T> np, View<const T> go, View<const T> god,
                        T* gz, T* gzd, NormGradients<T> out, NormGradients<T> plain_out) const {
    index_t c = 0;
    for (; c + 2 * L <= channels; c += 2 * L) adjoint<2>(c, z, zd, st, np, go, god, gz, gzd, out, plain_out);
    for (; c < channels; c += L) adjoint<1>(c, z, zd, st, np, go, god, gz, gzd, out, plain_out);
  }
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
