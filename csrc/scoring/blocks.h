// How rows are cut up, for the loops (rows.h) and for whoever hands rows and scratch memory to them (score.cpp).
#pragma once

#include <cstdint>

namespace pad_fast {
namespace scoring {

// Rows scored together before anything is written: their sums fit into the first cache.
constexpr int kBlock = 64;
// The bytes that wide rows worked on together may take: half of a small first cache.
constexpr int64_t kGroupBytes = 1 << 14;
// Up to this many classes a lane is a row; above, a lane is a class.
constexpr int64_t kNarrow = 64;

}  // namespace scoring
}  // namespace pad_fast
