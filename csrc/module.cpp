// The extension module: what each part binds, and how it was built.
#include <pybind11/pybind11.h>

#include <string>

#include "scoring/bindings.h"
#include "scoring/score.h"
#include "unroll/bindings.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["standard"] = "C++" + std::to_string(__cplusplus / 100 % 100);
  info["instructions"] = pad_fast::scoring::instructions();
#ifdef PAD_FAST_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  bind_unroll(m);
  bind_scoring(m);
  m.def("build_info", &build_info);
}
