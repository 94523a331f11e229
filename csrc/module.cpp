// Python bindings. Tensors arrive as addresses and sizes, so that nothing here depends on torch;
// pad_fast/native.py checks dtype, shape, memory layout and device before an address gets here.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "scoring.h"
#include "unroll/bindings.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
void el2n(std::uintptr_t out, std::uintptr_t logits, std::uintptr_t labels, int64_t rows, int64_t classes,
          int threads) {
  pad_fast::el2n(pointer<T>(out), pointer<const T>(logits), pointer<const int64_t>(labels), rows, classes, threads);
}

template <class T>
void grand(std::uintptr_t out, std::uintptr_t logits, std::uintptr_t features, std::uintptr_t labels, int64_t rows,
           int64_t classes, int64_t width, int threads) {
  pad_fast::grand(pointer<T>(out), pointer<const T>(logits), pointer<const T>(features),
                  pointer<const int64_t>(labels), rows, classes, width, threads);
}

template <class T>
void class_order(std::uintptr_t order, std::uintptr_t offsets, std::uintptr_t scores, std::uintptr_t labels,
                 int64_t rows, int64_t classes, int threads) {
  pad_fast::class_order(pointer<int64_t>(order), pointer<int64_t>(offsets), pointer<const T>(scores),
                        pointer<const int64_t>(labels), rows, classes, threads);
}

// The scoring functions for one element type; `suffix` tells them apart in Python.
template <class T>
void bind_scoring(py::module_& m, const std::string& suffix) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def(("el2n_" + suffix).c_str(), &el2n<T>, no_gil, py::arg("out"), py::arg("logits"), py::arg("labels"),
        py::arg("rows"), py::arg("classes"), py::arg("threads"));
  m.def(("grand_" + suffix).c_str(), &grand<T>, no_gil, py::arg("out"), py::arg("logits"), py::arg("features"),
        py::arg("labels"), py::arg("rows"), py::arg("classes"), py::arg("width"), py::arg("threads"));
  m.def(("class_order_" + suffix).c_str(), &class_order<T>, no_gil, py::arg("order"), py::arg("offsets"),
        py::arg("scores"), py::arg("labels"), py::arg("rows"), py::arg("classes"), py::arg("threads"));
}

#ifdef PAD_FAST_CUDA
// These return None, or CUDA's message when the launch is refused.
template <class T>
const char* el2n_cuda(std::uintptr_t out, std::uintptr_t logits, std::uintptr_t labels, int64_t rows,
                      int64_t classes, int device, std::uintptr_t stream) {
  return pad_fast::el2n_cuda(pointer<T>(out), pointer<const T>(logits), pointer<const int64_t>(labels), rows, classes,
                             device, pointer<void>(stream));
}

template <class T>
const char* grand_cuda(std::uintptr_t out, std::uintptr_t logits, std::uintptr_t features, std::uintptr_t labels,
                       int64_t rows, int64_t classes, int64_t width, int device, std::uintptr_t stream) {
  return pad_fast::grand_cuda(pointer<T>(out), pointer<const T>(logits), pointer<const T>(features),
                              pointer<const int64_t>(labels), rows, classes, width, device, pointer<void>(stream));
}

template <class T>
void bind_scoring_cuda(py::module_& m, const std::string& suffix) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def(("el2n_cuda_" + suffix).c_str(), &el2n_cuda<T>, no_gil, py::arg("out"), py::arg("logits"), py::arg("labels"),
        py::arg("rows"), py::arg("classes"), py::arg("device"), py::arg("stream"));
  m.def(("grand_cuda_" + suffix).c_str(), &grand_cuda<T>, no_gil, py::arg("out"), py::arg("logits"),
        py::arg("features"), py::arg("labels"), py::arg("rows"), py::arg("classes"), py::arg("width"),
        py::arg("device"), py::arg("stream"));
}
#endif

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
  info["instructions"] = pad_fast::scoring_instructions();
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
  bind_scoring<float>(m, "f32");
  bind_scoring<double>(m, "f64");
#ifdef PAD_FAST_CUDA
  bind_scoring_cuda<float>(m, "f32");
  bind_scoring_cuda<double>(m, "f64");
#endif
  m.def("build_info", &build_info);
}
