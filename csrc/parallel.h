// A loop split over threads that take a piece whenever they are free.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pad_fast {

// Calls task(context, worker, piece) once for every piece in [0, pieces), on the calling thread (worker 0) and on up to
// `threads` - 1 others (workers 1, 2, ...). Nobody waits for a thread that has not begun: where another program holds a
// core, or a thread is slow to wake up, the caller does the work meanwhile. A call that finds the threads taken by
// another one works alone.
void run_pieces(int64_t pieces, int threads, void (*task)(void*, int, int64_t), void* context);

// Calls body(worker, begin, end) for pieces of [0, count), none smaller than `grain`, on at most `threads` threads.
// `worker` < threads tells them apart, for scratch memory; which of them gets a piece depends on timing, so results
// must not depend on it. `body` must not throw.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  const int64_t pieces = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
  struct Call {
    const Body& body;
    int64_t count, pieces;
  } call{body, count, pieces};
  run_pieces(
      pieces, static_cast<int>(std::min<int64_t>(threads, pieces)),
      [](void* context, int worker, int64_t piece) {
        const Call& c = *static_cast<Call*>(context);
        c.body(worker, c.count * piece / c.pieces, c.count * (piece + 1) / c.pieces);
      },
      &call);
}

}  // namespace pad_fast
