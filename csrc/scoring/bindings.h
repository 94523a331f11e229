// Registers the scoring functions with the extension module.
#pragma once
#include <pybind11/pybind11.h>

void bind_scoring(pybind11::module_& m);
