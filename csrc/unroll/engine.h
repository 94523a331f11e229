// What the bindings see of the engine: one abstract class, implemented once per instruction set and element type.
#pragma once
#include <cstddef>
#include <cstdint>

#include "network.h"

namespace pad_fast {
namespace unroll {

// Activations of one plain step, written by loss_and_grad and read by adjoint.
class Cache {
 public:
  virtual ~Cache();
  virtual std::ptrdiff_t bytes() const = 0;
};

class Engine {
 public:
  virtual ~Engine();
  virtual std::ptrdiff_t parameter_count() const = 0;
  // Multiply-adds of the convolutions' products for one image, one way; a fused first block counts as none.
  virtual std::ptrdiff_t products() const = 0;
  virtual std::ptrdiff_t workspace_bytes() const = 0;
  virtual std::ptrdiff_t cache_bytes(std::ptrdiff_t batch) const = 0;
  virtual Cache* make_cache() const = 0;
  virtual void forward(const void* theta, const void* x, std::ptrdiff_t batch, void* logits, void* features) = 0;
  virtual double loss_and_grad(const void* theta, const void* x, std::ptrdiff_t batch, const void* labels,
                               LabelKind kind, void* grad, void* logits, Cache* cache) = 0;
  virtual double adjoint(const void* theta, const void* v, const void* x, std::ptrdiff_t batch, const void* labels,
                         LabelKind kind, void* dtheta, void* dx, void* dy, void* grad, Cache* cache) = 0;
};

// One factory per instruction set.
Engine* make_engine_amx(const Network& network, const Options& options, bool doubles);
Engine* make_engine_avx512(const Network& network, const Options& options, bool doubles);
Engine* make_engine_avx2(const Network& network, const Options& options, bool doubles);
Engine* make_engine_baseline(const Network& network, const Options& options, bool doubles);

// Whether this binary holds the AMX engine, and whether the machine and the operating system let us use tiles.
extern const bool kAmxBuilt;
bool amx_allowed();

// Zeroed memory, aligned to a cache line, on huge pages where the system offers them.
void* allocate(std::size_t bytes);
void release(void* memory, std::size_t bytes);

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  void resize(std::size_t bytes);  // zeroed whenever the size changes
  char* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace unroll
}  // namespace pad_fast
