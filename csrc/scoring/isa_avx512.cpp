// The scoring loops for AVX-512; the compiler flags stand in setup.py.
#if defined(__x86_64__)
#define PAD_ISA avx512
#define PAD_VECTOR_BYTES 64
#include "rows.h"
#endif
