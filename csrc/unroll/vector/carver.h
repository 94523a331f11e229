// Workspaces stated once. A struct of pieces has a member carve(Carver&, sizes ...) that takes each of them with its
// number of elements; how many bytes they fill and where each lies follow from it.
#pragma once
#include "simd.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

// Hands out consecutive cache-line aligned pieces; with a null base it only counts.
struct Carver {
  char* base;
  index_t used = 0;  // bytes
  template <class U> void take(U*& piece, index_t elements) {
    piece = base ? reinterpret_cast<U*>(base + used) : nullptr;
    used += ceil_div(elements * index_t(sizeof(U)), kLine) * kLine;
  }
};

template <class Pieces, class... Sizes> index_t bytes_of(const Sizes&... sizes) {
  Carver count{nullptr};
  Pieces pieces;
  pieces.carve(count, sizes...);
  return count.used;
}
template <class Pieces, class... Sizes> Pieces carved(char* memory, const Sizes&... sizes) {
  Carver carver{memory};
  Pieces pieces;
  pieces.carve(carver, sizes...);
  return pieces;
}

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
