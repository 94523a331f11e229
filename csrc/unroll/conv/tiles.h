// Two-dimensional tile transforms of a 3x3 convolution: rows use Filter<mr>, columns Filter<mc>. A point is one of
// the (mr + 2)(mc + 2) products of a tile. Images are channels-last with a zero border (`Image`), transformed
// tiles are stored point by point: [points][tiles][channels], so that each point is one matrix product.
#pragma once
#include "unroll/vector/simd.h"
#include "winograd.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

// A channels-last view. `origin` is the pixel (0, 0) of what the caller addresses; strides are in elements.
template <class T> struct View {
  T* origin;
  index_t row, pixel;
  PAD_INLINE T* at(index_t y, index_t x) const { return origin + y * row + x * pixel; }
};

// The transforms of one tile, as a table so that the scheme can be chosen per layer at run time.
template <class T> struct TileOps {
  int rows, columns;  // outputs per tile
  int points;
  void (*gather)(View<const T> in, T* out, index_t plane, index_t channels);             // V = B^T d B      (eq. 20)
  void (*scatter)(const T* in, index_t plane, View<T> out, index_t channels);            // d += B V B^T     (eq. 22)
  void (*finish)(const T* in, index_t plane, View<T> out, index_t channels, int ny, int nx);  // y = A^T M A
  void (*spread)(View<const T> in, T* out, index_t plane, index_t channels, int ny, int nx);  // M = A y A^T (eq. 22)
  void (*weights)(const T* taps, index_t tap, T* out, index_t plane);                    // U = G g G^T, one vector
  void (*weights_back)(const T* in, index_t plane, T* taps);                             // g = G^T U G, one vector
};

template <class T, int mr, int mc> struct Tile {
  using V = Vec<T>;
  using R = Filter<mr>;
  using C = Filter<mc>;
  static constexpr int L = lanes<T>, ir = mr + 2, ic = mc + 2;

  static void gather(View<const T> in, T* out, index_t plane, index_t channels) {
    for (index_t c = 0; c < channels; c += L) {
      V half[ir][ic];
#pragma GCC unroll 6
      for (int j = 0; j < ic; ++j) {
        V d[ir], v[ir];
#pragma GCC unroll 6
        for (int i = 0; i < ir; ++i) d[i] = load(in.at(i, j) + c);
        if (mr > 1 && j < mc)  // the columns the next tile adds
#pragma GCC unroll 6
          for (int i = 0; i < ir; ++i) __builtin_prefetch(in.at(i, ic + j) + c);
        R::bt(d, v, T(0));
#pragma GCC unroll 6
        for (int i = 0; i < ir; ++i) half[i][j] = v[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < ir; ++i) {
        V v[ic];
        C::bt(half[i], v, T(0));
#pragma GCC unroll 6
        for (int j = 0; j < ic; ++j) store(out + (i * ic + j) * plane + c, v[j]);
      }
    }
  }

  static void scatter(const T* in, index_t plane, View<T> out, index_t channels) {
    for (index_t c = 0; c < channels; c += L) {
      V half[ir][ic];
#pragma GCC unroll 6
      for (int i = 0; i < ir; ++i) {
        V v[ic];
#pragma GCC unroll 6
        for (int j = 0; j < ic; ++j) v[j] = load(in + (i * ic + j) * plane + c);
        C::b(v, half[i], T(0));
      }
#pragma GCC unroll 6
      for (int j = 0; j < ic; ++j) {
        V v[ir], d[ir];
#pragma GCC unroll 6
        for (int i = 0; i < ir; ++i) v[i] = half[i][j];
        R::b(v, d, T(0));
#pragma GCC unroll 6
        for (int i = 0; i < ir; ++i) store(out.at(i, j) + c, load(out.at(i, j) + c) + d[i]);
      }
    }
  }

  template <bool whole>
  static PAD_INLINE void finish_tile(const T* in, index_t plane, View<T> out, index_t channels, int ny, int nx) {
    for (index_t c = 0; c < channels; c += L) {
      V half[ir][mc];
#pragma GCC unroll 6
      for (int i = 0; i < ir; ++i) {
        V v[ic];
#pragma GCC unroll 6
        for (int j = 0; j < ic; ++j) v[j] = load(in + (i * ic + j) * plane + c);
        C::at(v, half[i], T(0));
      }
#pragma GCC unroll 4
      for (int j = 0; j < mc; ++j) {
        V v[ir], y[mr];
#pragma GCC unroll 6
        for (int i = 0; i < ir; ++i) v[i] = half[i][j];
        R::at(v, y, T(0));
#pragma GCC unroll 4
        for (int i = 0; i < mr; ++i)
          if (whole || (i < ny && j < nx)) store(out.at(i, j) + c, y[i]);
      }
    }
  }
  static void finish(const T* in, index_t plane, View<T> out, index_t channels, int ny, int nx) {
    if (ny >= mr && nx >= mc)
      finish_tile<true>(in, plane, out, channels, ny, nx);
    else
      finish_tile<false>(in, plane, out, channels, ny, nx);
  }

  template <bool whole>
  static PAD_INLINE void spread_tile(View<const T> in, T* out, index_t plane, index_t channels, int ny, int nx) {
    for (index_t c = 0; c < channels; c += L) {
      V half[ir][mc];
#pragma GCC unroll 4
      for (int j = 0; j < mc; ++j) {
        V y[mr], v[ir];
#pragma GCC unroll 4
        for (int i = 0; i < mr; ++i) y[i] = whole || (i < ny && j < nx) ? load(in.at(i, j) + c) : V{};
        R::a(y, v, T(0));
#pragma GCC unroll 6
        for (int i = 0; i < ir; ++i) half[i][j] = v[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < ir; ++i) {
        V v[ic];
        C::a(half[i], v, T(0));
#pragma GCC unroll 6
        for (int j = 0; j < ic; ++j) store(out + (i * ic + j) * plane + c, v[j]);
      }
    }
  }
  static void spread(View<const T> in, T* out, index_t plane, index_t channels, int ny, int nx) {
    if (ny >= mr && nx >= mc)
      spread_tile<true>(in, out, plane, channels, ny, nx);
    else
      spread_tile<false>(in, out, plane, channels, ny, nx);
  }

  // One vector of filters; `tap` elements between its nine taps.
  static void weights(const T* taps, index_t tap, T* out, index_t plane) {
    V half[ir][3];
    for (int j = 0; j < 3; ++j) {
      V f[3], u[ir];
      for (int i = 0; i < 3; ++i) f[i] = load(taps + (i * 3 + j) * tap);
      R::g(f, u, T(0));
      for (int i = 0; i < ir; ++i) half[i][j] = u[i];
    }
    for (int i = 0; i < ir; ++i) {
      V u[ic];
      C::g(half[i], u, T(0));
      for (int j = 0; j < ic; ++j) store(out + (i * ic + j) * plane, u[j]);
    }
  }
  static void weights_back(const T* in, index_t plane, T* taps) {
    V half[ir][3];
    for (int i = 0; i < ir; ++i) {
      V u[ic];
      for (int j = 0; j < ic; ++j) u[j] = load(in + (i * ic + j) * plane);
      C::gt(u, half[i], T(0));
    }
    for (int j = 0; j < 3; ++j) {
      V u[ir], f[3];
      for (int i = 0; i < ir; ++i) u[i] = half[i][j];
      R::gt(u, f, T(0));
      for (int i = 0; i < 3; ++i) store(taps + (i * 3 + j) * L, f[i]);
    }
  }
  static constexpr TileOps<T> ops() {
    return {mr, mc, ir * ic, gather, scatter, finish, spread, weights, weights_back};
  }
};

// The cheapest allowed scheme for `images` maps of height x width (0: many): fewest products, counting the waste at the
// borders and, for every point, the filters, which take as long to prepare as `filter_rows` rows to multiply.
template <class T>
static TileOps<T> choose_tile(index_t height, index_t width, int largest, index_t images, index_t filter_rows) {
  const TileOps<T> all[3] = {Tile<T, 1, 1>::ops(), Tile<T, 2, 2>::ops(), Tile<T, 4, 4>::ops()};
  TileOps<T> best = all[0];
  index_t best_cost = 0;
  for (const TileOps<T>& ops : all) {
    if (ops.rows > largest) continue;
    const index_t tiles = ceil_div(height, ops.rows) * ceil_div(width, ops.columns);
    const index_t cost = ops.points * (images > 0 ? images * tiles + filter_rows : tiles);
    if (best_cost == 0 || cost < best_cost) best = ops, best_cost = cost;
  }
  return best;
}

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
