// Included by one source per instruction set, each with its own flags and its own namespace (see simd.h).
#pragma once
#include "unroll/step.h"

#define PAD_JOIN_(a, b) a##b
#define PAD_JOIN(a, b) PAD_JOIN_(a, b)

namespace pad_fast {
namespace unroll {

Engine* PAD_JOIN(make_engine_, PAD_ISA)(const Network& network, const Options& options, bool doubles) {
  if (doubles) return new PAD_ISA::EngineOf<double>(network, options);
  return new PAD_ISA::EngineOf<float>(network, options);
}

}  // namespace unroll
}  // namespace pad_fast
