// The products of a convolution on AMX tiles (amx.h), for floats.
#pragma once
#include <utility>

#include "products.h"
#include "unroll/vector/amx.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

struct TileProducts : ProductShape {
  using ThreadState = TileScope;
  // More than for FMA: filters and sums stream past three times as fast, so that L3 would not keep up.
  static constexpr index_t kChunkTiles = 64, kFilterRows = 150;
  // Filters are stored point by point as packed B operands; sums of the weight gradient in panels of 32 columns, so
  // that they stream.
  static constexpr index_t kInputsAtOnce = kTileTerms;
  index_t forward_plane() const { return packed_size(out_padded, inputs, parts); }
  index_t backward_plane() const { return packed_size(in_padded, outputs, parts); }
  index_t sum_plane() const { return in_padded * ceil_div(out_padded, 2 * kTile) * 2 * kTile; }
  index_t sum_at(index_t c, index_t n) const {
    return n / (2 * kTile) * (2 * kTile) * in_padded + c * 2 * kTile + n % (2 * kTile);
  }
  index_t slack_rows() const { return kTile - 1; }  // products write whole blocks of rows

  // Packed operands of one point, for up to `rows` rows.
  index_t packed_rows(index_t rows) const { return packed_size(rows + kTile, max_of(in_padded, out_padded), parts); }
  index_t packed_columns(index_t rows) const { return packed_size(max_of(in_padded, out_padded), rows, parts); }
  index_t scratch_elements(index_t rows) const {
    return packed_rows(rows) + max_of(packed_rows(rows), 2 * packed_columns(rows));
  }

  // Filters of the inputs k and k + 16 share words. Two vectors of filters, transformed, to the same place of every
  // point. Inputs that do not exist count as zeros. `next` words further on the next pair will be written: without the
  // early request for those lines the transform would wait for them most of its time.
  void store_pair(const TileOps<float>& ops, const float* taps0, const float* taps1, index_t row, float* u,
                  index_t u_plane, index_t next) const {
    for (int p = 0; p < ops.points; ++p)
      for (int i = 0; i < parts; ++i) __builtin_prefetch(u + p * u_plane + i * kTileWords + next, 1, 2);
    alignas(64) float x[2][36 * kTile];
    ops.weights(taps0, row, x[0], kTile);
    if (taps1)
      ops.weights(taps1, row, x[1], kTile);
    else
      std::memset(x[1], 0, sizeof(x[1]));
    for (int p = 0; p < ops.points; ++p) {
      const VecFloat x0 = load(x[0] + p * kTile), x1 = load(x[1] + p * kTile);
      if (parts == 3)
        split_to<3>(x0, x1, u + p * u_plane);
      else
        split_to<2>(x0, x1, u + p * u_plane);
    }
  }
  // Word row `i` of terms `block` and columns n of a packed matrix.
  index_t filter_at(index_t terms, index_t block, index_t i, index_t n) const {
    return ((n / kTile * ceil_div(terms, kTileTerms) + block) * parts * kTile + i) * kTile;
  }
  void store_forward(const TileOps<float>& ops, const float* taps, index_t row, index_t c0, index_t count, index_t n0,
                     index_t n1, float* u) const {
    const index_t input = 9 * row;
    for (index_t n = n0; n < n1; n += kTile)
      for (index_t i = 0; i < kTile; ++i) {
        const float* at = taps + i * input + n - n0;
        float* to = u + filter_at(inputs, c0 / kTileTerms, i, n);
        if (i < count)
          store_pair(ops, at, i + kTile < count ? at + kTile * input : nullptr, row, to, forward_plane(), kTile);
        else
          clear_words(to, ops.points, forward_plane());
      }
  }
  static constexpr int kOutputsAtOnce = 2;
  index_t output_groups() const { return ceil_div(outputs, kTileTerms) * kTile; }
  static index_t group_member(index_t group, int member) {
    return group / kTile * kTileTerms + group % kTile + member * kTile;
  }
  void store_backward(const TileOps<float>& ops, const float* taps, index_t group, index_t c, float* u) const {
    float* to = u + filter_at(outputs, group / kTile, group % kTile, c);
    if (group_member(group, 0) >= outputs)
      clear_words(to, ops.points, backward_plane());
    else
      store_pair(ops, taps, group_member(group, 1) < outputs ? taps + 9 * kTile : nullptr, kTile, to, backward_plane(),
                 packed_size(kTile, outputs, parts));
  }

  void forward(const ForwardPoint<float>& f) const { parts == 3 ? forward_of<3>(f) : forward_of<2>(f); }
  void backward(const BackwardPoint<float>& b) const { parts == 3 ? backward_of<3>(b) : backward_of<2>(b); }

 private:
  void clear_words(float* to, int points, index_t u_plane) const {
    for (int p = 0; p < points; ++p)
      for (int i = 0; i < parts; ++i) store(to + p * u_plane + i * kTileWords, VecFloat{});
  }

  // out[rows] (+)= packed rows x packed filters; `next` is what the product after this one reads.
  template <int n, class Side> void rows_product(index_t rows, index_t columns, index_t terms, const float* a,
                                                 const float* b, float* out, index_t stride, bool accumulate,
                                                 Side& side, const float* next, index_t next_size) const {
    side.prefetch(next, next_size, rows_calls(rows, columns, terms));
    tile_product<n>(ceil_div(rows, kTile), columns / kTile, ceil_div(terms, kTileTerms), a, b, out, stride, kTile,
                    accumulate, side);
  }
  index_t rows_calls(index_t rows, index_t columns, index_t terms) const {
    return side_calls(ceil_div(rows, kTile), columns / kTile, ceil_div(terms, kTileTerms), parts);
  }

  // The rows of the next point are packed beside the products of this one, so there is room for two.
  template <int n> void forward_of(const ForwardPoint<float>& f) const {
    const bool stacked = f.out_d && f.in_d, apart = stacked && !f.out;
    const index_t rows = stacked ? 2 * f.tiles : f.tiles, gap = apart ? f.tiles : -1;
    float *packed = f.scratch, *packed_next = f.scratch + packed_rows(rows);
    if (f.point % 2) std::swap(packed, packed_next);
    if (f.point == 0) {
      PackA<n> now(f.in, in_stride, rows, gap, in_padded, packed);
      finish(now);
    }
    PackA<n> job(f.in + plane, in_stride, f.point + 1 < f.points ? rows : 0, gap, in_padded, packed_next);
    const index_t w_rows = apart ? f.tiles : rows, v_rows = f.out_d ? f.tiles : 0, size = forward_plane();
    SideWork<PackA<n>> side(job, rows_calls(w_rows, out_padded, inputs) + rows_calls(v_rows, out_padded, inputs));
    const float* next = f.w + size;
    if (f.out || stacked)
      rows_product<n>(w_rows, out_padded, inputs, apart ? packed + packed_size(f.tiles, in_padded, n) : packed, f.w,
                      f.out ? f.out : f.out_d, out_stride, false, side, f.out_d ? f.v : next, size);
    if (f.out_d)
      rows_product<n>(v_rows, out_padded, inputs, packed, f.v, f.out_d, out_stride, stacked, side, next, size);
    finish(job);
  }

  // Operands of a weight gradient, in^T and out.
  template <int n> Jobs<PackTransposed<n>, PackB<n>> weight_operands(index_t rows, const float* in, const float* out,
                                                                     float* to) const {
    return {PackTransposed<n>(in, in_stride, rows, in_padded, to),
            PackB<n>(out, out_stride, rows, rows ? out_padded : 0, to + packed_columns(rows))};
  }
  // sum (+)= in^T out
  template <int n, class Side> void weights_product(index_t rows, const float* operands, float* sum, bool accumulate,
                                                    Side& side, const float* next, index_t next_size) const {
    side.prefetch(next, next_size, weights_calls(rows));
    tile_product<n>(in_padded / kTile, out_padded / kTile, ceil_div(rows, kTileTerms), operands,
                    operands + packed_columns(rows), sum, 2 * kTile, kTile * in_padded, accumulate, side);
  }
  index_t weights_calls(index_t rows) const {
    return side_calls(in_padded / kTile, out_padded / kTile, ceil_div(rows, kTileTerms), parts);
  }

  // Beside the weight gradient the rows of its `out` are packed for the data gradient, and beside that one the
  // operands of the next point's weight gradient.
  template <int n> void backward_of(const BackwardPoint<float>& b) const {
    const index_t in_step = b.tiles * in_stride, out_step = b.tiles * out_stride;
    const bool stacked = b.du && b.both_in, last = b.point + 1 == b.points;
    const float *h = b.both_in ? b.in + in_step : b.in, *z = b.both_out ? b.out + out_step : b.out;
    const index_t sum_rows = stacked ? 2 * b.tiles : b.tiles;
    const float* sum_out = b.du && !stacked ? z : b.out;
    float *rows = b.scratch, *operands = b.scratch + packed_rows(b.both_out ? 2 * b.tiles : b.tiles);
    float* sum = b.du ? b.du : b.du_plain;

    // z' is packed in rows only for its own gradient, zd' for both.
    const bool w_both = b.wants_gh && b.wants_ghd, data = b.wants_gh || b.wants_ghd;
    const index_t rows_packed = b.wants_gh ? 2 * b.tiles : b.tiles;
    PackA<n> pack_rows(b.out, out_stride, data ? rows_packed : 0, w_both ? -1 : b.tiles, out_padded, rows);
    if (sum) {
      if (b.point == 0 || !data) {
        auto now = weight_operands<n>(sum_rows, b.in, sum_out, operands);
        finish(now);
      }
      SideWork<PackA<n>> side(pack_rows, weights_calls(sum_rows));
      weights_product<n>(sum_rows, operands, sum, b.du ? b.keep : b.keep_plain, side, b.w, backward_plane());
    }
    finish(pack_rows);
    if (b.du && b.du_plain) {
      auto now = weight_operands<n>(b.tiles, h, b.out, operands);
      finish(now);
      SideWork<decltype(now)> side(now, 1);
      weights_product<n>(b.tiles, operands, b.du_plain, b.keep_plain, side, b.w, backward_plane());
    }
    if (!data) return;

    auto job = weight_operands<n>(sum && !last ? sum_rows : 0, b.in + plane, sum_out + plane, operands);
    const index_t w_rows = w_both ? 2 * b.tiles : b.tiles, v_rows = b.wants_gh ? b.tiles : 0;
    SideWork<decltype(job)> side(job, rows_calls(w_rows, in_padded, outputs) + rows_calls(v_rows, in_padded, outputs));
    float* gh = b.wants_ghd ? b.in + in_step : b.in;
    const float* next = sum ? sum + sum_plane() : b.w + backward_plane();
    const index_t next_size = sum ? sum_plane() : backward_plane();
    const float* w_packed = b.wants_gh && !w_both ? rows + packed_size(b.tiles, out_padded, n) : rows;
    rows_product<n>(w_rows, in_padded, outputs, w_packed, b.w, b.in, in_stride, false, side, b.wants_gh ? b.v : next,
                    b.wants_gh ? backward_plane() : next_size);
    if (b.wants_gh) rows_product<n>(v_rows, in_padded, outputs, rows, b.v, gh, in_stride, true, side, next, next_size);
    finish(job);
  }
};

template <> struct ProductsOf<float> { using type = TileProducts; };

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
