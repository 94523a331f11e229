// The matrix products of a convolution in the transformed domain, point by point: [tiles, channels] x [channels,
// channels] and the weight gradient's [channels, tiles] x [tiles, channels], and how filters are laid out for them.
// FmaProducts serves every element type on every machine; TileProducts (product_tiles.h) takes floats on AMX.
#pragma once
#include "tiles.h"
#include "unroll/vector/gemm.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

// Sizes that the products of a layer need to know. Rows are tiles; the data of one point is [rows][stride].
struct ProductShape {
  index_t inputs, outputs, in_padded, out_padded, in_stride, out_stride, plane;
  int parts;  // bfloat16 values that stand for a float (amx.h)
};

// One point of a forward pass over `tiles` tiles: out = in W, and for the tangents out_d = in_d W + in V. Tangents
// follow their primals directly. Null pointers: no `out` wanted (w.out), no tangents (out_d) or none coming in (in_d).
template <class T> struct ForwardPoint {
  int point, points;
  index_t tiles;
  const T *in, *in_d, *w, *v;
  T *out, *out_d, *scratch;
};

// One point of a backward pass. Tangents (zd', hd) come first, the others (z', h) `tiles` rows after them when both are
// there. The gradients (ghd, then gh) replace `in`.
template <class T> struct BackwardPoint {
  int point, points;
  index_t tiles;
  T* in;           // (hd,) h
  const T* out;    // (zd',) z'
  bool both_in, both_out;
  const T *w, *v;  // transposed filters
  T *du, *du_plain, *scratch;
  bool keep, keep_plain;  // du, du_plain already hold something
  bool wants_gh, wants_ghd;
};

template <class T> struct FmaProducts : ProductShape {
  struct ThreadState {};  // what a thread needs while it works
  static constexpr index_t kChunkTiles = 32, kFilterRows = 50;  // see Conv::set_up
  // Filters are stored point by point, packed in panels (gemm.h): forward [inputs x out_padded], backward
  // [outputs x in_padded]; so are the sums of the weight gradient, like forward ones.
  static constexpr index_t kInputsAtOnce = 16;
  index_t forward_plane() const { return inputs * out_padded; }
  index_t backward_plane() const { return outputs * in_padded; }
  index_t sum_plane() const { return inputs * out_padded; }
  index_t scratch_elements(index_t) const { return 0; }  // of working memory, kept from point to point
  index_t slack_rows() const { return 0; }

  // Where row r, column n (a multiple of the vector length) of a packed matrix is.
  static index_t packed_at(index_t rows, index_t columns, index_t r, index_t n) {
    constexpr index_t widest = kVectors * lanes<T>;
    const index_t start = n / widest * widest;
    const bool narrow = n - start >= 2 * lanes<T> && columns - start < widest;
    const index_t first = narrow ? start + 2 * lanes<T> : start;
    return first * rows + r * panel_width<T>(columns, first) + n - first;
  }
  index_t sum_at(index_t c, index_t n) const { return packed_at(inputs, out_padded, c, n); }

  // Filters of `count` inputs from c0 on to the outputs [n0, n1). Taps are [input][9][row].
  void store_forward(const TileOps<T>& ops, const T* taps, index_t row, index_t c0, index_t count, index_t n0,
                     index_t n1, T* u) const {
    for (index_t c = 0; c < count; ++c)
      for (index_t n = n0; n < n1; n += lanes<T>)
        ops.weights(taps + c * 9 * row + n - n0, row, u + packed_at(inputs, out_padded, c0 + c, n), forward_plane());
  }
  // The transposed filters come in groups of outputs: the ones of group i are i ...
  static constexpr int kOutputsAtOnce = 1;
  index_t output_groups() const { return outputs; }
  static index_t group_member(index_t group, int) { return group; }
  // ... and of one vector of inputs from c on. Taps are [member][9][lanes].
  void store_backward(const TileOps<T>& ops, const T* taps, index_t group, index_t c, T* u) const {
    ops.weights(taps, lanes<T>, u + packed_at(outputs, in_padded, group, c), backward_plane());
  }

  void forward(const ForwardPoint<T>& f) const {
    const bool stacked = f.out_d && f.in_d;
    const T* next = f.in + plane;
    if (f.out)
      gemm<T, false, Packed::b>(stacked ? 2 * f.tiles : f.tiles, out_padded, inputs, f.in, in_stride, f.w, 0, f.out,
                                out_stride, false, next);
    else if (stacked)
      gemm<T, false, Packed::b>(f.tiles, out_padded, inputs, f.in_d, in_stride, f.w, 0, f.out_d, out_stride, false);
    if (f.out_d)
      gemm<T, false, Packed::b>(f.tiles, out_padded, inputs, f.in, in_stride, f.v, 0, f.out_d, out_stride, stacked,
                                next + f.tiles * in_stride);
  }

  void backward(const BackwardPoint<T>& b) const {
    const index_t in_step = b.tiles * in_stride, out_step = b.tiles * out_stride;
    const T *h = b.both_in ? b.in + in_step : b.in, *z = b.both_out ? b.out + out_step : b.out;
    if (b.du)
      gemm<T, true, Packed::c>(inputs, out_padded, b.both_in ? 2 * b.tiles : b.tiles, b.in, in_stride,
                               b.both_in ? b.out : z, out_stride, b.du, 0, b.keep);
    if (b.du_plain)
      gemm<T, true, Packed::c>(inputs, out_padded, b.tiles, h, in_stride, b.out, out_stride, b.du_plain, 0,
                               b.keep_plain);
    if (b.wants_gh) {
      T* gh = b.wants_ghd ? b.in + in_step : b.in;
      gemm<T, false, Packed::b>(b.wants_ghd ? 2 * b.tiles : b.tiles, in_padded, outputs, b.wants_ghd ? b.out : z,
                                out_stride, b.w, 0, b.in, in_stride, false, b.out + plane);
      gemm<T, false, Packed::b>(b.tiles, in_padded, outputs, b.out, out_stride, b.v, 0, gh, in_stride, true,
                                b.in + plane);
    } else if (b.wants_ghd) {
      gemm<T, false, Packed::b>(b.tiles, in_padded, outputs, b.out, out_stride, b.w, 0, b.in, in_stride, false,
                                b.in + plane);
    }
  }
};

template <class T> struct ProductsOf { using type = FmaProducts<T>; };

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
