// The engine for Intel AMX (bfloat16 tiles) on top of AVX-512; setup.py gives the flags to compilers that know them.
#include "unroll/engine.h"
#if defined(__AMX_BF16__)
#define PAD_ISA amx
#define PAD_VECTOR_BYTES 64
#define PAD_TILES 1
#include "engine_isa.h"
#endif

namespace pad_fast {
namespace unroll {

#if defined(__AMX_BF16__)
const bool kAmxBuilt = true;
#else
const bool kAmxBuilt = false;
Engine* make_engine_amx(const Network&, const Options&, bool) { return nullptr; }
#endif

}  // namespace unroll
}  // namespace pad_fast
