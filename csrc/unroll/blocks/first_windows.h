// The first block's backward pass, window by window: sums over patches (eq. 32) and their transpose, the image's
// gradient (eq. 35), are a weight and a data gradient, so F(2x2) applies (eq. 22, 23) with the pooling window as its
// tile. Three image channels take 48 products a window instead of 108; z' is formed in registers from the pull and four
// signs. The sixteen points go in two halves, so that a half's sums fit in registers.
#pragma once
#include "unroll/conv/tiles.h"
#include "unroll/vector/masks.h"
#include "unroll/vector/transpose.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

#if PAD_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

template <class T> struct PoolWindows {
  using V = Vec<T>;
  static constexpr int L = lanes<T>;

  index_t channels, row, plane;  // of the padded image
  index_t pooled_h, pooled_w, vectors, stride;  // of the maps: vectors of channels, elements between rows of sums

  index_t count() const { return pooled_h * pooled_w; }
  index_t window_elements() const { return count() * channels * 16; }
  index_t point_elements() const { return channels * 16 * stride; }
  index_t filter_elements() const { return 32 * vectors * L * channels; }

  // Windows are laid out [half of the points][window][channel][8 points].
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  void transform_image(const T* x, T* to) const {
    const Four sign = {T(-1), T(1), T(-1), T(-1)};
    const index_t half = count() * channels * 8;
    for (index_t y = 0; y < pooled_h; ++y)
      for (index_t at = 0; at < pooled_w; ++at)
        for (index_t c = 0; c < channels; ++c) {
          Four d[4], v[4];
          for (int i = 0; i < 4; ++i) __builtin_memcpy(d + i, x + c * plane + (2 * y + i) * row + 2 * at, sizeof(Four));
          Filter<2>::bt(d, v, T(0));
          for (int i = 0; i < 4; ++i) {  // the same map along the row
            const Four left = {v[i][0], v[i][2], v[i][2], v[i][3]}, right = {v[i][2], v[i][1], v[i][1], v[i][1]};
            const Four u = left + sign * right;
            __builtin_memcpy(to + (i / 2) * half + i % 2 * 4, &u, sizeof(Four));
          }
          to += 8;
        }
  }

  // Row half * 2 + i of A z' A^T, z' being one pull under the four signs of its window.
  template <int half> static PAD_INLINE void spread_row(int i, V g, const Mask* bits, V (&m)[4]) {
    const int row_of = half * 2 + i;
    V left, right;
    if (row_of == 0)
      left = select(bits[0], g), right = select(bits[1], g);
    else if (row_of == 1)
      left = select(bits[0], g) + select(bits[2], g), right = select(bits[1], g) + select(bits[3], g);
    else if (row_of == 2)
      left = select(bits[0], g) - select(bits[2], g), right = select(bits[1], g) - select(bits[3], g);
    else
      left = select(bits[2], g), right = select(bits[3], g);
    m[0] = left, m[1] = left + right, m[2] = left - right, m[3] = right;
  }

  // One vector of channels, half of the points, C image channels: sums[channel][point] and, from the first half, total.
  template <int C, int half>
  void window_sums(const T* windows, View<const T> pull, const Mask* signs, T* sums, T* total) const {
    const index_t rows_at_once = max_of<index_t>(1, 32 / pooled_w);
    for (index_t y0 = 0; y0 < pooled_h; y0 += rows_at_once) {
      V sum[C][8], all = V{};
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q) sum[c][q] = V{};
      for (index_t y = y0; y < min_of(pooled_h, y0 + rows_at_once); ++y)
        for (index_t at = 0; at < pooled_w; ++at) {
          const V g = load(pull.at(y, at));
          __builtin_prefetch(pull.at(y, at) + L);
          const Mask* bits = signs + (y * pooled_w + at) * vectors * 4;
          const T* v = windows + (y * pooled_w + at) * channels * 8;
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {  // row half * 2 + i of A z' A^T
            V m[4];
            spread_row<half>(i, g, bits, m);
            if (half == 0 && i == 1) all += m[1];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
              for (int q = 0; q < 4; ++q) sum[c][4 * i + q] += splat(v[8 * c + 4 * i + q]) * m[q];
          }
        }
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q) {
          T* to = sums + (c * 16 + q) * stride;
          store(to, y0 ? load(to) + sum[c][q] : sum[c][q]);
        }
      if (half == 0) store(total, y0 ? load(total) + all : all);
    }
  }
  template <int half> void half_sums(const T* windows, View<const T> pull, const Mask* signs, T* sums, T* total) const {
    windows += half * count() * channels * 8, sums += half * 8 * stride;
    constexpr int most = kManyRegisters ? 3 : 1;
    for (index_t c = 0; c < channels; c += most) {
      const T* v = windows + c * 8;
      T* to = sums + c * 16 * stride;
      if (channels - c >= most)
        window_sums<most, half>(v, pull, signs, to, total);
      else if (channels - c == 2)
        window_sums<2, half>(v, pull, signs, to, total);
      else
        window_sums<1, half>(v, pull, signs, to, total);
    }
  }
  // S of one stream, [taps][stride], and its total.
  void patch_sums(const T* windows, const Mask* signs, View<const T> pull, T* points, T* sums, T* total) const {
    for (index_t n = 0; n < vectors * L; n += L)
      half_sums<0>(windows, {pull.origin + n, pull.row, pull.pixel}, signs + n / L * 4, points + n, total + n);
    for (index_t n = 0; n < vectors * L; n += L)
      half_sums<1>(windows, {pull.origin + n, pull.row, pull.pixel}, signs + n / L * 4, points + n, total + n);
    alignas(64) T back[9 * L];
    for (index_t c = 0; c < channels; ++c)
      for (index_t n = 0; n < vectors * L; n += L) {
        Tile<T, 2, 2>::weights_back(points + c * 16 * stride + n, stride, back);
        for (index_t k = 0; k < 9; ++k) store(sums + (9 * c + k) * stride + n, load(back + k * L));
      }
  }

  // Both streams' filters, k1 w / 4 and (k2 w + k1 v) / 4, transformed.
  void transform_filters(const T* w, const T* v, const T* k1, const T* k2, T* to) const {
    alignas(64) T taps_of[9 * L], points[16 * L];
    for (int stream = 0; stream < 2; ++stream)
      for (index_t n = 0; n < vectors; ++n)
        for (index_t c = 0; c < channels; ++c) {
          const V a = T(0.25) * load(k1 + n * L), b = T(0.25) * load(k2 + n * L);
          for (index_t k = 0; k < 9; ++k) {
            const index_t from = (9 * c + k) * stride + n * L;
            const V wk = load(w + from), vk = load(v + from);
            store(taps_of + k * L, stream ? b * wk + a * vk : a * wk);
          }
          Tile<T, 2, 2>::weights(taps_of, L, points, L);
          for (index_t half = 0; half < 2; ++half)
            std::memcpy(to + (((half * 2 + stream) * vectors + n) * channels + c) * 8 * L, points + half * 8 * L,
                        8 * L * sizeof(T));
        }
  }

  // The transpose of the above for the image's gradient (eq. 22): per window, the products of both streams' A z' A^T
  // with the transformed filters u [half][stream, vector][channel][8 points], summed over the channels of the maps.
  template <int C, int half>
  void window_pull(const T* u, const Mask* signs, View<const T> go, View<const T> god, T* to) const {
    constexpr int whole = ceil_div(C * 8, L) * L;
    for (index_t y = 0; y < pooled_h; ++y)
      for (index_t at = 0; at < pooled_w; ++at) {
        V sum[whole];
#pragma GCC unroll 32
        for (int q = 0; q < whole; ++q) sum[q] = V{};
        const T* f = u;
        for (int stream = 0; stream < 2; ++stream) {
          const T* pull = (stream ? god : go).at(y, at);
          const Mask* bits = signs + (y * pooled_w + at) * vectors * 4;
          for (index_t n = 0; n < vectors; ++n, pull += L, bits += 4, f += channels * 8 * L) {
            const V g = load(pull);
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
              V m[4];
              spread_row<half>(i, g, bits, m);
#pragma GCC unroll 8
              for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
                for (int q = 0; q < 4; ++q) sum[8 * c + 4 * i + q] += load(f + (8 * c + 4 * i + q) * L) * m[q];
            }
          }
        }
        alignas(64) T value[whole];
#pragma GCC unroll 8
        for (int q = 0; q < whole; q += L) store(value + q, sums_of_rows<T>(sum + q));
        std::memcpy(to + (y * pooled_w + at) * channels * 8, value, C * 8 * sizeof(T));
      }
  }
  template <int half> void half_pull(const T* u, const Mask* signs, View<const T> go, View<const T> god, T* to) const {
    to += half * count() * channels * 8, u += half * 2 * vectors * channels * 8 * L;
    constexpr int most = kManyRegisters ? 3 : 1;
    for (index_t c = 0; c < channels; c += most) {
      if (channels - c >= most)
        window_pull<most, half>(u + c * 8 * L, signs, go, god, to + c * 8);
      else if (channels - c == 2)
        window_pull<2, half>(u + c * 8 * L, signs, go, god, to + c * 8);
      else
        window_pull<1, half>(u + c * 8 * L, signs, go, god, to + c * 8);
    }
  }
  void pull_streams(const T* u, const Mask* signs, View<const T> go, View<const T> god, T* to) const {
    half_pull<0>(u, signs, go, god, to);
    half_pull<1>(u, signs, go, god, to);
  }
  // dx += sum over windows of B V B^T. Even windows, then odd ones: neighbours overlap.
  void add_to_image(const T* from, T* dx) const {
    const index_t half = count() * channels * 8;
    for (index_t y = 0; y < pooled_h; ++y)
      for (index_t parity = 0; parity < 2; ++parity)
        for (index_t at = parity; at < pooled_w; at += 2)
          for (index_t c = 0; c < channels; ++c) {
            const T* v = from + ((y * pooled_w + at) * channels + c) * 8;
            Four point[4], d[4];
            for (int i = 0; i < 4; ++i) __builtin_memcpy(point + i, v + i / 2 * half + i % 2 * 4, sizeof(Four));
            Filter<2>::b(point, d, T(0));
            for (int i = 0; i < 4; ++i) {
              T* to = dx + c * plane + (2 * y + i) * row + 2 * at;
              const Four now = {d[i][0], d[i][1] - d[i][2] - d[i][3], d[i][1] + d[i][2] - d[i][0], d[i][3]};
              Four old;
              __builtin_memcpy(&old, to, sizeof(Four));
              old += now;
              __builtin_memcpy(to, &old, sizeof(Four));
            }
          }
  }
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
