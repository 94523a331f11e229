// What a plan is made for and the limits of what the engine serves. Everybody may include it; it includes nothing of
// the engine.
#pragma once
#include <cstddef>

namespace pad_fast {
namespace unroll {

struct Network { std::ptrdiff_t channels, height, width, pad_first, depth, net_width, classes; };

enum LabelKind : int { kHard = 0, kLogits = 1, kProbabilities = 2 };

struct Options {
  int largest_tile = 4;             // outputs per tile side: 1 direct, 2 F(2x2, 3x3), 4 F(4x4, 3x3)
  int parts = 3;                    // AMX: bfloat16 values that stand for a float: 2 or 3
  int threads = 1;                  // upper bound; small batches use fewer
  std::ptrdiff_t images = 0;        // in a call, for the choice of tiles; 0: many
  std::ptrdiff_t chunk_tiles = 0;  // tiles transformed at a time, primal and tangent each; 0: as the products like it
  std::ptrdiff_t group_bytes = 24 << 20;  // activations per thread
};

constexpr std::ptrdiff_t kMaxDepth = 16;
constexpr int kMaxThreads = 256, kMaxLists = 2 * kMaxThreads;
constexpr std::ptrdiff_t kMostTaps = 63;  // of a fused first block: up to 7 channels; more go the ordinary way

}  // namespace unroll
}  // namespace pad_fast
