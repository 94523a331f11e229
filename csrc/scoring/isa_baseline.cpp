// The scoring loops for any machine; the compiler flags stand in setup.py.
#define PAD_ISA baseline
#define PAD_VECTOR_BYTES 16
#include "rows.h"
