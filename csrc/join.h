// PAD_JOIN(a, b): one name out of two macros' values.
#pragma once

#define PAD_JOIN_(a, b) a##b
#define PAD_JOIN(a, b) PAD_JOIN_(a, b)
