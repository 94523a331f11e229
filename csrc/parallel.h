// A loop split over threads that live for one call. The split is static, so results never depend on timing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace pad_fast {

// Calls body(piece, begin, end) for the pieces of [0, count), one thread each, at most `threads` of them and none
// smaller than `grain`. `body` must not throw.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(threads, count / std::max<int64_t>(1, grain)));
  const auto run = [&](int64_t piece) { body(piece, count * piece / pieces, count * (piece + 1) / pieces); };
  std::vector<std::thread> workers;
  workers.reserve(static_cast<size_t>(pieces - 1));
  int64_t piece = 1;
  try {
    for (; piece < pieces; ++piece) workers.emplace_back(run, piece);
  } catch (const std::system_error&) {
    // The system grants no more threads: this one does what is left.
  }
  for (int64_t left = piece; left < pieces; ++left) run(left);
  run(0);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace pad_fast
