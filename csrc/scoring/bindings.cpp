// Python's view of scoring. Tensors arrive as addresses and sizes, 0 where one is left out; pad_fast/scoring/native.py
// checks dtype, shape, memory layout, device and label range before an address gets here.
#include "bindings.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "score.h"

namespace py = pybind11;
using pad_fast::scoring::Integer;
using pad_fast::scoring::Number;
using pad_fast::scoring::Request;

namespace {

template <class T> T* pointer(std::uintptr_t address) { return reinterpret_cast<T*>(address); }

Number number(const std::string& name) {
  if (name == "f32") return Number::f32;
  if (name == "f64") return Number::f64;
  if (name == "bf16") return Number::bf16;
  throw std::invalid_argument("unknown dtype " + name);
}

Integer integer(const std::string& name) {
  if (name == "i32") return Integer::i32;
  if (name == "i64") return Integer::i64;
  throw std::invalid_argument("unknown label dtype " + name);
}

Request request(const std::string& dtype, const std::string& label_dtype, std::uintptr_t logits,
                std::uintptr_t features, std::uintptr_t labels, int64_t rows, int64_t classes, int64_t width,
                std::uintptr_t scores, std::uintptr_t mean, std::uintptr_t deviations, int64_t seen) {
  return {number(dtype),
          integer(label_dtype),
          pointer<void>(logits),
          pointer<void>(features),
          pointer<void>(labels),
          rows,
          classes,
          width,
          pointer<void>(scores),
          pointer<double>(mean),
          pointer<double>(deviations),
          seen};
}

void score(const std::string& dtype, const std::string& label_dtype, std::uintptr_t logits, std::uintptr_t features,
           std::uintptr_t labels, int64_t rows, int64_t classes, int64_t width, std::uintptr_t scores,
           std::uintptr_t mean, std::uintptr_t deviations, int64_t seen, int threads) {
  pad_fast::scoring::score(request(dtype, label_dtype, logits, features, labels, rows, classes, width, scores, mean,
                                   deviations, seen),
                           threads);
}

template <class T, class Label>
void order_of(std::uintptr_t order, std::uintptr_t offsets, std::uintptr_t scores, std::uintptr_t labels, int64_t rows,
              int64_t classes, int threads) {
  pad_fast::scoring::class_order(pointer<int64_t>(order), pointer<int64_t>(offsets), pointer<const T>(scores),
                                 pointer<const Label>(labels), rows, classes, threads);
}

void class_order(const std::string& dtype, const std::string& label_dtype, std::uintptr_t order, std::uintptr_t offsets,
                 std::uintptr_t scores, std::uintptr_t labels, int64_t rows, int64_t classes, int threads) {
  const bool doubles = number(dtype) == Number::f64, wide = integer(label_dtype) == Integer::i64;
  const auto run = doubles ? (wide ? order_of<double, int64_t> : order_of<double, int32_t>)
                           : (wide ? order_of<float, int64_t> : order_of<float, int32_t>);
  run(order, offsets, scores, labels, rows, classes, threads);
}

bool labels_fit(const std::string& label_dtype, std::uintptr_t labels, int64_t rows, int64_t classes) {
  return integer(label_dtype) == Integer::i64
             ? pad_fast::scoring::labels_fit(pointer<const int64_t>(labels), rows, classes)
             : pad_fast::scoring::labels_fit(pointer<const int32_t>(labels), rows, classes);
}

#ifdef PAD_FAST_CUDA
const char* score_cuda(const std::string& dtype, const std::string& label_dtype, std::uintptr_t logits,
                       std::uintptr_t features, std::uintptr_t labels, int64_t rows, int64_t classes, int64_t width,
                       std::uintptr_t scores, std::uintptr_t mean, std::uintptr_t deviations, int64_t seen, int device,
                       std::uintptr_t stream) {
  return pad_fast::scoring::score_cuda(request(dtype, label_dtype, logits, features, labels, rows, classes, width,
                                               scores, mean, deviations, seen),
                                       device, pointer<void>(stream));
}
#endif

}  // namespace

void bind_scoring(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("score", &score, no_gil, py::kw_only(), py::arg("dtype"), py::arg("label_dtype"), py::arg("logits"),
        py::arg("features"), py::arg("labels"), py::arg("rows"), py::arg("classes"), py::arg("width"),
        py::arg("scores"), py::arg("mean"), py::arg("deviations"), py::arg("seen"), py::arg("threads"));
  m.def("class_order", &class_order, no_gil, py::kw_only(), py::arg("dtype"), py::arg("label_dtype"), py::arg("order"),
        py::arg("offsets"), py::arg("scores"), py::arg("labels"), py::arg("rows"), py::arg("classes"),
        py::arg("threads"));
  m.def("labels_fit", &labels_fit, no_gil, py::kw_only(), py::arg("label_dtype"), py::arg("labels"), py::arg("rows"),
        py::arg("classes"));
#ifdef PAD_FAST_CUDA
  m.def("score_cuda", &score_cuda, no_gil, py::kw_only(), py::arg("dtype"), py::arg("label_dtype"), py::arg("logits"),
        py::arg("features"), py::arg("labels"), py::arg("rows"), py::arg("classes"), py::arg("width"),
        py::arg("scores"), py::arg("mean"), py::arg("deviations"), py::arg("seen"), py::arg("device"),
        py::arg("stream"));
#endif
}
