// A loop split over threads. The split is static, so results never depend on timing.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pad_fast {

// Calls task(context, i) for i in [0, pieces), at once, on threads that sleep between calls and keep to their cores: a
// new thread would begin on its maker's core and, in calls of a millisecond, often stay there. A call that finds the
// threads taken by another one does its pieces itself.
void run_pieces(int pieces, void (*task)(void*, int), void* context);

// Calls body(piece, begin, end) for the pieces of [0, count), at most `threads` of them and none smaller than `grain`.
// `body` must not throw.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(threads, count / std::max<int64_t>(1, grain)));
  struct Call {
    const Body& body;
    int64_t count, pieces;
  } call{body, count, pieces};
  run_pieces(
      static_cast<int>(pieces),
      [](void* context, int piece) {
        const Call& c = *static_cast<Call*>(context);
        c.body(piece, c.count * piece / c.pieces, c.count * (piece + 1) / c.pieces);
      },
      &call);
}

}  // namespace pad_fast
