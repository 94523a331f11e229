// Small row-major matrix products, C (+)= A B or A^T B, around register-blocked micro-kernels.
// Sums over k run in blocks of kBlock terms which are then added to C: pairwise summation in miniature. It costs eight
// per cent of a hot kernel and divides the rounding error of a 128-term sum by two to three (docs section 5), which is
// what lets the F(4x4) scheme stay as accurate as an ordinary float32 convolution.
#pragma once
#include "simd.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

#if PAD_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRows = 8, kVectors = 3;  // 24 accumulators of 32 registers
#else
constexpr int kRows = 4, kVectors = 3;  // 12 accumulators of 16 registers
#endif
constexpr index_t kBlock = 32;

// C[R][N vectors] (+)= A[R][depth] B[depth][N vectors], depth <= kBlock. Into L2 are prefetched, as the terms go by:
// `ahead` and `other`, so many bytes per term.
template <class T, int R, int N, bool transposed>
static PAD_INLINE void micro_kernel(index_t depth, const T* a, index_t lda, const T* b, index_t ldb, T* c, index_t ldc,
                                    bool accumulate, const char* ahead, index_t ahead_step, const char* other,
                                    index_t other_step) {
  using V = Vec<T>;
  constexpr int L = lanes<T>;
  V sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) sum[r][n] = V{};
  const auto term = [&]() __attribute__((always_inline)) {
    V row[N];
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) row[n] = load(b + n * L);
    __builtin_prefetch(ahead, 0, 2);
    __builtin_prefetch(other, 0, 2);
    ahead += ahead_step, other += other_step;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V scalar = splat(transposed ? a[r] : a[r * lda]);
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) sum[r][n] += scalar * row[n];
    }
    a += transposed ? lda : 1;
    b += ldb;
  };
  if (depth == kBlock) {  // a fixed count, so that the branch at the end is predicted
#pragma GCC unroll 4
    for (int k = 0; k < kBlock; ++k) term();
  } else {
    for (index_t k = 0; k < depth; ++k) term();
  }
  if (accumulate) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) store(c + r * ldc + n * L, load(c + r * ldc + n * L) + sum[r][n]);
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) store(c + r * ldc + n * L, sum[r][n]);
  }
}

// Which operand comes from far away. It is stored panel by panel, in the order in which it is used (`packed_*`), so
// that the hardware prefetcher follows it, and touched a little ahead as well; `next` is what the caller reads next.
// Panel n0 of a packed matrix of R rows starts at n0 * R; its rows are as wide as the panel.
enum class Packed { none, b, c };

// Panels of a row of `columns` are kVectors vectors wide, then 2, then 1.
template <class T> PAD_INLINE index_t panel_width(index_t columns, index_t start) {
  const index_t left = (columns - start) / lanes<T>;
  return (left >= kVectors ? kVectors : left >= 2 ? 2 : 1) * lanes<T>;
}

// All rows of one block of B, which stays in L1 meanwhile.
template <class T, int N, bool transposed, Packed packed>
static PAD_INLINE void rows_of_block(index_t rows, index_t depth, const T* a, index_t lda, const T* b, index_t ldb,
                                     T* c, index_t ldc, bool accumulate, const char*& ahead, index_t step,
                                     const char*& other) {
  const index_t row_step = transposed ? 1 : lda;
  constexpr index_t other_step = packed == Packed::b ? kLine / 4 : 0;
  index_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    if (packed == Packed::c && r + 3 * kRows <= rows) {
      const char* soon = reinterpret_cast<const char*>(c + (r + 2 * kRows) * ldc);
#pragma GCC unroll 24
      for (int i = 0; i < kRows * N * int(sizeof(Vec<T>)) / kLine; ++i) __builtin_prefetch(soon + i * kLine, 1, 3);
    }
    micro_kernel<T, kRows, N, transposed>(depth, a + r * row_step, lda, b, ldb, c + r * ldc, ldc, accumulate, ahead,
                                          step, other, other_step);
    ahead += step * depth, other += other_step * depth;
  }
  if (kRows > 4 && r + 4 <= rows) {
    micro_kernel<T, 4, N, transposed>(depth, a + r * row_step, lda, b, ldb, c + r * ldc, ldc, accumulate, ahead, 0,
                                      other, 0);
    r += 4;
  }
  if (r + 2 <= rows) {
    micro_kernel<T, 2, N, transposed>(depth, a + r * row_step, lda, b, ldb, c + r * ldc, ldc, accumulate, ahead, 0,
                                      other, 0);
    r += 2;
  }
  if (r < rows)
    micro_kernel<T, 1, N, transposed>(depth, a + r * row_step, lda, b, ldb, c + r * ldc, ldc, accumulate, ahead, 0,
                                      other, 0);
}

template <class T, int N, bool transposed, Packed packed>
static void panel(index_t rows, index_t depth, const T* a, index_t lda, const T* b, index_t ldb, T* c, index_t ldc,
                  bool accumulate, const char*& other) {
  // Bytes per term, so that by the end of a block of B the next one is in L2 and, by the end of a panel of C, so is
  // the next panel: a steady trickle instead of bursts.
  const index_t width = N * lanes<T> * index_t(sizeof(T));
  const index_t step = packed == Packed::none ? 0 : ceil_div(width * kRows, packed == Packed::b ? rows : depth);
  const char* ahead = reinterpret_cast<const char*>(packed == Packed::c ? c + rows * ldc : b);
  for (index_t k = 0; k < depth; k += kBlock) {
    if (packed == Packed::b) ahead = reinterpret_cast<const char*>(b + (k + kBlock) * ldb);
    const index_t now = min_of(kBlock, depth - k);
    rows_of_block<T, N, transposed, packed>(rows, now, a + (transposed ? k * lda : k), lda, b + k * ldb, ldb, c, ldc,
                                            accumulate || k > 0, ahead, step, other);
  }
}

// C[rows, columns] (+)= A[rows, depth] B[depth, columns]; with `transposed`, A is stored [depth, rows].
// `columns` is a multiple of the vector length (the callers' rows are padded to cache lines).
template <class T, bool transposed, Packed packed = Packed::none>
static void gemm(index_t rows, index_t columns, index_t depth, const T* a, index_t lda, const T* b, index_t ldb, T* c,
                 index_t ldc, bool accumulate, const T* next = nullptr) {
  constexpr int L = lanes<T>;
  const char* other = reinterpret_cast<const char*>(next ? next : a);
  index_t width;
  for (index_t n = 0; n < columns; n += width) {
    width = panel_width<T>(columns, n);
    const T* bn = packed == Packed::b ? b + n * depth : b + n;
    T* cn = packed == Packed::c ? c + n * rows : c + n;
    const index_t ldbn = packed == Packed::b ? width : ldb, ldcn = packed == Packed::c ? width : ldc;
    if (width == kVectors * L)
      panel<T, kVectors, transposed, packed>(rows, depth, a, lda, bn, ldbn, cn, ldcn, accumulate, other);
    else if (width == 2 * L)
      panel<T, 2, transposed, packed>(rows, depth, a, lda, bn, ldbn, cn, ldcn, accumulate, other);
    else
      panel<T, 1, transposed, packed>(rows, depth, a, lda, bn, ldbn, cn, ldcn, accumulate, other);
  }
}

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
