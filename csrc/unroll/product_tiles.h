// The products of a convolution on AMX tiles (amx.h), for floats.
#pragma once
#include "amx.h"
#include "products.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

struct TileProducts : ProductShape {
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
  index_t packed_rows(index_t rows) const {
    return packed_size(rows + kTile, max_of(in_padded, out_padded), parts);
  }
  index_t packed_columns(index_t rows) const { return packed_size(max_of(in_padded, out_padded), rows, parts); }
  index_t scratch_elements(index_t rows) const { return max_of(packed_rows(rows), 2 * packed_columns(rows)); }

  // Filters of the inputs k and k + 16 share words. Two vectors of filters, transformed, to the same place of every
  // point. Inputs that do not exist count as zeros.
  void store_pair(const TileOps<float>& ops, const float* taps0, const float* taps1, index_t row, float* u,
                  index_t u_plane) const {
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
          store_pair(ops, at, i + kTile < count ? at + kTile * input : nullptr, row, to, forward_plane());
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
      store_pair(ops, taps, group_member(group, 1) < outputs ? taps + 9 * kTile : nullptr, kTile, to, backward_plane());
  }

  void forward(const ForwardPoint<float>& f) const { parts == 3 ? forward_of<3>(f) : forward_of<2>(f); }
  void backward(const BackwardPoint<float>& b) const { parts == 3 ? backward_of<3>(b) : backward_of<2>(b); }

 private:
  void clear_words(float* to, int points, index_t u_plane) const {
    for (int p = 0; p < points; ++p)
      for (int i = 0; i < parts; ++i) store(to + p * u_plane + i * kTileWords, VecFloat{});
  }

  // out[rows] (+)= packed rows x packed filters
  template <int n> void rows_product(index_t rows, index_t columns, index_t terms, const float* a, const float* b,
                                     float* out, index_t stride, bool accumulate) const {
    NoSideWork none;
    tile_product<n>(ceil_div(rows, kTile), columns / kTile, ceil_div(terms, kTileTerms), a, b, out, stride, kTile,
                    accumulate, none);
  }
  template <int n> void forward_of(const ForwardPoint<float>& f) const {
    const bool stacked = f.out_d && f.in_d, apart = stacked && !f.out;
    pack_a<n>(f.in, in_stride, stacked && !apart ? 2 * f.tiles : f.tiles, in_padded, f.scratch);
    if (f.out)
      rows_product<n>(stacked ? 2 * f.tiles : f.tiles, out_padded, inputs, f.scratch, f.w, f.out, out_stride, false);
    if (apart) {
      float* tangents = f.scratch + packed_size(f.tiles, in_padded, n);
      pack_a<n>(f.in_d, in_stride, f.tiles, in_padded, tangents);
      rows_product<n>(f.tiles, out_padded, inputs, tangents, f.w, f.out_d, out_stride, false);
    }
    if (f.out_d) rows_product<n>(f.tiles, out_padded, inputs, f.scratch, f.v, f.out_d, out_stride, stacked);
  }

  // sum (+)= in^T out
  template <int n> void weights_product(index_t rows, const float* in, const float* out, float* sum, bool accumulate,
                                        float* scratch) const {
    float* packed = scratch + packed_columns(rows);
    pack_a_transposed<n>(in, in_stride, rows, in_padded, scratch);
    pack_b<n>(out, out_stride, rows, out_padded, packed);
    NoSideWork none;
    tile_product<n>(in_padded / kTile, out_padded / kTile, ceil_div(rows, kTileTerms), scratch, packed, sum, 2 * kTile,
                    kTile * in_padded, accumulate, none);
  }
  template <int n> void backward_of(const BackwardPoint<float>& b) const {
    const index_t in_step = b.tiles * in_stride, out_step = b.tiles * out_stride;
    const float *h = b.both_in ? b.in + in_step : b.in, *z = b.both_out ? b.out + out_step : b.out;
    if (b.du)
      weights_product<n>(b.both_in ? 2 * b.tiles : b.tiles, b.in, b.both_in ? b.out : z, b.du, b.keep, b.scratch);
    if (b.du_plain) weights_product<n>(b.tiles, h, b.out, b.du_plain, b.keep_plain, b.scratch);
    if (b.wants_gh) {
      float *gh = b.wants_ghd ? b.in + in_step : b.in, *tangents = b.scratch;
      if (b.wants_ghd) {
        pack_a<n>(b.out, out_stride, 2 * b.tiles, out_padded, b.scratch);
        rows_product<n>(2 * b.tiles, in_padded, outputs, b.scratch, b.w, b.in, in_stride, false);
      } else {
        tangents += packed_size(b.tiles, out_padded, n);
        pack_a<n>(z, out_stride, b.tiles, out_padded, b.scratch);
        pack_a<n>(b.out, out_stride, b.tiles, out_padded, tangents);
        rows_product<n>(b.tiles, in_padded, outputs, b.scratch, b.w, gh, in_stride, false);
      }
      rows_product<n>(b.tiles, in_padded, outputs, tangents, b.v, gh, in_stride, true);
    } else if (b.wants_ghd) {
      pack_a<n>(b.out, out_stride, b.tiles, out_padded, b.scratch);
      rows_product<n>(b.tiles, in_padded, outputs, b.scratch, b.w, b.in, in_stride, false);
    }
  }
};

template <> struct ProductsOf<float> { using type = TileProducts; };

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
