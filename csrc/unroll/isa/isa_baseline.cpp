// The engine for any machine; its compiler flags stand in setup.py.
#define PAD_ISA baseline
#define PAD_VECTOR_BYTES 16
#include "engine_isa.h"
