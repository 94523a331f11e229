// Folder conv/: minimal filtering, tiles and their products, and one layer made of them. It includes vector/ and
// network.h; blocks/, layout and step may include it.
//
// One 3x3 convolution layer (stride 1, zero border 1) on groups of channels-last images: forward, tangent, and both
// transposes, as tile transforms around small matrix products (docs section 5). Tiles are taken in chunks whose
// transformed data stays in the cache; the weights stream past once per chunk.
#pragma once
#include "unroll/network.h"
#if PAD_TILES
#include "product_tiles.h"
#else
#include "products.h"
#endif
#include "unroll/vector/transpose.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

// Filters in the transformed domain, in both orientations, each point packed for its product (products.h).
template <class T> struct Filters {
  T* forward = nullptr;   // U    of every point
  T* backward = nullptr;  // U^T
};

// Working memory for a chunk of tiles: the transformed data of both sides, and what the products need.
template <class T> struct Chunk { T *in, *out, *scratch; };

template <class T> struct Conv {
  index_t inputs, outputs, height, width;
  index_t in_padded, out_padded, in_stride, out_stride;
  TileOps<T> ops;
  typename ProductsOf<T>::type products;
  index_t tiles_y, tiles_x, chunk_rows, chunk_tiles;
  index_t in_row, in_image, out_row, out_image;  // element strides of input (with border) and output images
  index_t plane;                                 // elements between points of the chunk buffers

  void set_up(index_t cin, index_t cout, index_t h, index_t w, const Options& options) {
    inputs = cin, outputs = cout, height = h, width = w;
    in_padded = padded<T>(cin), out_padded = padded<T>(cout);
    in_stride = pixel_stride<T>(cin), out_stride = pixel_stride<T>(cout);
    ops = choose_tile<T>(h, w, options.largest_tile, options.images, products.kFilterRows);
    tiles_y = ceil_div(h, ops.rows), tiles_x = ceil_div(w, ops.columns);
    const index_t tiles_wanted = options.chunk_tiles > 0 ? options.chunk_tiles : products.kChunkTiles;
    chunk_rows = max_of<index_t>(1, (tiles_wanted + tiles_x / 2) / tiles_x);
    chunk_tiles = 2 * chunk_rows * tiles_x;  // primal and tangent tiles together, or twice as many of one kind
    in_row = (tiles_x * ops.columns + 2) * in_stride;
    in_image = (tiles_y * ops.rows + 2) * in_row;
    out_row = width * out_stride, out_image = height * out_row;
    // Point planes must not start in the same cache set: an odd number of lines, away from multiples of 4096 bytes.
    const index_t line = line_elements<T>, page = 64;
    index_t lines = (chunk_tiles + products.slack_rows()) * max_of(in_stride, out_stride) / line;
    while (lines % page != 9) ++lines;
    plane = lines * line;
    static_cast<ProductShape&>(products) = {cin,       cout,       in_padded, out_padded,
                                            in_stride, out_stride, plane,     options.parts};
  }
  index_t forward_elements() const { return ops.points * products.forward_plane(); }
  index_t backward_elements() const { return ops.points * products.backward_plane(); }
  index_t sum_elements() const { return ops.points * products.sum_plane(); }
  index_t chunk_elements() const { return (ops.points + 1) * plane; }
  index_t scratch_elements() const { return products.scratch_elements(chunk_tiles); }
  index_t tile_rows(index_t images) const { return images * tiles_y; }
  index_t images_in_chunk() const { return ceil_div(2 * chunk_rows, tiles_y); }
  // Images a chunk of tiles may touch: z' and zd' only need room for that many.
  index_t images_at_once() const { return images_in_chunk() + 1; }

  // --- weights -----------------------------------------------------------------------------------------------------
  // `w` is torch's [outputs][inputs][3][3]. Work is split by blocks of inputs (forward), by groups of outputs
  // (backward) and by vectors of outputs (gradient); the loops run so that w is read, and u written, in long runs.
  static constexpr index_t kInputsAtOnce = ProductsOf<T>::type::kInputsAtOnce, kVectorsAtOnce = 128 / kInputsAtOnce;
  index_t input_blocks() const { return ceil_div(inputs, kInputsAtOnce); }
  index_t output_groups() const { return products.output_groups(); }
  index_t output_vectors() const { return out_padded / lanes<T>; }
  void transform_forward(const T* w, T* u, index_t begin, index_t end) const {
    constexpr index_t L = lanes<T>, B = kInputsAtOnce, row = kVectorsAtOnce * L + line_elements<T>;
    alignas(64) T taps[B * 9 * row];  // [input][tap][output]
    for (index_t c0 = begin * B; c0 < min_of(inputs, end * B); c0 += B)
      for (index_t n0 = 0; n0 < out_padded; n0 += kVectorsAtOnce * L) {
        const index_t now = min_of(B, inputs - c0), stop = min_of(out_padded, n0 + kVectorsAtOnce * L);
        for (index_t n = n0; n < stop; n += L) {
          const index_t count = min_of(L, max_of<index_t>(0, outputs - n));
          const T* source = w + (n * inputs + c0) * 9;
          T* to = taps + n - n0;
          if (count == L && now == B) {
            for (index_t j = 0; j < B * 9; j += L) transpose_square(source + j, inputs * 9, to + j * row, row);
          } else {
            for (index_t j = 0; j < now * 9; ++j)
              for (index_t l = 0; l < L; ++l) to[j * row + l] = l < count ? source[l * inputs * 9 + j] : T(0);
          }
        }
        products.store_forward(ops, taps, row, c0, now, n0, stop, u);
      }
  }
  void transform_backward(const T* w, T* u, index_t begin, index_t end) const {
    constexpr index_t L = lanes<T>;
    constexpr int M = ProductsOf<T>::type::kOutputsAtOnce;
    alignas(64) T taps[M * 9 * L];
    for (index_t group = begin; group < end; ++group)
      for (index_t c = 0; c < in_padded; c += L) {
        for (int m = 0; m < M; ++m) {
          const index_t n = products.group_member(group, m), count = min_of(L, inputs - c);
          if (n >= outputs) continue;
          const T* source = w + (n * inputs + c) * 9;
          T* to = taps + m * 9 * L;
          // Whole vectors are read up to L - 9 values past their last filter: inside w, except at its very end.
          if (L > 8 && count == L && (n + 1 < outputs || c + 2 * L <= inputs)) {
            transpose_square(source, 9, to, L, 9);
          } else {
            if (count < L) std::memset(to, 0, 9 * L * sizeof(T));
            for (index_t l = 0; l < count; ++l)
              for (int k = 0; k < 9; ++k) to[k * L + l] = source[l * 9 + k];
          }
        }
        products.store_backward(ops, taps, group, c, u);
      }
  }
  // w = G^T (sum over `parts` of dU) G, in torch's layout, for a range of vectors of outputs (eq. 23).
  void weight_gradient(T* const* parts, int count, T* w, index_t begin, index_t end) const {
    constexpr index_t L = lanes<T>, B = 16;
    alignas(64) T sum[36 * L], taps[B * 9 * L];
    for (index_t n = begin * L; n < end * L; n += L) {
      const index_t real = min_of<index_t>(L, max_of<index_t>(0, outputs - n));
      for (index_t c0 = 0; c0 < inputs; c0 += B) {
        const index_t now = min_of<index_t>(B, inputs - c0);
        for (index_t c = 0; c < now; ++c) {
          const index_t place = products.sum_at(c0 + c, n);
          for (index_t p = 0; p < ops.points; ++p) {
            const index_t at = p * products.sum_plane() + place;
            Vec<T> s = load(parts[0] + at);
            for (int i = 1; i < count; ++i) s += load(parts[i] + at);
            store(sum + p * L, s);
          }
          ops.weights_back(sum, L, taps + c * 9 * L);
        }
        T* to = w + (n * inputs + c0) * 9;
        if (real == L && now == B) {
          for (index_t j = 0; j < B * 9; j += L) transpose_square(taps + j * L, L, to + j, inputs * 9);
        } else {
          for (index_t l = 0; l < real; ++l)
            for (index_t j = 0; j < now * 9; ++j) to[l * inputs * 9 + j] = taps[j * L + l];
        }
      }
    }
  }

  // --- tile loops --------------------------------------------------------------------------------------------------
  struct Range {
    index_t begin, end;  // rows of tiles, counted through all images of the group
  };
  void gather(const T* in, Range rows, T* out) const {
    for (index_t g = rows.begin; g < rows.end; ++g) {
      const T* row = in + (g / tiles_y) * in_image + (g % tiles_y) * ops.rows * in_row;
      for (index_t x = 0; x < tiles_x; ++x)
        ops.gather({row + x * ops.columns * in_stride, in_row, in_stride},
                   out + ((g - rows.begin) * tiles_x + x) * in_stride, plane, in_padded);
    }
  }
  void scatter(const T* from, Range rows, T* in) const {
    for (index_t g = rows.begin; g < rows.end; ++g) {
      T* row = in + (g / tiles_y) * in_image + (g % tiles_y) * ops.rows * in_row;
      for (index_t x = 0; x < tiles_x; ++x)
        ops.scatter(from + ((g - rows.begin) * tiles_x + x) * in_stride, plane,
                    {row + x * ops.columns * in_stride, in_row, in_stride}, in_padded);
    }
  }
  void finish(const T* from, Range rows, T* out) const {
    for (index_t g = rows.begin; g < rows.end; ++g) {
      const index_t y = (g % tiles_y) * ops.rows;
      T* row = out + (g / tiles_y) * out_image + y * out_row;
      for (index_t x = 0; x < tiles_x; ++x)
        ops.finish(from + ((g - rows.begin) * tiles_x + x) * out_stride, plane,
                   {row + x * ops.columns * out_stride, out_row, out_stride}, out_padded, int(height - y),
                   int(width - x * ops.columns));
    }
  }
  void spread(const T* out, Range rows, T* to) const {
    for (index_t g = rows.begin; g < rows.end; ++g) {
      const index_t y = (g % tiles_y) * ops.rows;
      const T* row = out + (g / tiles_y) % images_at_once() * out_image + y * out_row;
      for (index_t x = 0; x < tiles_x; ++x)
        ops.spread({row + x * ops.columns * out_stride, out_row, out_stride},
                   to + ((g - rows.begin) * tiles_x + x) * out_stride, plane, out_padded, int(height - y),
                   int(width - x * ops.columns));
    }
  }

  // z = W * h;  zd = W * hd + V * h  (eq. 1, 8). hd may be null (first layer); zd null means no tangent.
  // done(i) is called for every image as soon as it is complete, while it is in the cache.
  template <class Done>
  void forward(const T* h, const T* hd, Filters<T> w, Filters<T> v, T* z, T* zd, index_t images, Chunk<T> chunk,
               Done done) const {
    const index_t total = tile_rows(images);
    const index_t step = zd ? chunk_rows : 2 * chunk_rows;
    index_t complete = 0;
    for (index_t begin = 0; begin < total; begin += step) {
      const Range rows{begin, min_of(total, begin + step)};
      const index_t tiles = (rows.end - rows.begin) * tiles_x;
      // Tiles of h and hd share the filters W, so they are stacked into one product. Products of point p overwrite the
      // inputs of point p - 1, which nobody needs any more: half the memory, so that it stays in the cache.
      // With a tangent but no hd, z and zd both come from h, and the products go to the second buffer.
      const bool stacked = zd && hd;
      T *in = chunk.in + plane, *out = zd && !hd ? chunk.out : chunk.in;
      const index_t in_tangent = tiles * in_stride, out_tangent = tiles * out_stride;
      gather(h, rows, in);
      if (stacked) gather(hd, rows, in + in_tangent);
      for (int p = 0; p < ops.points; ++p) {
        const T* a = in + p * plane;
        T* m = out + p * plane;
        const index_t filters = p * products.forward_plane();
        products.forward({p, ops.points, tiles, a, stacked ? a + in_tangent : nullptr, w.forward + filters,
                          v.forward + filters, z ? m : nullptr, zd ? m + out_tangent : nullptr, chunk.scratch});
      }
      if (z) finish(out, rows, z);
      if (zd) finish(out + out_tangent, rows, zd);
      for (; complete < rows.end / tiles_y; ++complete) done(complete);
    }
  }

  // What one backward pass reads and writes; null pointers switch parts off.
  struct Backward {
    const T *h, *hd;    // inputs of the layer and their tangents
    const T *gz, *gzd;  // z' and zd', for images_at_once() images in turn
    T *gh, *ghd;        // h' += W^T z' + V^T zd' (needs gz),  hd' += W^T zd'      (eq. 18)
    T* du;              // += z' (x) h + zd' (x) hd, transformed            (eq. 19)
    bool keep;          // du already holds something
    T* du_plain;        // += zd' (x) h: the gradient of the plain step       (eq. 7)
    bool keep_plain;
  };
  // ready(i, slot) must fill the image's z' and zd' in the given slot; it is called just before they are read.
  template <class Ready>
  void backward(Backward b, Filters<T> w, Filters<T> v, index_t images, Chunk<T> chunk, Ready ready) const {
    const index_t total = tile_rows(images);
    const bool both = b.gz && b.gzd;
    const index_t step = both ? chunk_rows : 2 * chunk_rows;
    index_t filled = 0, cleared = 0;
    for (index_t begin = 0; begin < total; begin += step) {
      const Range rows{begin, min_of(total, begin + step)};
      const index_t tiles = (rows.end - rows.begin) * tiles_x;
      const bool both_in = b.du && b.hd;
      T *in = chunk.in, *out = chunk.out;  // hd over h, zd' over z'
      T *in_primal = both_in ? in + tiles * in_stride : in, *out_primal = both ? out + tiles * out_stride : out;
      for (; filled < ceil_div(rows.end, tiles_y); ++filled) ready(filled, filled % images_at_once());
      if (b.gzd) spread(b.gzd, rows, out);
      if (b.gz) spread(b.gz, rows, out_primal);
      if (both_in) gather(b.hd, rows, in);
      gather(b.h, rows, in_primal);
      for (int p = 0; p < ops.points; ++p)
        products.backward({p, ops.points, tiles, in + p * plane, out + p * plane, both_in, both,
                           w.backward + p * products.backward_plane(), v.backward + p * products.backward_plane(),
                           b.du ? b.du + p * products.sum_plane() : nullptr,
                           b.du_plain ? b.du_plain + p * products.sum_plane() : nullptr, chunk.scratch,
                           b.keep || begin > 0, b.keep_plain || begin > 0, b.gh != nullptr, b.ghd != nullptr});
      for (; cleared < ceil_div(rows.end, tiles_y); ++cleared) {
        if (b.gh) std::memset(b.gh + cleared * in_image, 0, in_image * sizeof(T));
        if (b.ghd) std::memset(b.ghd + cleared * in_image, 0, in_image * sizeof(T));
      }
      if (b.ghd) scatter(in, rows, b.ghd);
      if (b.gh) scatter(b.ghd ? in + tiles * in_stride : in, rows, b.gh);
    }
  }
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
