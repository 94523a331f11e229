// Float32 matrix products on the bfloat16 tiles of Intel AMX (docs section 5). Every float is the sum of two or three
// bfloat16 values, so a product of floats is three or six products of those:
//   three parts, hi + mid + lo (exact): hi*hi + hi*mid + mid*hi + mid*mid + hi*lo + lo*hi, error about 2^-26
//   two parts, hi + mid:                hi*hi + hi*mid + mid*hi,                           error about 2^-17
// The small products are summed over the whole depth first and hi*hi last, so that their rounding does not count.
//
// Packed operands consist of tiles of 16 rows of 16 words (1 KiB). A word holds two consecutive terms of a sum; which
// two is free as long as both operands agree, and here it is k (low half) and k + 16 (high half) of each 32, because
// then two vectors of floats become words without any shuffle. Tiles stand in the order
//   [blocks of 16 rows of A, or of 16 columns of B][blocks of 32 terms][parts],
// a row of a tile being a row of A, or 16 columns of the rows k and k + 16 of B. Words are kept in arrays of float.
#pragma once
#include "simd.h"
#include "transpose.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

constexpr index_t kTile = 16;       // rows, columns and words of a tile
constexpr index_t kTileTerms = 32;  // terms of a sum it holds
constexpr index_t kTileWords = kTile * kTile;

// Configures the tile registers of this thread for its lifetime. Between tasks a thread must hold no tile state: the
// kernel would save and restore 8 KiB at every switch, and in the caller's thread it would be somebody else's.
class TileScope {
 public:
  TileScope() {
    struct alignas(64) {
      std::uint8_t palette = 1, start = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileScope() { asm volatile("tilerelease"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// Tile instructions. Loads do not tell the compiler which memory they read: the kernels below start with a barrier.
template <int tile> PAD_INLINE void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(tile)); }
template <int tile> PAD_INLINE void tile_load(const float* from, index_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(tile));
}
template <int tile> PAD_INLINE void tile_store(float* to, index_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(tile) : "memory");
}
template <int sum, int a, int b> PAD_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
}

// --- splitting and packing -------------------------------------------------------------------------------------------
typedef std::uint32_t Bits __attribute__((vector_size(64), may_alias));

PAD_INLINE Bits upper_halves(Bits low, Bits high) { return (high & 0xffff0000u) | (low >> 16); }

// Words of the parts of x0 (low halves) and x1 (high halves). hi is rounded, which leaves at most 16 significant bits,
// so that the truncated mid and lo = rest - mid are exact. Truncation keeps every NaN a NaN (adding half a unit would
// turn some into zeros); infinities become NaN. As the last part, mid is rounded all the same: a factor of 1 + 0.35
// units before the truncation leaves an error only six per cent above that of rounding.
template <int parts> PAD_INLINE void split(VecFloat x0, VecFloat x1, Bits* words) {
  const Bits h0 = Bits(x0) + 0x8000u, h1 = Bits(x1) + 0x8000u;
  words[0] = upper_halves(h0, h1);
  const VecFloat r0 = x0 - VecFloat(h0 & 0xffff0000u), r1 = x1 - VecFloat(h1 & 0xffff0000u);
  if (parts == 2) {
    words[1] = upper_halves(Bits(r0 * 1.0027f), Bits(r1 * 1.0027f));
    return;
  }
  words[1] = upper_halves(Bits(r0), Bits(r1));
  words[2] = upper_halves(Bits(r0 - VecFloat(Bits(r0) & 0xffff0000u)), Bits(r1 - VecFloat(Bits(r1) & 0xffff0000u)));
}
template <int parts> PAD_INLINE void split_to(VecFloat x0, VecFloat x1, float* to) {
  Bits words[3];
  split<parts>(x0, x1, words);
#pragma GCC unroll 3
  for (int i = 0; i < parts; ++i) *reinterpret_cast<Bits*>(to + i * kTileWords) = words[i];
}

// Floats that a packed operand takes.
constexpr PAD_INLINE index_t packed_size(index_t rows, index_t terms, int parts) {
  return ceil_div(rows, kTile) * ceil_div(terms, kTileTerms) * parts * kTileWords;
}

// A[rows][terms] from rows of floats. `terms` is a multiple of 16; rows up to the next block of 16 keep what the
// memory held before, and so does what they give.
template <int parts> static inline void pack_a(const float* from, index_t stride, index_t rows, index_t terms, float* to) {
  const index_t blocks = ceil_div(terms, kTileTerms);
  for (index_t r = 0; r < rows; ++r) {
    const float* row = from + r * stride;
    float* tile = to + r / kTile * blocks * parts * kTileWords + r % kTile * kTile;
    for (index_t k = 0; k < terms; k += kTileTerms, tile += parts * kTileWords)
      split_to<parts>(load(row + k), k + kTile < terms ? load(row + k + kTile) : VecFloat{}, tile);
  }
}

// A[columns][terms] from [terms][columns]: the transpose; `columns` is a multiple of 16. Missing terms count as 0.
template <int parts>
static inline void pack_a_transposed(const float* from, index_t stride, index_t terms, index_t columns, float* to) {
  for (index_t c = 0; c < columns; c += kTile)
    for (index_t k = 0; k < terms; k += kTileTerms, to += parts * kTileWords) {
      VecFloat x[2][kTile];
      for (int half = 0; half < 2; ++half) {
        const float* row = from + (k + half * kTile) * stride + c;
        const index_t left = terms - k - half * kTile;
        if (left >= kTile) {
#pragma GCC unroll 16
          for (int i = 0; i < kTile; ++i) x[half][i] = load(row + i * stride);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < kTile; ++i) x[half][i] = i < left ? load(row + i * stride) : VecFloat{};
        }
        exchange<float, 1>(x[half]);
        exchange<float, 2>(x[half]);
        exchange<float, 4>(x[half]);
        exchange<float, 8>(x[half]);
      }
      for (int i = 0; i < kTile; ++i) split_to<parts>(x[0][i], x[1][i], to + i * kTile);
    }
}

// B[terms][columns] from rows of floats; `columns` is a multiple of 16. Missing terms count as 0.
template <int parts>
static inline void pack_b(const float* from, index_t stride, index_t terms, index_t columns, float* to) {
  const index_t blocks = ceil_div(terms, kTileTerms);
  for (index_t k = 0; k < blocks * kTileTerms; k += kTileTerms)
    for (index_t i = 0; i < kTile; ++i) {
      const float *row0 = from + (k + i) * stride, *row1 = row0 + kTile * stride;
      const bool has0 = k + i < terms, has1 = k + i + kTile < terms;
      float* tile = to + k / kTileTerms * parts * kTileWords + i * kTile;
      for (index_t c = 0; c < columns; c += kTile, tile += blocks * parts * kTileWords)
        split_to<parts>(has0 ? load(row0 + c) : VecFloat{}, has1 ? load(row1 + c) : VecFloat{}, tile);
    }
}

// --- products --------------------------------------------------------------------------------------------------------
struct NoSideWork {
  PAD_INLINE void operator()() const {}
};

// Sums 0..3 += A B for R x N blocks and `parts` a of A with `parts` b of B: tiles 4, 5 hold A, 6, 7 hold B.
template <int R, int N> PAD_INLINE void load_a(const float* a, index_t step) {
  tile_load<4>(a, 64);
  if (R > 1) tile_load<5>(a + step, 64);
}
template <int N> PAD_INLINE void load_b(const float* b, index_t step) {
  tile_load<6>(b, 64);
  if (N > 1) tile_load<7>(b + step, 64);
}
template <int R, int N> PAD_INLINE void multiply_loaded() {
  tile_multiply<0, 4, 6>();
  if (N > 1) tile_multiply<1, 4, 7>();
  if (R > 1) tile_multiply<2, 5, 6>();
  if (R > 1 && N > 1) tile_multiply<3, 5, 7>();
}

// C[R blocks of 16][N blocks of 16] (+)= A B over `depth` blocks of 32 terms. `side` is called once per set of tile
// products (R x N of them, 16 cycles each): a few dozen instructions there are hidden behind the products.
template <int parts, int R, int N, class Side>
static PAD_INLINE void tile_kernel(index_t depth, const float* a, const float* b, float* c, index_t ldc,
                                   bool accumulate, Side& side) {
  constexpr index_t block = parts * kTileWords;
  const index_t step = depth * block;
  asm volatile("" ::: "memory");
  tile_zero<0>();
  if (N > 1) tile_zero<1>();
  if (R > 1) tile_zero<2>();
  if (R > 1 && N > 1) tile_zero<3>();
  for (index_t k = 0; k < depth; ++k) {
    const float *ak = a + k * block, *bk = b + k * block;
    load_a<R, N>(ak, step);  // hi
    if (parts == 3) {
      load_b<N>(bk + 2 * kTileWords, step);  // hi * lo
      multiply_loaded<R, N>();
      side();
    }
    load_b<N>(bk + kTileWords, step);  // hi * mid
    multiply_loaded<R, N>();
    side();
    load_a<R, N>(ak + kTileWords, step);
    if (parts == 3) {
      multiply_loaded<R, N>();  // mid * mid
      side();
    }
    load_b<N>(bk, step);  // mid * hi
    multiply_loaded<R, N>();
    side();
    if (parts == 3) {
      load_a<R, N>(ak + 2 * kTileWords, step);  // lo * hi
      multiply_loaded<R, N>();
      side();
    }
  }
  for (index_t k = 0; k < depth; ++k) {
    load_a<R, N>(a + k * block, step);
    load_b<N>(b + k * block, step);
    multiply_loaded<R, N>();
    side();
  }
  if (!accumulate) {
    tile_store<0>(c, ldc * 4);
    if (N > 1) tile_store<1>(c + kTile, ldc * 4);
    if (R > 1) tile_store<2>(c + kTile * ldc, ldc * 4);
    if (R > 1 && N > 1) tile_store<3>(c + kTile * ldc + kTile, ldc * 4);
    return;
  }
  // Sums start from zero and are added to C once: starting from C would round to C's precision at every product.
  alignas(64) float sum[R * kTile][N * kTile];
  constexpr index_t row_bytes = N * kTile * 4;
  tile_store<0>(sum[0], row_bytes);
  if (N > 1) tile_store<1>(sum[0] + kTile, row_bytes);
  if (R > 1) tile_store<2>(sum[R > 1 ? kTile : 0], row_bytes);
  if (R > 1 && N > 1) tile_store<3>(sum[R > 1 ? kTile : 0] + kTile, row_bytes);
#pragma GCC unroll 4
  for (int r = 0; r < R * kTile; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) store(c + r * ldc + n * kTile, load(c + r * ldc + n * kTile) + load(sum[r] + n * kTile));
}

// C (+)= A B, packed operands: `rows` and `columns` count blocks of 16, `depth` blocks of 32 terms. C is written in
// whole blocks. Pairs of column blocks start 2 * c_step apart: 16 in an ordinary matrix.
template <int parts, class Side>
static inline void tile_product(index_t rows, index_t columns, index_t depth, const float* a, const float* b, float* c,
                                index_t ldc, index_t c_step, bool accumulate, Side& side) {
  const index_t step = depth * parts * kTileWords;
  for (index_t n = 0; n < columns; n += 2) {
    const float* bn = b + n * step;
    float* cn = c + n * c_step;
    const bool wide = n + 1 < columns;
    index_t r = 0;
    for (; r + 1 < rows; r += 2) {
      if (wide)
        tile_kernel<parts, 2, 2>(depth, a + r * step, bn, cn + r * kTile * ldc, ldc, accumulate, side);
      else
        tile_kernel<parts, 2, 1>(depth, a + r * step, bn, cn + r * kTile * ldc, ldc, accumulate, side);
    }
    if (r < rows) {
      if (wide)
        tile_kernel<parts, 1, 2>(depth, a + r * step, bn, cn + r * kTile * ldc, ldc, accumulate, side);
      else
        tile_kernel<parts, 1, 1>(depth, a + r * step, bn, cn + r * kTile * ldc, ldc, accumulate, side);
    }
  }
}

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
