// Registers the student engine with the extension module.
#pragma once
#include <pybind11/pybind11.h>

void bind_unroll(pybind11::module_& m);
