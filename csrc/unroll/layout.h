// Sizes, offsets and memory of one network: where each parameter sits in the flat vector, and which arrays a call, a
// thread, a group of images and a cache hold. No arithmetic here.
#pragma once
#include "network.h"
#include "unroll/blocks/block.h"
#include "unroll/blocks/first_block.h"
#include "unroll/conv/conv.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

template <class T> struct Layer {
  Conv<T> conv;
  index_t height, width;       // of z
  index_t pooled_h, pooled_w;  // of o
  index_t w, bias, g, b;       // offsets into the flat parameters
  index_t out_image;           // elements of o per image, where the next stage wants it
  index_t out_row, out_origin;
};

template <class T> struct Layout {
  Network net;
  index_t depth, width_stride, width_padded, classes, padded_classes, features;
  index_t classifier, classifier_bias, parameters;
  Layer<T> layer[kMaxDepth];
  bool fused_first;  // the first block never stores its map (first_block.h)
  FirstBlock<T> first;

  // Stored per image by block l: o_l lives in the input array of the next stage (with its border), index l + 1.
  index_t map_elements(index_t l) const { return layer[l - 1].out_image; }
  index_t z_elements(index_t l) const { return fused_first && l == 0 ? 0 : layer[l].conv.out_image; }

  void set_up(const Network& network, const Options& options) {
    net = network, depth = net.depth, classes = net.classes;
    width_stride = pixel_stride<T>(net.net_width), width_padded = padded<T>(net.net_width);
    padded_classes = padded<T>(classes);
    const index_t extra = 2 * (net.pad_first - 1);
    index_t h = net.height + extra, w = net.width + extra, cin = net.channels, at = 0;
    for (index_t l = 0; l < depth; ++l) {
      Layer<T>& y = layer[l];
      // Images have no norm in front of them: their means make F(4x4) err more than three times as much as torch.
      Options for_layer = options;
      if (l == 0) for_layer.largest_tile = min_of(for_layer.largest_tile, 2);
      y.conv.set_up(cin, net.net_width, h, w, for_layer);
      y.height = h, y.width = w, y.pooled_h = h / 2, y.pooled_w = w / 2;
      y.w = at, at += net.net_width * cin * 9;
      y.bias = at, at += net.net_width;
      y.g = at, at += net.net_width;
      y.b = at, at += net.net_width;
      h /= 2, w /= 2, cin = net.net_width;
    }
    features = h * w * width_stride;
    classifier = at, at += classes * net.net_width * h * w;
    classifier_bias = at, at += classes;
    parameters = at;
    for (index_t l = 0; l < depth; ++l) {
      Layer<T>& y = layer[l];
      if (l + 1 < depth) {
        const Conv<T>& next = layer[l + 1].conv;
        y.out_image = next.in_image, y.out_row = next.in_row, y.out_origin = next.in_row + next.in_stride;
      } else {
        y.out_image = features, y.out_row = y.pooled_w * width_stride, y.out_origin = 0;
      }
    }
    fused_first = FirstBlock<T>::serves(net);
    if (fused_first) first.set_up(net);
  }

  // Images that fill the chunks of every layer; more of them in a group would only leave the cache.
  index_t images_for_chunks() const {
    index_t most = 1;
    for (index_t l = fused_first ? 1 : 0; l < depth; ++l) most = max_of(most, layer[l].conv.images_in_chunk());
    return most;
  }

  View<T> output(index_t l, T* maps, index_t image) const {
    return {maps + image * layer[l].out_image + layer[l].out_origin, layer[l].out_row, width_stride};
  }
  View<const T> output(index_t l, const T* maps, index_t image) const {
    return {maps + image * layer[l].out_image + layer[l].out_origin, layer[l].out_row, width_stride};
  }
  Plane<T> plane(index_t l) const {
    return {layer[l].height, layer[l].width, width_padded, layer[l].conv.out_row, width_stride};
  }
  index_t stats_elements() const { return 4 * width_stride; }
  index_t first_saved_bytes() const { return bytes_of<typename FirstBlock<T>::Saved>(first); }
  index_t first_image_bytes() const { return bytes_of<typename FirstBlock<T>::Image>(first); }
};

// Parameters as the kernels want them; rebuilt by every call, since theta changes at every step.
template <class T> struct Prepared {
  Filters<T> filters[kMaxDepth];
  T* norm[kMaxDepth];  // g, b
  T *head_w, *head_wt, *head_b;
  typename FirstBlock<T>::Weights first;  // where the first block is fused

  void carve(Carver& memory, const Layout<T>& y) {
    for (index_t l = 0; l < y.depth; ++l) {
      memory.take(norm[l], 2 * y.width_stride);
      if (l == 0 && y.fused_first) continue;
      memory.take(filters[l].forward, y.layer[l].conv.forward_elements());
      memory.take(filters[l].backward, y.layer[l].conv.backward_elements());
    }
    memory.take(head_w, y.classes * y.features);
    memory.take(head_wt, y.features * y.padded_classes);
    memory.take(head_b, y.padded_classes);
    if (y.fused_first) first.carve(memory, y.first);
  }
};

// What a plain step leaves behind for its adjoint, per image.
template <class T> struct Saved {
  T *maps[kMaxDepth + 1], *z[kMaxDepth], *stats[kMaxDepth], *pull[kMaxDepth + 1];  // pull: o' of the plain step
  char* first;  // FirstBlock::Saved of one image after the other

  void carve(Carver& memory, const Layout<T>& y, index_t images) {
    maps[0] = pull[0] = nullptr;
    for (index_t l = 0; l < y.depth; ++l) {
      memory.take(maps[l + 1], images * y.map_elements(l + 1));
      memory.take(pull[l + 1], images * y.map_elements(l + 1));
      memory.take(z[l], images * y.z_elements(l));
      memory.take(stats[l], l == 0 && y.fused_first ? 0 : images * y.stats_elements());
    }
    first = nullptr;
    if (y.fused_first) memory.take(first, images * y.first_saved_bytes());
  }
  Saved from(const Layout<T>& y, index_t image) const {
    Saved s = *this;
    for (index_t l = 0; l < y.depth; ++l) {
      s.maps[l + 1] += image * y.map_elements(l + 1), s.pull[l + 1] += image * y.map_elements(l + 1);
      s.z[l] += image * y.z_elements(l), s.stats[l] += image * y.stats_elements();
    }
    if (s.first) s.first += image * y.first_saved_bytes();
    return s;
  }
};

// Gradient sums of one list of images.
template <class T> struct Sums {
  T *du[kMaxDepth], *norm[kMaxDepth], *head_w, *head_b, *first_w;
  bool used[kMaxDepth];  // du holds something
  T* small;              // everything except du: zeroed at the start of a call
  index_t small_bytes;

  void carve(Carver& memory, const Layout<T>& y) {
    const index_t start = memory.used;
    memory.take(small, 0);
    for (index_t l = 0; l < y.depth; ++l) memory.take(norm[l], 2 * y.width_stride);
    memory.take(head_w, y.classes * y.features);
    memory.take(head_b, y.padded_classes);
    first_w = nullptr;
    // As large as the prepared filters; the sums fill the part that `columns` has there.
    if (y.fused_first) memory.take(first_w, bytes_of<typename FirstBlock<T>::Weights>(y.first) / index_t(sizeof(T)));
    small_bytes = memory.used - start;
    for (index_t l = 0; l < y.depth; ++l) {
      du[l] = nullptr;
      if (l > 0 || !y.fused_first) memory.take(du[l], y.layer[l].conv.sum_elements());
    }
  }
  void clear(index_t depth) {
    std::memset(small, 0, small_bytes);
    for (index_t l = 0; l < depth; ++l) used[l] = false;
  }
};

// One thread's working memory for a group of images.
template <class T> struct Work {
  Saved<T> saved;
  T *tangents[kMaxDepth + 1], *zd[kMaxDepth], *pull_a[kMaxDepth + 1];  // od, zd, o' of the adjoint
  T *input, *input_pull, *gz, *gzd, *u, *ud, *gu, *gud;
  double* rows;  // two of the classifier
  char* first_images;  // FirstBlock::Image of one image after the other
  typename FirstBlock<T>::Scratch first_scratch;
  Chunk<T> chunk;

  void carve(Carver& memory, const Layout<T>& y, index_t images) {
    saved.carve(memory, y, images);
    index_t z_most = 0, chunk_most = 0, scratch_most = 0;
    tangents[0] = pull_a[0] = nullptr;
    for (index_t l = 0; l < y.depth; ++l) {
      memory.take(tangents[l + 1], images * y.map_elements(l + 1));
      memory.take(pull_a[l + 1], images * y.map_elements(l + 1));
      memory.take(zd[l], images * y.z_elements(l));
      if (l == 0 && y.fused_first) continue;
      z_most = max_of(z_most, y.layer[l].conv.images_at_once() * y.z_elements(l));
      chunk_most = max_of(chunk_most, y.layer[l].conv.chunk_elements());
      scratch_most = max_of(scratch_most, y.layer[l].conv.scratch_elements());
    }
    input = input_pull = nullptr;
    if (!y.fused_first) {
      memory.take(input, images * y.layer[0].conv.in_image);
      memory.take(input_pull, images * y.layer[0].conv.in_image);
    }
    memory.take(gz, z_most), memory.take(gzd, z_most);
    memory.take(chunk.in, chunk_most), memory.take(chunk.out, chunk_most), memory.take(chunk.scratch, scratch_most);
    memory.take(u, images * y.padded_classes), memory.take(ud, images * y.padded_classes);
    memory.take(gu, images * y.padded_classes), memory.take(gud, images * y.padded_classes);
    memory.take(rows, 2 * y.classes);
    first_images = nullptr;
    if (y.fused_first) memory.take(first_images, images * y.first_image_bytes()), first_scratch.carve(memory, y.first);
  }
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
