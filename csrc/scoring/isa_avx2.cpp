// The scoring loops for AVX2; the compiler flags stand in setup.py.
#if defined(__x86_64__)
#define PAD_ISA avx2
#define PAD_VECTOR_BYTES 32
#include "rows.h"
#endif
