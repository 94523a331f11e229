// One-dimensional minimal filtering F(m, 3): m outputs of a 3-tap correlation from m + 2 inputs with m + 2 products,
//   y = A^T [ (G g) * (B^T d) ]                                                                   (docs eq. 20)
// and the exact transposes of the three linear maps, which give the data and weight gradients (eq. 22, 23).
// m = 1 is the direct convolution (nine products per pixel in two dimensions), m = 2 has points 0, +-1, inf, and
// m = 4 has points 0, +-1/sqrt2, +-sqrt2, inf: four times more accurate than the usual 0, +-1, +-2 (eq. 21).
#pragma once
#include "unroll/vector/simd.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

template <int m> struct Filter;

template <> struct Filter<1> {
  static constexpr int outputs = 1, inputs = 3;
  template <class X, class T> static PAD_INLINE void bt(const X* d, X* v, T) { v[0] = d[0], v[1] = d[1], v[2] = d[2]; }
  template <class X, class T> static PAD_INLINE void b(const X* v, X* d, T) { d[0] = v[0], d[1] = v[1], d[2] = v[2]; }
  template <class X, class T> static PAD_INLINE void at(const X* w, X* y, T) { y[0] = w[0] + w[1] + w[2]; }
  template <class X, class T> static PAD_INLINE void a(const X* y, X* w, T) { w[0] = w[1] = w[2] = y[0]; }
  template <class X, class T> static PAD_INLINE void g(const X* f, X* u, T) { u[0] = f[0], u[1] = f[1], u[2] = f[2]; }
  template <class X, class T> static PAD_INLINE void gt(const X* u, X* f, T) { f[0] = u[0], f[1] = u[1], f[2] = u[2]; }
};

template <> struct Filter<2> {
  static constexpr int outputs = 2, inputs = 4;
  template <class X, class T> static PAD_INLINE void bt(const X* d, X* v, T) {
    v[0] = d[0] - d[2], v[1] = d[2] + d[1], v[2] = d[2] - d[1], v[3] = d[3] - d[1];
  }
  template <class X, class T> static PAD_INLINE void b(const X* v, X* d, T) {
    d[0] = v[0], d[1] = v[1] - v[2] - v[3], d[2] = v[1] + v[2] - v[0], d[3] = v[3];
  }
  template <class X, class T> static PAD_INLINE void at(const X* w, X* y, T) {
    y[0] = w[0] + w[1] + w[2], y[1] = w[1] - w[2] + w[3];
  }
  template <class X, class T> static PAD_INLINE void a(const X* y, X* w, T) {
    w[0] = y[0], w[1] = y[0] + y[1], w[2] = y[0] - y[1], w[3] = y[1];
  }
  template <class X, class T> static PAD_INLINE void g(const X* f, X* u, T) {
    const X s = T(0.5) * (f[0] + f[2]), e = T(0.5) * f[1];
    u[0] = f[0], u[1] = s + e, u[2] = s - e, u[3] = f[2];
  }
  template <class X, class T> static PAD_INLINE void gt(const X* u, X* f, T) {
    const X s = T(0.5) * (u[1] + u[2]);
    f[0] = u[0] + s, f[1] = T(0.5) * (u[1] - u[2]), f[2] = s + u[3];
  }
};

template <> struct Filter<4> {
  static constexpr int outputs = 4, inputs = 6;
  // The points: +-p and +-q with p q = 1, which makes the constant coefficient of the Lagrange polynomials 1.
  template <class T> static constexpr T p = T(0.70710678118654752440084436210485);
  template <class T> static constexpr T q = T(1.41421356237309504880168872420970);
  template <class X, class T> static PAD_INLINE void bt(const X* d, X* v, T) {
    const X s = d[4] - T(2) * d[2], e = p<T> * (d[3] - T(2) * d[1]);
    const X t = d[4] - T(0.5) * d[2], f = q<T> * (d[3] - T(0.5) * d[1]);
    v[0] = d[0] + d[4] - T(2.5) * d[2];
    v[1] = s + e, v[2] = s - e, v[3] = t + f, v[4] = t - f;
    v[5] = d[1] + d[5] - T(2.5) * d[3];
  }
  template <class X, class T> static PAD_INLINE void b(const X* v, X* d, T) {
    const X s = v[1] + v[2], e = p<T> * (v[1] - v[2]), t = v[3] + v[4], f = q<T> * (v[3] - v[4]);
    d[0] = v[0];
    d[1] = v[5] - T(2) * e - T(0.5) * f;
    d[2] = T(-2.5) * v[0] - T(2) * s - T(0.5) * t;
    d[3] = e + f - T(2.5) * v[5];
    d[4] = v[0] + s + t;
    d[5] = v[5];
  }
  template <class X, class T> static PAD_INLINE void at(const X* w, X* y, T) {
    const X s = w[1] + w[2], e = p<T> * (w[1] - w[2]), t = w[3] + w[4], f = q<T> * (w[3] - w[4]);
    y[0] = w[0] + s + t;
    y[1] = e + f;
    y[2] = T(0.5) * s + T(2) * t;
    y[3] = T(0.5) * e + T(2) * f + w[5];
  }
  template <class X, class T> static PAD_INLINE void a(const X* y, X* w, T) {
    const X s = y[0] + T(0.5) * y[2], e = p<T> * (y[1] + T(0.5) * y[3]);
    const X t = y[0] + T(2) * y[2], f = q<T> * (y[1] + T(2) * y[3]);
    w[0] = y[0];
    w[1] = s + e, w[2] = s - e, w[3] = t + f, w[4] = t - f;
    w[5] = y[3];
  }
  // clang-format off: it takes the * behind p<T> for a pointer
  template <class X, class T> static PAD_INLINE void g(const X* f, X* u, T) {
    const X s = T(-1.0 / 1.5) * (f[0] + T(0.5) * f[2]), e = (T(-1.0 / 1.5) * p<T>) * f[1];
    const X t = T(1.0 / 6) * (f[0] + T(2) * f[2]), h = (T(1.0 / 6) * q<T>) * f[1];
    u[0] = f[0], u[1] = s + e, u[2] = s - e, u[3] = t + h, u[4] = t - h, u[5] = f[2];
  }
  template <class X, class T> static PAD_INLINE void gt(const X* u, X* f, T) {
    const X s = T(-1.0 / 1.5) * (u[1] + u[2]), t = T(1.0 / 6) * (u[3] + u[4]);
    f[0] = u[0] + s + t;
    f[1] = (T(-1.0 / 1.5) * p<T>) * (u[1] - u[2]) + (T(1.0 / 6) * q<T>) * (u[3] - u[4]);
    f[2] = T(0.5) * s + T(2) * t + u[5];
  }
  // clang-format on
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
