// The first block on matrix tiles (amx.h): its forward pass and the sums over patches (eq. 32) as products of packed
// tiles. They are direct sums over 9 C taps, which fit a tile better than the few points of minimal filtering do.
// Packing the next block and using up earlier results is done in between the products (`Interleaved`).
#pragma once
#include "unroll/conv/tiles.h"
#include "unroll/network.h"
#include "unroll/vector/amx.h"
#include "unroll/vector/carver.h"
#include "unroll/vector/masks.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

// Side work of a product, spread over `calls` calls: first(0), second(0), first(1), ..
template <class First, class Second> struct Interleaved {
  const First& first;
  const Second& second;
  index_t firsts, seconds, at_once, done = 0;
  PAD_INLINE Interleaved(const First& one, index_t count, const Second& other, index_t count_other, index_t calls)
      : first(one), second(other), firsts(count), seconds(count_other),
        at_once(ceil_div(max_of(count, count_other), calls)) {}
  PAD_INLINE void operator()() {
    for (index_t i = 0; i < at_once; ++i, ++done) {
      if (done < firsts) first(done);
      if (done < seconds) second(done);
    }
  }
};
constexpr int kResults = 3;  // results are used two products later: loads too close behind tile stores wait for them

struct FirstTiles {
  using V = VecFloat;
  static constexpr bool used = true;
  struct Sizes {
    index_t channels, taps;
    index_t row, plane;  // of the padded image
    index_t pooled_h, pooled_w, vectors, stride;
  };
  index_t channels, taps, row, plane, pooled_h, pooled_w, vectors, stride;
  index_t offset[kMostTaps + 1];

  // --- sizes, in floats -------------------------------------------------------------------------------------------
  index_t tap_blocks() const { return ceil_div(taps + 1, kTileTerms); }  // with the constant
  index_t x_blocks() const { return ceil_div(pooled_w, 8); }             // of 16 pixels, 8 windows
  index_t filter_elements() const { return packed_size(vectors * kTile, taps + 1, 3); }
  index_t patch_elements() const { return 2 * x_blocks() * 2 * tap_blocks() * 3 * kTileWords; }
  // Rows of taps for the sums: per image row, every channel shifted by 0, 1, 2, and a constant.
  index_t lines() const { return 3 * channels + 1; }
  index_t line_blocks() const { return ceil_div(3 * lines(), kTile); }
  index_t pitch() const { return ceil_div(pooled_w, kTile) * kTile; }  // words: 16 windows are 32 pixels
  index_t line_part() const { return ((2 * pooled_h + 2) * lines() + kTile) * pitch(); }
  struct Scratch {
    float *filters, *patches, *lines, *pulls, *sums, *results;

    void carve(Carver& memory, const FirstTiles& f) {
      memory.take(filters, 2 * f.filter_elements());
      memory.take(patches, f.patch_elements());
      memory.take(lines, 3 * f.line_part());
      memory.take(pulls, 2 * 2 * 2 * 3 * kTileWords);  // twice two blocks by two blocks of terms
      memory.take(sums, f.line_blocks() * kTile * 32);
      memory.take(results, kResults * 4 * kTileWords);
    }
  };

  void set_up(Sizes s) {
    channels = s.channels, taps = s.taps, row = s.row, plane = s.plane;
    pooled_h = s.pooled_h, pooled_w = s.pooled_w, vectors = s.vectors, stride = s.stride;
    for (index_t k = 0; k < kMostTaps + 1; ++k) offset[k] = k < taps ? (k / 9) * plane + (k % 9 / 3) * row + k % 3 : 0;
  }
  // --- forward ----------------------------------------------------------------------------------------------------
  // Rows of packed A: 16 patches of one row of pixels, with a constant 1 behind the taps.
  template <int parts> void pack_patches(const float* x, float* to) const {
    for (index_t block = 0; block < tap_blocks(); ++block, to += parts * kTileWords) {
      V part[2][kTile];
      for (int half = 0; half < 2; ++half) {
        const index_t k0 = block * kTileTerms + half * kTile;
#pragma GCC unroll 16
        for (index_t i = 0; i < kTile; ++i)
          part[half][i] = k0 + i < taps ? load_unaligned(x + offset[k0 + i]) : splat(k0 + i == taps ? 1.0f : 0.0f);
        transpose_rows<float>(part[half]);
      }
#pragma GCC unroll 16
      for (index_t i = 0; i < kTile; ++i) split_to<parts>(part[0][i], part[1][i], to + i * kTile);
    }
  }

  template <int parts> void pack_filters(const float* from, float* to) const {
    PackB<parts> pack(from, stride, taps + 1, vectors * kTile, to);
    while (pack.left > 0) pack.unit();
  }

  enum Mode { kValues, kBoth, kTangentOnly };
  static PAD_INLINE __m512 larger(__m512 a, __m512 b) { return _mm512_maskz_max_ps(__mmask16(-1), a, b); }
  // One window of a block's results: two rows of 16 pixels, two vectors of channels or of streams.
  template <Mode mode>
  static PAD_INLINE void finish_window(const float* c, Mask* first, Mask* other, float* to, float* to_other) {
    const __m512 zero = _mm512_setzero_ps();
    __m512 left = zero, right = zero;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float* at = c + (i / 2 * kTile + i % 2) * 32;
      const __m512 a = _mm512_load_ps(at), b = _mm512_load_ps(at + kTile);
      // The larger of 0 and NaN is the second of them.
      if (mode == kTangentOnly) {
        left = _mm512_mask_add_ps(left, first[i], left, a), right = _mm512_mask_add_ps(right, other[i], right, b);
      } else if (mode == kBoth) {
        const __mmask16 on = _mm512_cmp_ps_mask(a, zero, _CMP_GT_OQ);
        first[i] = on;
        left = left + larger(zero, a), right = _mm512_mask_add_ps(right, on, right, b);
      } else {
        first[i] = _mm512_cmp_ps_mask(a, zero, _CMP_GT_OQ), other[i] = _mm512_cmp_ps_mask(b, zero, _CMP_GT_OQ);
        left = left + larger(zero, a), right = right + larger(zero, b);
      }
    }
    _mm512_store_ps(to, left), _mm512_store_ps(to_other, right);
  }

  // o (and od) of one image, with the signs (eq. 31). w1, w2: [taps, constant][stride].
  template <int parts, Mode mode>
  void forward(const float* x, const float* w1, const float* w2, Mask* signs, View<float> o, View<float> od,
               Scratch s) const {
    const index_t depth = tap_blocks(), block = depth * parts * kTileWords;
    float *f1 = s.filters, *f2 = s.filters + filter_elements();
    if (mode != kTangentOnly) pack_filters<parts>(w1, f1);
    if (mode != kValues) pack_filters<parts>(w2, f2);
    const index_t step = mode == kBoth ? 1 : 2, pairs = ceil_div(vectors, step);
    struct Job {
      const float* c;
      Mask *first, *other;
      float *to, *to_other;
      index_t windows;
    } ring[kResults] = {};
    const index_t pixel = o.pixel, mask = vectors * 4;
    int turn = 0;
    const Job* now = ring;
    const auto nothing = [](index_t) {};
    const auto finish = [&](index_t i) __attribute__((always_inline)) {
      finish_window<mode>(now->c + i * 64, now->first + i * mask, now->other + i * mask, now->to + i * pixel,
                          now->to_other + i * pixel);
    };
    // Patches of one row of windows: [16 pixels][two rows of pixels]; the next row's are packed in between.
    const index_t patches = 2 * x_blocks();
    const auto pack = [&](index_t y, index_t i) {
      pack_patches<parts>(x + (2 * y + i % 2) * row + i / 2 * kTile, s.patches + (y % 2 * patches + i) * block);
    };
    for (index_t i = 0; i < patches; ++i) pack(0, i);
    for (index_t y = 0; y < pooled_h; ++y) {
      const float* a = s.patches + y % 2 * patches * block;
      index_t packed = y + 1 < pooled_h ? 0 : patches;
      for (index_t p = 0; p < pairs; ++p) {
        const index_t n = p * step, second = mode != kBoth && n + 1 < vectors ? n + 1 : n;
        const float* f = (mode == kTangentOnly ? f2 : f1) + n * block;
        const index_t apart = mode == kBoth ? f2 - f1 : (second - n) * block;
        for (index_t at = 0; at < x_blocks(); ++at) {
          const int next = turn + 1 == kResults ? 0 : turn + 1;
          now = ring + next;  // the oldest
          float* c = s.results + turn * 4 * kTileWords;
          Interleaved side(finish, now->windows, nothing, 0, depth * calls_per_block(parts));
          TileGrid right = packed_grid<parts>(f, depth);
          right.block = apart;
          tile_kernel<parts, 2, 2>(depth, packed_grid<parts>(a + 2 * at * block, depth), right, c, 32, false, side);
          const index_t window = y * pooled_w + 8 * at;
          const View<float>&to = mode == kTangentOnly ? od : o, &to_other = mode == kValues ? o : od;
          ring[turn] = {c,
                        signs + (window * vectors + n) * 4,
                        signs + (window * vectors + second) * 4,
                        to.at(y, 8 * at) + n * kTile,
                        to_other.at(y, 8 * at) + second * kTile,
                        min_of<index_t>(8, pooled_w - 8 * at)};
          ring[next].windows = 0;
          turn = next;
          if (packed < patches) pack(y + 1, packed++);
        }
      }
      while (packed < patches) pack(y + 1, packed++);
    }
    for (const Job& job : ring) {
      now = &job;
      for (index_t i = 0; i < job.windows; ++i) finish(i);
    }
  }

  // --- sums over patches ------------------------------------------------------------------------------------------
  // Packed A of the sums: words pair the pixels j and j + 16 of 32.
  template <int parts> void pack_lines(const float* x, float* to) const {
    for (index_t r = 0; r < 2 * pooled_h + 2; ++r) {
      for (index_t c = 0; c < channels; ++c)
        for (index_t dx = 0; dx < 3; ++dx)
          for (index_t at = 0; at < pitch(); at += kTile) {
            const float* from = x + c * plane + r * row + dx + 2 * at;
            Bits words[3];
            split<parts>(load_unaligned(from), load_unaligned(from + kTile), words);
            float* line = to + (r * lines() + 3 * c + dx) * pitch() + at;
#pragma GCC unroll 3
            for (int i = 0; i < parts; ++i) *reinterpret_cast<Bits*>(line + i * line_part()) = words[i];
          }
      for (index_t at = 0; at < pitch(); at += kTile) {
        Bits words[3];
        split<parts>(splat(1.0f), splat(1.0f), words);
        float* line = to + (r * lines() + 3 * channels) * pitch() + at;
#pragma GCC unroll 3
        for (int i = 0; i < parts; ++i) *reinterpret_cast<Bits*>(line + i * line_part()) = words[i];
      }
    }
  }

  // Bits of m0 and m1 in turn: the mask of the 16-bit halves of words.
  static PAD_INLINE std::uint64_t alternate(std::uint32_t m0, std::uint32_t m1) {
    std::uint64_t even, odd;
    asm("pdep %2, %1, %0" : "=r"(even) : "r"(std::uint64_t(m0)), "r"(0x5555555555555555ull));
    asm("pdep %2, %1, %0" : "=r"(odd) : "r"(std::uint64_t(m1)), "r"(0xaaaaaaaaaaaaaaaaull));
    return even | odd;
  }
  static PAD_INLINE void masked(__mmask32 mask, const Bits* words, int parts, float* to) {
#pragma GCC unroll 3
    for (int i = 0; i < parts; ++i)
      _mm512_store_si512(to + i * kTileWords, _mm512_maskz_mov_epi16(mask, __m512i(words[i])));
  }
  // Windows w and w + 8 of a row of windows, one vector of channels: their rows of packed B,
  // [two rows of pixels][parts].
  template <int parts, int streams>
  PAD_INLINE void pack_windows(const float* const (&pull)[2], index_t pixel, const Mask* signs, index_t w,
                               index_t count, float* const (&to)[2]) const {
    std::uint64_t low = 0, high = 0;
    const bool has0 = w < count, has1 = w + 8 < count;
    if (has0) std::memcpy(&low, signs + w * vectors * 4, 8);
    if (has1) std::memcpy(&high, signs + (w + 8) * vectors * 4, 8);
    const std::uint64_t top = alternate(std::uint32_t(low), std::uint32_t(high));
    const std::uint64_t bottom = alternate(std::uint32_t(low >> 32), std::uint32_t(high >> 32));
#pragma GCC unroll 2
    for (int i = 0; i < streams; ++i) {
      Bits words[3];
      split<parts>(has0 ? load(pull[i] + w * pixel) : V{}, has1 ? load(pull[i] + (w + 8) * pixel) : V{}, words);
      float* at = to[i] + 2 * w * kTile;
      masked(__mmask32(top), words, parts, at);
      masked(__mmask32(top >> 32), words, parts, at + kTile);
      masked(__mmask32(bottom), words, parts, at + parts * kTileWords);
      masked(__mmask32(bottom >> 32), words, parts, at + parts * kTileWords + kTile);
    }
  }

  // S and total of one stream, or of two with the same signs (b not null): sums [taps][stride]. pack_lines() comes
  // first.
  template <int parts>
  void patch_sums(const Mask* signs, const View<const float>* a, const View<const float>* b, float* const (&sums)[2],
                  float* const (&totals)[2], Scratch s) const {
    const index_t step = b ? 1 : 2;
    for (index_t n = 0; n < vectors; n += step) {
      const index_t second = b || n + 1 == vectors ? n : n + 1;
      sum_columns<parts>(signs, *a, b ? *b : *a, n, second, b != nullptr, s);
      for (int i = 0; i < 2; ++i) {
        const index_t to = i ? second : n;
        for (index_t k = 0; k < taps; ++k)
          store(sums[i] + k * stride + to * kTile,
                load(s.sums + ((k % 9 / 3) * lines() + k / 9 * 3 + k % 3) * 32 + i * kTile));
        store(totals[i] + to * kTile, load(s.sums + 3 * channels * 32 + i * kTile));
      }
    }
  }
  // s.sums[lines][2 vectors]: of stream a at n and of stream b at `second`.
  template <int parts>
  void sum_columns(const Mask* signs, View<const float> a, View<const float> b, index_t n, index_t second, bool streams,
                   Scratch s) const {
    constexpr index_t tiles = 2 * parts * kTileWords;  // of one column block: two rows of pixels
    std::memset(s.sums, 0, line_blocks() * kTile * 32 * sizeof(float));
    const index_t across = ceil_div(pooled_w, kTile), bands = line_blocks();
    struct Source {
      const Mask* signs;
      const float *a, *b;
      index_t windows;
      float* to;
    } source;
    const auto choose = [&](index_t y, index_t x, int buffer) {
      source = {signs + (y * pooled_w + x * kTile) * vectors * 4, a.at(y, x * kTile) + n * kTile,
                b.at(y, x * kTile) + second * kTile, min_of(kTile, pooled_w - x * kTile), s.pulls + buffer * 2 * tiles};
    };
    const auto pack = [&](index_t i) __attribute__((always_inline)) {
      if (streams) {
        pack_windows<parts, 2>({source.a, source.b}, a.pixel, source.signs + n * 4, i, source.windows,
                               {source.to, source.to + tiles});
      } else {
        pack_windows<parts, 1>({source.a, nullptr}, a.pixel, source.signs + n * 4, i, source.windows,
                               {source.to, nullptr});
        pack_windows<parts, 1>({source.b, nullptr}, a.pixel, source.signs + second * 4, i, source.windows,
                               {source.to + tiles, nullptr});
      }
    };
    struct Job {
      const float* from;
      float* to;
      index_t rows;
    } ring[kResults] = {};
    const Job* now = ring;
    // The side work of a product: pairs of windows of the next block, and rows of earlier results.
    constexpr int rows_at_once = 4;
    const auto add = [&](index_t i) __attribute__((always_inline)) {
      const float* from = now->from + i * rows_at_once * 32;
      float* to = now->to + i * rows_at_once * 32;
#pragma GCC unroll 4
      for (int r = 0; r < rows_at_once; ++r, from += 32, to += 32) {
        store(to, load(to) + load(from));
        store(to + kTile, load(to + kTile) + load(from + kTile));
      }
    };
    choose(0, 0, 0);
    for (index_t i = 0; i < kTile / 2; ++i) pack(i);
    int turn = 0, buffer = 0;
    for (index_t y = 0; y < pooled_h; ++y)
      for (index_t x = 0; x < across; ++x, buffer ^= 1) {
        const bool more = x + 1 < across || y + 1 < pooled_h;
        if (more) choose(x + 1 < across ? y : y + 1, x + 1 < across ? x + 1 : 0, buffer ^ 1);
        for (index_t r = 0; r < bands; r += 2) {
          const int next = turn + 1 == kResults ? 0 : turn + 1;
          now = ring + next;
          const index_t packs = r == 0 && more ? kTile / 2 : 0;
          Interleaved side(pack, packs, add, now->rows / rows_at_once, 2 * calls_per_block(parts));
          const TileGrid left{s.lines + (2 * y * lines() + r * kTile) * pitch() + x * kTile, pitch() * 4, line_part(),
                              lines() * pitch(), kTile * pitch()};
          const TileGrid right{s.pulls + buffer * 2 * tiles, 64, kTileWords, parts * kTileWords, tiles};
          float* c = s.results + turn * 4 * kTileWords;
          const bool two = r + 1 < bands;
          if (two)
            tile_kernel<parts, 2, 2>(2, left, right, c, 32, false, side);
          else
            tile_kernel<parts, 1, 2>(2, left, right, c, 32, false, side);
          ring[turn] = {c, s.sums + r * kTile * 32, two ? 2 * kTile : kTile};
          ring[next].rows = 0;
          turn = next;
        }
      }
    for (const Job& job : ring) {
      now = &job;
      for (index_t i = 0; i < job.rows / rows_at_once; ++i) add(i);
    }
  }
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
