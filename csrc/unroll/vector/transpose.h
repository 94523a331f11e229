// Square transposes in registers: log2(lanes) rounds of two-source shuffles.
#pragma once
#include <utility>

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

// Of two rows i, i + d: row i, or with `high` row i + d, once the off-diagonal blocks of size d are exchanged.
template <class T, int d, bool high, int... j>
PAD_INLINE Vec<T> exchanged(Vec<T> a, Vec<T> b, std::integer_sequence<int, j...>) {
  constexpr int block = high ? d : 0, other = lanes<T> + block - d;  // what lane j of the result is away from j
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (j + (j & d ? other : block))...);
#else
  return __builtin_shuffle(a, b, typename IntsOf<T>::type{(j + (j & d ? other : block))...});
#endif
}
template <class T, int d, bool high> PAD_INLINE Vec<T> exchanged(Vec<T> a, Vec<T> b) {
  return exchanged<T, d, high>(a, b, std::make_integer_sequence<int, lanes<T>>());
}

// One round of a transpose.
template <class T, int d> PAD_INLINE void exchange(Vec<T>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < lanes<T>; ++i)
    if ((i & d) == 0) {
      const Vec<T> a = rows[i], b = rows[i + d];
      rows[i] = exchanged<T, d, false>(a, b);
      rows[i + d] = exchanged<T, d, true>(a, b);
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
#pragma GCC unroll 8
  for (int i = 0; i < d; ++i)
    rows[i] = exchanged<T, d, false>(rows[i], rows[i + d]) + exchanged<T, d, true>(rows[i], rows[i + d]);
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
