#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "scoring.h"

namespace pad_fast {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int64_t kMaxBlocks = 1 << 16;

__device__ double warp_sum(double value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

__device__ double warp_max(double value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const double other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// One warp per row: neighbouring lanes read neighbouring logits, and the second pass finds them in the L1 cache.
// `features` may be null, which leaves EL2N.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    score_rows(T* out, const T* __restrict__ logits, const T* __restrict__ features,
               const int64_t* __restrict__ labels, int64_t rows, int64_t classes, int64_t width) {
  const int lane = threadIdx.x % kWarp;
  const int64_t first = blockIdx.x * static_cast<int64_t>(kWarpsPerBlock) + threadIdx.x / kWarp;
  for (int64_t i = first; i < rows; i += gridDim.x * static_cast<int64_t>(kWarpsPerBlock)) {
    const T* z = logits + i * classes;
    double top = -INFINITY;
    for (int64_t k = lane; k < classes; k += kWarp) {
      const double value = static_cast<double>(z[k]);
      top = value > top ? value : top;
    }
    top = warp_max(top);

    const int64_t label = labels[i];
    double at_label = 0, others = 0, squares = 0;
    for (int64_t k = lane; k < classes; k += kWarp) {
      const double e = exp_nonpositive(static_cast<double>(z[k]) - top);
      if (k == label) {
        at_label = e;
      } else {
        others += e;
        squares += e * e;
      }
    }
    at_label = warp_sum(at_label);
    others = warp_sum(others);
    squares = warp_sum(squares);

    double factor = 1;
    if (features != nullptr) {
      double squared_features = 0;
      for (int64_t k = lane; k < width; k += kWarp) {
        const double h = static_cast<double>(features[i * width + k]);
        squared_features += h * h;
      }
      factor = grand_factor(warp_sum(squared_features));
    }
    if (lane == 0) out[i] = static_cast<T>(el2n_from_sums(others, squares, others + at_label) * factor);
  }
}

// The runtime linked in here keeps a current device of its own, apart from torch's.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
    cudaSetDevice(device);
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

template <class T>
const char* launch(T* out, const T* logits, const T* features, const int64_t* labels, int64_t rows, int64_t classes,
                   int64_t width, int device, void* stream) {
  if (rows == 0) return nullptr;
  const DeviceGuard guard(device);
  const int64_t blocks = std::min((rows + kWarpsPerBlock - 1) / kWarpsPerBlock, kMaxBlocks);
  score_rows<<<static_cast<unsigned>(blocks), kWarp * kWarpsPerBlock, 0, static_cast<cudaStream_t>(stream)>>>(
      out, logits, features, labels, rows, classes, width);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace

template <class T>
const char* el2n_cuda(T* out, const T* logits, const int64_t* labels, int64_t rows, int64_t classes, int device,
                      void* stream) {
  return launch<T>(out, logits, nullptr, labels, rows, classes, 0, device, stream);
}

template <class T>
const char* grand_cuda(T* out, const T* logits, const T* features, const int64_t* labels, int64_t rows,
                       int64_t classes, int64_t width, int device, void* stream) {
  return launch<T>(out, logits, features, labels, rows, classes, width, device, stream);
}

template const char* el2n_cuda(float*, const float*, const int64_t*, int64_t, int64_t, int, void*);
template const char* el2n_cuda(double*, const double*, const int64_t*, int64_t, int64_t, int, void*);
template const char* grand_cuda(float*, const float*, const float*, const int64_t*, int64_t, int64_t, int64_t, int,
                                void*);
template const char* grand_cuda(double*, const double*, const double*, const int64_t*, int64_t, int64_t, int64_t,
                                int, void*);

}  // namespace pad_fast
