// Python's view: class Plan. Pointers cross as integers; pad_fast/engines/cpu.py has
// checked dtype, shape and contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "cpu.h"
#include "engine.h"

namespace py = pybind11;
using pad_fast::unroll::Cache;
using pad_fast::unroll::Engine;
using pad_fast::unroll::LabelKind;
using pad_fast::unroll::Network;
using pad_fast::unroll::Options;

namespace {

// What a precision means is decided here and nowhere else: outputs per tile side, and the bfloat16 parts of a float
// (AMX only). "high" keeps the error of a step within three times torch's, "highest" is of its size (docs section 5).
// Two parts would save a fifth of a step on AMX for sixty to ninety times torch's error: no name of its own.
struct Scheme { int largest_tile, parts; };

struct Isa {
  const char* name;
  Engine* (*make)(const Network&, const Options&, bool);
  bool (*available)();
  bool tiles;
};

#if defined(__x86_64__)
const Isa kIsas[] = {
    {"amx", pad_fast::unroll::make_engine_amx,
     [] { return pad_fast::unroll::kAmxBuilt && pad_fast::has_avx512() && pad_fast::unroll::amx_allowed(); }, true},
    {"avx512", pad_fast::unroll::make_engine_avx512, pad_fast::has_avx512, false},
    {"avx2", pad_fast::unroll::make_engine_avx2, pad_fast::has_avx2, false},
    {"baseline", pad_fast::unroll::make_engine_baseline, [] { return true; }, false},
};
#else
const Isa kIsas[] = {{"baseline", pad_fast::unroll::make_engine_baseline, [] { return true; }, false}};
#endif

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas)
    if (isa.available()) names.emplace_back(isa.name);
  return names;
}

const Isa& find_isa(std::string name) {
  if (name == "auto")
    if (const char* forced = std::getenv("PAD_FAST_ISA"))
      if (*forced) name = forced;
  for (const Isa& isa : kIsas)
    if ((name == "auto" || name == isa.name) && isa.available()) return isa;
  std::string known;
  for (const std::string& n : isas()) known += (known.empty() ? "" : ", ") + n;
  throw std::invalid_argument("isa='" + name + "' is not available on this machine; available: " + known);
}

// The instruction set for calls on maps of `pixels` pixels behind the first block, all images together. Matrix tiles
// want wide maps, and enough values to pay for packing the filters (docs section 7).
std::string suited_isa(std::ptrdiff_t net_width, std::ptrdiff_t pixels) {
  constexpr std::ptrdiff_t least_width = 64, least_values = 1 << 17;
  const char* forced = std::getenv("PAD_FAST_ISA");
  const Isa& best = find_isa("auto");
  const bool small = net_width < least_width || net_width * pixels < least_values;
  return best.tiles && small && !(forced && *forced) ? find_isa("avx512").name : best.name;
}

Scheme scheme_of(const std::string& precision) {
  if (precision == "high") return {4, 3};
  if (precision == "highest") return {2, 3};
  if (precision == "direct") return {1, 3};
  if (precision == "f4x3") return {4, 2};
  throw std::invalid_argument("precision must be 'high', 'highest', 'direct' or 'f4x3', got '" + precision + "'");
}

LabelKind label_kind(const std::string& name) {
  if (name == "hard") return pad_fast::unroll::kHard;
  if (name == "logits") return pad_fast::unroll::kLogits;
  if (name == "probabilities") return pad_fast::unroll::kProbabilities;
  throw std::invalid_argument("kind must be 'hard', 'logits' or 'probabilities', got '" + name + "'");
}

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

class Plan {
 public:
  Plan(std::ptrdiff_t channels, std::ptrdiff_t height, std::ptrdiff_t width, std::ptrdiff_t pad_first,
       std::ptrdiff_t depth, std::ptrdiff_t net_width, std::ptrdiff_t classes, const std::string& dtype,
       const std::string& precision, int threads, std::ptrdiff_t images, const std::string& isa,
       std::ptrdiff_t chunk_tiles, std::ptrdiff_t group_bytes) {
    classes_ = classes;
    if (channels < 1 || height < 1 || width < 1 || net_width < 1 || classes < 1)
      throw std::invalid_argument("channels, height, width, net_width and classes must be positive");
    if (pad_first < 1) throw std::invalid_argument("pad_first must be at least 1, got " + std::to_string(pad_first));
    if (depth < 1 || depth > pad_fast::unroll::kMaxDepth)
      throw std::invalid_argument("depth must be in 1.." + std::to_string(pad_fast::unroll::kMaxDepth) + ", got " +
                                  std::to_string(depth));
    if (threads < 1 || threads > pad_fast::unroll::kMaxThreads)
      throw std::invalid_argument("threads must be in 1.." + std::to_string(pad_fast::unroll::kMaxThreads) + ", got " +
                                  std::to_string(threads));
    const std::ptrdiff_t extra = 2 * (pad_first - 1);
    if (((height + extra) >> depth) < 1 || ((width + extra) >> depth) < 1)
      throw std::invalid_argument("an image of " + std::to_string(height) + "x" + std::to_string(width) +
                                  " is too small for depth " + std::to_string(depth) + ": nothing is left to classify");
    if (dtype != "f32" && dtype != "f64")
      throw std::invalid_argument("dtype must be 'f32' or 'f64', got '" + dtype + "'");
    const Isa& chosen = find_isa(isa);
    isa_ = chosen.name;
    const Scheme scheme = scheme_of(precision);
    Options options;
    options.largest_tile = scheme.largest_tile, options.parts = scheme.parts;
    options.threads = threads, options.images = images;
    if (chunk_tiles > 0) options.chunk_tiles = chunk_tiles;
    if (group_bytes > 0) options.group_bytes = group_bytes;
    const Network network = {channels, height, width, pad_first, depth, net_width, classes};
    engine_.reset(chosen.make(network, options, dtype == "f64"));
  }

  const std::string& isa() const { return isa_; }
  std::ptrdiff_t parameter_count() const { return engine_->parameter_count(); }
  std::ptrdiff_t products() const { return engine_->products(); }
  std::ptrdiff_t workspace_bytes() const { return engine_->workspace_bytes(); }
  std::ptrdiff_t cache_bytes(std::ptrdiff_t batch) const { return engine_->cache_bytes(batch); }
  std::unique_ptr<Cache> make_cache() const { return std::unique_ptr<Cache>(engine_->make_cache()); }

  void forward(std::uintptr_t theta, std::uintptr_t x, std::ptrdiff_t batch, std::uintptr_t logits,
               std::uintptr_t features) {
    check(batch);
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    engine_->forward(pointer(theta), pointer(x), batch, pointer(logits), pointer(features));
  }
  double loss_and_grad(std::uintptr_t theta, std::uintptr_t x, std::ptrdiff_t batch, std::uintptr_t labels,
                       const std::string& kind, std::uintptr_t grad, std::uintptr_t logits, Cache* cache) {
    check(batch);
    const LabelKind k = label_kind(kind);
    if (k == pad_fast::unroll::kHard) check_classes(reinterpret_cast<const std::int64_t*>(labels), batch);
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    return engine_->loss_and_grad(pointer(theta), pointer(x), batch, pointer(labels), k, pointer(grad), pointer(logits),
                                  cache);
  }
  double adjoint(std::uintptr_t theta, std::uintptr_t v, std::uintptr_t x, std::ptrdiff_t batch, std::uintptr_t labels,
                 const std::string& kind, std::uintptr_t dtheta, std::uintptr_t dx, std::uintptr_t dy,
                 std::uintptr_t grad, Cache* cache) {
    check(batch);
    const LabelKind k = label_kind(kind);
    if (k == pad_fast::unroll::kHard) check_classes(reinterpret_cast<const std::int64_t*>(labels), batch);
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    return engine_->adjoint(pointer(theta), pointer(v), pointer(x), batch, pointer(labels), k, pointer(dtheta),
                            pointer(dx), pointer(dy), pointer(grad), cache);
  }

 private:
  // A class beyond the last one would be written behind the end of a row.
  void check_classes(const std::int64_t* labels, std::ptrdiff_t batch) const {
    for (std::ptrdiff_t i = 0; i < batch; ++i)
      if (labels[i] < 0 || labels[i] >= classes_)
        throw py::index_error("label " + std::to_string(labels[i]) + " of image " + std::to_string(i) +
                              " is not a class of a network of " + std::to_string(classes_) + " classes");
  }
  static void check(std::ptrdiff_t batch) {
    if (batch < 1) throw std::invalid_argument("batch must be at least 1, got " + std::to_string(batch));
  }
  std::string isa_;
  std::ptrdiff_t classes_;
  std::unique_ptr<Engine> engine_;
  std::mutex mutex_;
};

}  // namespace

void bind_unroll(py::module_& m) {
  m.def("instruction_sets", &isas, "Instruction sets this machine can run, best first.");
  m.def("engine_instructions", [] { return find_isa("auto").name; }, "The set that a Plan takes by itself.");
  m.def("suited_isa", &suited_isa, py::kw_only(), py::arg("net_width"), py::arg("pixels"),
        "The fastest for calls whose maps behind the first block have so many pixels, unless PAD_FAST_ISA names one.");
  py::class_<Cache>(m, "Cache", "Activations of one plain step, for its adjoint.")
      .def_property_readonly("bytes", &Cache::bytes);
  py::class_<Plan>(m, "Plan", "A network, its workspaces and its threads.")
      .def(py::init<std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t,
                    std::ptrdiff_t, const std::string&, const std::string&, int, std::ptrdiff_t, const std::string&,
                    std::ptrdiff_t, std::ptrdiff_t>(),
           py::kw_only(), py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("pad_first") = 1,
           py::arg("depth"), py::arg("net_width"), py::arg("classes"), py::arg("dtype") = "f32",
           py::arg("precision") = "high", py::arg("threads") = 1, py::arg("images") = 0, py::arg("isa") = "auto",
           py::arg("chunk_tiles") = 0, py::arg("group_bytes") = 0)
      .def_property_readonly("isa", &Plan::isa)
      .def("parameter_count", &Plan::parameter_count)
      .def("products", &Plan::products,
           "Multiply-adds of one pass of one image through the convolutions; a fused first block counts as none.")
      .def("workspace_bytes", &Plan::workspace_bytes, "Bytes held now; grows with the largest batch seen, then stays.")
      .def("cache_bytes", &Plan::cache_bytes, py::arg("batch"), "Bytes a Cache takes for a batch of this size.")
      .def("make_cache", &Plan::make_cache, py::keep_alive<0, 1>())
      .def("forward", &Plan::forward, py::arg("theta"), py::arg("x"), py::arg("batch"), py::arg("logits") = 0,
           py::arg("features") = 0, "Overwrites, unless 0, logits[B, K] and the classifier's inputs features[B, F].")
      .def("loss_and_grad", &Plan::loss_and_grad, py::arg("theta"), py::arg("x"), py::arg("batch"), py::arg("labels"),
           py::arg("kind"), py::arg("grad"), py::arg("logits") = 0, py::arg("cache") = nullptr,
           "Mean cross entropy; overwrites grad[P] and, unless 0, logits[B, K]; fills the cache if given.")
      .def("adjoint", &Plan::adjoint, py::arg("theta"), py::arg("v"), py::arg("x"), py::arg("batch"), py::arg("labels"),
           py::arg("kind"), py::arg("dtheta"), py::arg("dx") = 0, py::arg("dy") = 0, py::arg("grad") = 0,
           py::arg("cache") = nullptr,
           "phi = <v, grad>; overwrites its derivatives dtheta[P] and, unless 0, dx[B,C,H,W], dy[B,K] and grad[P].");
}
