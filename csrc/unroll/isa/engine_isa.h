// Folder isa/: the engine once per instruction set, on top of everything else; nobody includes it from outside.
//
// Included by one source per instruction set, each with its own flags and its own namespace (see simd.h).
#pragma once
#include "join.h"
#include "unroll/step.h"

namespace pad_fast {
namespace unroll {

Engine* PAD_JOIN(make_engine_, PAD_ISA)(const Network& network, const Options& options, bool doubles) {
  if (doubles) return new PAD_ISA::EngineOf<double>(network, options);
  return new PAD_ISA::EngineOf<float>(network, options);
}

}  // namespace unroll
}  // namespace pad_fast
