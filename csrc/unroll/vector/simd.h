// Folder vector/: vectors, masks, transposes, small products and workspaces; it knows nothing of convolutions. It
// includes network.h and itself, and everything above may include it.
//
// Vectors for one instruction set. Every ISA-specific source includes this file first; everything that is compiled
// with ISA-specific flags lives in namespace pad_fast::unroll::PAD_ISA, so that the linker can never pick, say, an
// AVX-512 copy of an inline function for a machine without it (one-definition rule).
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef PAD_ISA
#error "compile with -DPAD_ISA=<name> and -DPAD_VECTOR_BYTES=<16|32|64>"
#endif

#define PAD_INLINE inline __attribute__((always_inline))

// In front of a loop whose iterations do not depend on each other, which the compiler cannot see.
#if defined(__clang__)
#define PAD_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define PAD_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

using index_t = std::ptrdiff_t;

constexpr int kLine = 64;  // bytes; every channel row is padded to whole cache lines

typedef float VecFloat __attribute__((vector_size(PAD_VECTOR_BYTES), may_alias));
typedef double VecDouble __attribute__((vector_size(PAD_VECTOR_BYTES), may_alias));

template <class T> struct VecOf;
template <> struct VecOf<float> { using type = VecFloat; };
template <> struct VecOf<double> { using type = VecDouble; };
template <class T> using Vec = typename VecOf<T>::type;

template <class T> constexpr int lanes = PAD_VECTOR_BYTES / int(sizeof(T));
template <class T> constexpr int line_elements = kLine / int(sizeof(T));

template <class T> PAD_INLINE Vec<T> load(const T* p) { return *reinterpret_cast<const Vec<T>*>(p); }
template <class T> PAD_INLINE void store(T* p, Vec<T> v) { *reinterpret_cast<Vec<T>*>(p) = v; }
template <class T> PAD_INLINE Vec<T> splat(T s) { return s - Vec<T>{}; }

// NaN must survive: a diverged student has to show, so negative values are removed, everything else is kept.
template <class T> PAD_INLINE Vec<T> relu(Vec<T> a) { return a <= Vec<T>{} ? Vec<T>{} : a; }
template <class T> PAD_INLINE Vec<T> keep_positive(Vec<T> a, Vec<T> value) { return a > Vec<T>{} ? value : Vec<T>{}; }

template <class T> PAD_INLINE T min_of(T a, T b) { return b < a ? b : a; }
template <class T> PAD_INLINE T max_of(T a, T b) { return a < b ? b : a; }
constexpr PAD_INLINE index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

// Channels rounded up to whole cache lines ...
template <class T> PAD_INLINE index_t padded(index_t channels) {
  return ceil_div(channels, line_elements<T>) * line_elements<T>;
}
// ... and the distance between neighbouring pixels: an odd number of lines, so that columns of pixels do not fall
// into the same few cache sets.
template <class T> PAD_INLINE index_t pixel_stride(index_t channels) {
  index_t lines = ceil_div(channels, line_elements<T>);
  if (lines % 2 == 0) ++lines;
  return lines * line_elements<T>;
}

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
