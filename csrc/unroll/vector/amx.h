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

// Packing comes as jobs of small units, so that it can be done beside tile products (SideWork below): a unit takes
// about as long as four of them. finish() does what is left at once.
template <class Job> PAD_INLINE void finish(Job& job) {
  while (job.left > 0) job.unit();
}

// A[rows][terms] from rows of floats; a unit is a row. `terms` is a multiple of 16. After row `gap` the packed rows go
// on at the next block of 16. Rows that fill up a block keep what the memory held before, and so does what they give.
template <int parts> class PackA {
 public:
  index_t left;

  PackA(const float* from, index_t stride, index_t rows, index_t gap, index_t terms, float* to)
      : left(rows), from_(from), to_(to), stride_(stride), terms_(terms), gap_(gap),
        block_(ceil_div(terms, kTileTerms) * parts * kTileWords) {}
  __attribute__((noinline)) void unit() {
    float* tile = to_ + row_ / kTile * block_ + row_ % kTile * kTile;
    index_t k = 0;
    for (; k + kTile < terms_; k += kTileTerms, tile += parts * kTileWords)
      split_to<parts>(load(from_ + k), load(from_ + k + kTile), tile);
    if (k < terms_) split_to<parts>(load(from_ + k), VecFloat{}, tile);
    from_ += stride_, --left;
    if (++row_ == gap_) row_ = ceil_div(row_, kTile) * kTile;
  }

 private:
  const float* from_;
  float* to_;
  index_t stride_, terms_, gap_, block_, row_ = 0;
};

// A[columns][terms] from [terms][columns]: the transpose; `columns` is a multiple of 16. Missing terms count as 0. A
// unit is a quarter of a tile: two transposes and twice half of the splitting.
template <int parts> class PackTransposed {
 public:
  index_t left;

  PackTransposed(const float* from, index_t stride, index_t terms, index_t columns, float* to)
      : left(columns / kTile * ceil_div(terms, kTileTerms) * 4), from_(from), to_(to), stride_(stride), terms_(terms) {}
  __attribute__((noinline)) void unit() {
    if (step_ < 2) {
      transpose(x_[step_], k_ + step_ * kTile);
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const int at = (step_ - 2) * 8 + i;
        split_to<parts>(load(x_[0] + at * kTile), load(x_[1] + at * kTile), to_ + at * kTile);
      }
    }
    --left;
    if (++step_ < 4) return;
    step_ = 0, to_ += parts * kTileWords, k_ += kTileTerms;
    if (k_ >= terms_) k_ = 0, from_ += kTile;
  }

 private:
  PAD_INLINE void transpose(float* to, index_t first) const {
    const float* row = from_ + first * stride_;
    VecFloat x[kTile];
    if (first + kTile <= terms_) {
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) x[i] = load(row + i * stride_);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) x[i] = first + i < terms_ ? load(row + i * stride_) : VecFloat{};
    }
    transpose_rows<float>(x);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) store(to + i * kTile, x[i]);
  }

  const float* from_;
  float* to_;
  index_t stride_, terms_, k_ = 0;
  int step_ = 0;
  alignas(64) float x_[2][kTileWords];
};

// B[terms][columns] from rows of floats; a unit is a row of words. `columns` is a multiple of 16. Missing terms count
// as 0.
template <int parts> class PackB {
 public:
  index_t left;

  PackB(const float* from, index_t stride, index_t terms, index_t columns, float* to)
      : left(ceil_div(terms, kTileTerms) * kTile), from_(from), to_(to), stride_(stride), terms_(terms),
        columns_(columns) {}
  __attribute__((noinline)) void unit() {
    const index_t term = row_ / kTile * kTileTerms + row_ % kTile;
    const float *row0 = from_ + term * stride_, *row1 = row0 + kTile * stride_;
    float* tile = to_ + row_ / kTile * parts * kTileWords + row_ % kTile * kTile;
    const index_t step = ceil_div(terms_, kTileTerms) * parts * kTileWords;
    if (term + kTile < terms_) {
      for (index_t c = 0; c < columns_; c += kTile, tile += step) split_to<parts>(load(row0 + c), load(row1 + c), tile);
    } else {
      const bool has0 = term < terms_;
      for (index_t c = 0; c < columns_; c += kTile, tile += step)
        split_to<parts>(has0 ? load(row0 + c) : VecFloat{}, VecFloat{}, tile);
    }
    ++row_, --left;
  }

 private:
  const float* from_;
  float* to_;
  index_t stride_, terms_, columns_, row_ = 0;
};

// --- products --------------------------------------------------------------------------------------------------------
// Calls of the side work (see tile_sums) per block of terms of R x N blocks, and in a whole product.
constexpr PAD_INLINE index_t calls_per_block(int parts) { return parts == 3 ? 6 : 3; }
constexpr PAD_INLINE index_t side_calls(index_t rows, index_t columns, index_t depth, int parts) {
  return ceil_div(rows, 2) * ceil_div(columns, 2) * depth * calls_per_block(parts);
}

// Two jobs, one after the other.
template <class First, class Second> struct Jobs {
  First first;
  Second second;
  index_t left = first.left + second.left;
  PAD_INLINE void unit() {
    --left;
    first.left > 0 ? first.unit() : second.unit();
  }
};

// What is done beside tile products, spread evenly over `calls` calls: the units of a packing job, and bringing what
// the next product reads into L2.
template <class Job> class SideWork {
 public:
  SideWork(Job& job, index_t calls) : job_(job), calls_(calls), units_(job.left) {}
  void prefetch(const float* from, index_t floats, index_t calls) {
    ahead_ = reinterpret_cast<const char*>(from), lines_ = ceil_div(ceil_div(floats * 4, kLine), calls);
  }
  PAD_INLINE void operator()() {
    for (index_t i = 0; i < lines_; ++i, ahead_ += kLine) __builtin_prefetch(ahead_, 0, 2);
    for (due_ += units_; due_ >= calls_; due_ -= calls_)
      if (job_.left > 0) job_.unit();
  }

 private:
  Job& job_;
  const char* ahead_ = nullptr;
  index_t calls_, units_, due_ = 0, lines_ = 0;
};

// An operand as the tile registers take it: where its first tile stands, how far apart rows of a tile are (in bytes),
// and how far from a tile those of its next part, terms and block are (in floats).
struct TileGrid {
  const float* at;
  index_t row_bytes, part, term, block;
};
template <int parts> PAD_INLINE TileGrid packed_grid(const float* at, index_t depth) {
  return {at, kTile * 4, kTileWords, parts * kTileWords, depth * parts * kTileWords};
}

// One or two blocks of an operand: its part `part` of the terms k.
template <int tile, int blocks> PAD_INLINE void load_blocks(TileGrid from, index_t k, index_t part) {
  const float* at = from.at + k * from.term + part * from.part;
  tile_load<tile>(at, from.row_bytes);
  if (blocks > 1) tile_load<tile + 1>(at + from.block, from.row_bytes);
}
// Sums 0..3 += A B of the tiles 4, 5 (A) and 6, 7 (B).
template <int R, int N> PAD_INLINE void multiply_loaded() {
  tile_multiply<0, 4, 6>();
  if (N > 1) tile_multiply<1, 4, 7>();
  if (R > 1) tile_multiply<2, 5, 6>();
  if (R > 1 && N > 1) tile_multiply<3, 5, 7>();
}

// Tiles 0..3 = A B, of R x N blocks, over `depth` blocks of 32 terms. `side` is called once per set of tile products
// (R x N of them, 16 cycles each): a few dozen instructions there are hidden behind the products.
template <int parts, int R, int N, class Side>
static PAD_INLINE void tile_sums(index_t depth, TileGrid a, TileGrid b, Side& side) {
  enum { hi, mid, lo };
  const auto multiply = [&]() __attribute__((always_inline)) { multiply_loaded<R, N>(), side(); };
  asm volatile("" ::: "memory");
  tile_zero<0>();
  if (N > 1) tile_zero<1>();
  if (R > 1) tile_zero<2>();
  if (R > 1 && N > 1) tile_zero<3>();
  for (index_t k = 0; k < depth; ++k) {
    load_blocks<4, R>(a, k, hi);
    if (parts == 3) load_blocks<6, N>(b, k, lo), multiply();
    load_blocks<6, N>(b, k, mid), multiply();
    load_blocks<4, R>(a, k, mid);
    if (parts == 3) multiply();
    load_blocks<6, N>(b, k, hi), multiply();
    if (parts == 3) load_blocks<4, R>(a, k, lo), multiply();
  }
  for (index_t k = 0; k < depth; ++k) load_blocks<4, R>(a, k, hi), load_blocks<6, N>(b, k, hi), multiply();
}
// C = the sums of tile_sums().
template <int R, int N> PAD_INLINE void store_sums(float* c, index_t ldc) {
  tile_store<0>(c, ldc * 4);
  if constexpr (N > 1) tile_store<1>(c + kTile, ldc * 4);
  if constexpr (R > 1) tile_store<2>(c + kTile * ldc, ldc * 4);
  if constexpr (R > 1 && N > 1) tile_store<3>(c + kTile * ldc + kTile, ldc * 4);
}

// C[R blocks of 16][N blocks of 16] (+)= A B.
template <int parts, int R, int N, class Side>
static PAD_INLINE void tile_kernel(index_t depth, TileGrid a, TileGrid b, float* c, index_t ldc, bool accumulate,
                                   Side& side) {
  tile_sums<parts, R, N>(depth, a, b, side);
  if (!accumulate) return store_sums<R, N>(c, ldc);
  // Sums start from zero and are added to C once: starting from C would round to C's precision at every product.
  alignas(64) float sum[R * kTile][N * kTile];
  store_sums<R, N>(sum[0], N * kTile);
#pragma GCC unroll 4
  for (int r = 0; r < R * kTile; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      float* at = c + r * ldc + n * kTile;
      store(at, load(at) + load(sum[r] + n * kTile));
    }
}

// C (+)= A B, packed operands: `rows` and `columns` count blocks of 16, `depth` blocks of 32 terms. C is written in
// whole blocks. Pairs of column blocks start 2 * c_step apart: 16 in an ordinary matrix.
template <int parts, class Side>
static inline void tile_product(index_t rows, index_t columns, index_t depth, const float* a, const float* b, float* c,
                                index_t ldc, index_t c_step, bool accumulate, Side& side) {
  TileGrid bn = packed_grid<parts>(b, depth);
  for (index_t n = 0; n < columns; n += 2, bn.at += 2 * bn.block) {
    TileGrid ar = packed_grid<parts>(a, depth);
    float* to = c + n * c_step;
    const bool wide = n + 1 < columns;
    index_t r = 0;
    for (; r + 1 < rows; r += 2, ar.at += 2 * ar.block, to += 2 * kTile * ldc) {
      if (wide)
        tile_kernel<parts, 2, 2>(depth, ar, bn, to, ldc, accumulate, side);
      else
        tile_kernel<parts, 2, 1>(depth, ar, bn, to, ldc, accumulate, side);
    }
    if (r < rows) {
      if (wide)
        tile_kernel<parts, 1, 2>(depth, ar, bn, to, ldc, accumulate, side);
      else
        tile_kernel<parts, 1, 1>(depth, ar, bn, to, ldc, accumulate, side);
    }
  }
}

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
