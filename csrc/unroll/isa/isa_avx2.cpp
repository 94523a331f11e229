// The engine for AVX2; its compiler flags stand in setup.py.
#if defined(__x86_64__)
#define PAD_ISA avx2
#define PAD_VECTOR_BYTES 32
#include "engine_isa.h"
#endif
