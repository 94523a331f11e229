// The engine for AVX-512; its compiler flags stand in setup.py.
#if defined(__x86_64__)
#define PAD_ISA avx512
#define PAD_VECTOR_BYTES 64
#include "engine_isa.h"
#endif
