// Square transposes in registers: log2(lanes) rounds of two-source shuffles.
#pragma once
#include "simd.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

typedef std::int32_t IntsFloat __attribute__((vector_size(PAD_VECTOR_BYTES)));
typedef std::int64_t IntsDouble __attribute__((vector_size(PAD_VECTOR_BYTES)));
template <class T> struct IntsOf;
template <> struct IntsOf<float> { using type = IntsFloat; };
template <> struct IntsOf<double> { using type = IntsDouble; };

template <class T> PAD_INLINE Vec<T> load_unaligned(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <class T> PAD_INLINE void store_unaligned(T* p, Vec<T> v) { __builtin_memcpy(p, &v, sizeof(v)); }

// The lanes of two rows i, i + d that form rows i and i + d once the off-diagonal blocks of size d are exchanged.
template <class T> struct Shuffles { typename IntsOf<T>::type low, high; };
template <class T, int d> PAD_INLINE Shuffles<T> shuffles() {
  constexpr int L = lanes<T>;
  Shuffles<T> at;
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) at.low[j] = j & d ? L + j - d : j, at.high[j] = j & d ? L + j : j + d;
  return at;
}

// One round of a transpose.
template <class T, int d> PAD_INLINE void exchange(Vec<T>* rows) {
  const Shuffles<T> at = shuffles<T, d>();
#pragma GCC unroll 16
  for (int i = 0; i < lanes<T>; ++i)
    if ((i & d) == 0) {
      const Vec<T> a = rows[i], b = rows[i + d];
      rows[i] = __builtin_shuffle(a, b, at.low);
      rows[i + d] = __builtin_shuffle(a, b, at.high);
    }
}
template <class T> PAD_INLINE void transpose_rows(Vec<T>* rows) {
  constexpr int L = lanes<T>;
  exchange<T, 1>(rows);
  if constexpr (L > 2) exchange<T, 2>(rows);
  if constexpr (L > 4) exchange<T, 4>(rows);
  if constexpr (L > 8) exchange<T, 8>(rows);
}

// Lane i of the result: the sum of the lanes of rows[i]. Overwrites the rows; half the shuffles of a transpose.
template <class T, int d> PAD_INLINE void fold(Vec<T>* rows) {
  const Shuffles<T> at = shuffles<T, d>();
#pragma GCC unroll 8
  for (int i = 0; i < d; ++i)
    rows[i] = __builtin_shuffle(rows[i], rows[i + d], at.low) + __builtin_shuffle(rows[i], rows[i + d], at.high);
}
template <class T> PAD_INLINE Vec<T> sums_of_rows(Vec<T>* rows) {
  constexpr int L = lanes<T>;
  if constexpr (L > 8) fold<T, 8>(rows);
  if constexpr (L > 4) fold<T, 4>(rows);
  if constexpr (L > 2) fold<T, 2>(rows);
  fold<T, 1>(rows);
  return rows[0];
}

// to[j * to_row + i] = from[i * from_row + j] for i, j < lanes; only the first `keep` rows of the result are stored.
template <class T>
static inline void transpose_square(const T* from, index_t from_row, T* to, index_t to_row, int keep = lanes<T>) {
  constexpr int L = lanes<T>;
  Vec<T> rows[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) rows[i] = load_unaligned(from + i * from_row);
  transpose_rows<T>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if (i < keep) store_unaligned(to + i * to_row, rows[i]);
}

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
