#include <cuda_runtime.h>

#include "arithmetic.h"
#include "score.h"

namespace pad_fast {
namespace scoring {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;
// Rows up to this long are worked on by one thread each, from shared memory: a warp for 10 logits would leave two lanes
// in three idle and spend more on its shuffles than on the row.
constexpr int64_t kThreadRow = 32;
// Rows up to this long stay in the registers of one warp; longer ones get a block.
constexpr int64_t kWarpRow = 1024;
static_assert(kWarpRow == 32 * kWarp, "the largest score_by_warps");

// What a launch needs of a Request, in device terms.
template <class T, class Label>
struct Arguments {
  const T* __restrict__ logits;
  const T* __restrict__ features;
  const Label* __restrict__ labels;
  int64_t rows, classes, width;
  typename Computed<T>::type* __restrict__ scores;
  double* __restrict__ mean;
  double* __restrict__ deviations;
  int64_t seen;

  __device__ void keep(int64_t row, double score) const {
    if (scores != nullptr) scores[row] = static_cast<typename Computed<T>::type>(score);
    if (mean != nullptr) accumulate(mean[row], deviations[row], score, seen);
  }
};

struct Warp {
  __device__ __forceinline__ int rank() const { return threadIdx.x % kWarp; }
  __device__ __forceinline__ int size() const { return kWarp; }
  template <class F> __device__ __forceinline__ F max(F value) const {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const F other = __shfl_xor_sync(0xffffffffu, value, distance);
      value = other > value ? other : value;
    }
    return value;
  }
  template <class F> __device__ __forceinline__ F sum(F value) const {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
  }
};

// A whole block; `shared` has room for one value a warp. Every thread of the block must take part.
struct Block {
  double* shared;

  __device__ __forceinline__ int rank() const { return threadIdx.x; }
  __device__ __forceinline__ int size() const { return kThreads; }
  template <class F> __device__ F max(F value) const {
    const Warp warp;
    value = warp.max(value);
    if (warp.rank() == 0) shared[threadIdx.x / kWarp] = static_cast<double>(value);
    __syncthreads();
    double best = shared[0];
    for (int i = 1; i < kThreads / kWarp; ++i) best = shared[i] > best ? shared[i] : best;
    __syncthreads();
    return static_cast<F>(best);
  }
  __device__ double sum(double value) const {
    const Warp warp;
    value = warp.sum(value);
    if (warp.rank() == 0) shared[threadIdx.x / kWarp] = value;
    __syncthreads();
    double total = 0;
    for (int i = 0; i < kThreads / kWarp; ++i) total += shared[i];
    __syncthreads();
    return total;
  }
};

template <class T> struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T value[size];
};

// Sum of squares of `count` numbers by one group; 16 bytes a thread and load where the address allows.
template <class T, class Group>
__device__ __forceinline__ double squared_norm(const T* __restrict__ h, int64_t count, const Group& group) {
  double sum = 0;
  int64_t done = 0;
  if (reinterpret_cast<uintptr_t>(h) % 16 == 0) {
    const Pack<T>* packs = reinterpret_cast<const Pack<T>*>(h);
    done = count / Pack<T>::size;
#pragma unroll 4
    for (int64_t i = group.rank(); i < done; i += group.size()) {
      const Pack<T> pack = packs[i];
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) {
        const double value = widened(pack.value[j]);
        sum += value * value;
      }
    }
    done *= Pack<T>::size;
  }
  for (int64_t i = done + group.rank(); i < count; i += group.size()) {
    const double value = widened(h[i]);
    sum += value * value;
  }
  return group.sum(sum);
}

// One thread a row. The block's rows are one piece of memory, which its threads bring in side by side; in shared memory
// rows lie an odd number of entries apart, so that the threads of a warp never ask one bank for two of them.
template <class T, class Label>
__global__ void __launch_bounds__(kThreads) score_by_threads(Arguments<T, Label> arguments) {
  using F = typename Computed<T>::type;
  extern __shared__ __align__(16) unsigned char memory[];
  F* rows = reinterpret_cast<F*>(memory);
  const int classes = static_cast<int>(arguments.classes);
  const int stride = classes | 1;
  for (int64_t first = blockIdx.x * static_cast<int64_t>(kThreads); first < arguments.rows;
       first += gridDim.x * static_cast<int64_t>(kThreads)) {
    const int64_t left = arguments.rows - first;
    const int count = left < kThreads ? static_cast<int>(left) : kThreads;
    const T* z = arguments.logits + first * classes;
    // i / classes by multiplication: exact under this condition, and within 32 bits.
    static_assert((kThreads * kThreadRow - 1) * kThreadRow < 1 << 18, "i / classes by multiplication");
    const uint32_t reciprocal = (1u << 18) / classes + 1;
    const int total = count * classes;
    for (int i = threadIdx.x; i < total; i += kThreads) {
      const int row = static_cast<int>((static_cast<uint32_t>(i) * reciprocal) >> 18);
      rows[row * stride + (i - row * classes)] = widened(z[i]);
    }
    __syncthreads();
    if (threadIdx.x < count) {
      const int64_t row = first + threadIdx.x;
      const F* mine = rows + threadIdx.x * stride;
      arguments.keep(row, el2n_of_row<F>(mine, static_cast<int64_t>(arguments.labels[row]), classes, Alone()));
    }
    __syncthreads();
  }
}

// One warp a row, whose logits stay in its registers, `each` a lane.
template <int each, class T, class Label>
__global__ void __launch_bounds__(kThreads, 2) score_by_warps(Arguments<T, Label> arguments) {
  const Warp warp;
  constexpr int64_t warps = kThreads / kWarp;
  for (int64_t row = blockIdx.x * warps + threadIdx.x / kWarp; row < arguments.rows; row += gridDim.x * warps) {
    const T* z = arguments.logits + row * arguments.classes;
    double score = el2n_of_short_row<each>(z, static_cast<int64_t>(arguments.labels[row]), arguments.classes, warp);
    if (arguments.features != nullptr)
      score *= grand_factor(squared_norm(arguments.features + row * arguments.width, arguments.width, warp));
    if (warp.rank() == 0) arguments.keep(row, score);
  }
}

// One block a row, read twice.
template <class T, class Label>
__global__ void __launch_bounds__(kThreads) score_by_blocks(Arguments<T, Label> arguments) {
  __shared__ double shared[kThreads / kWarp];
  const Block block{shared};
  for (int64_t row = blockIdx.x; row < arguments.rows; row += gridDim.x) {
    const T* z = arguments.logits + row * arguments.classes;
    double score = el2n_of_row<double>(z, static_cast<int64_t>(arguments.labels[row]), arguments.classes, block);
    if (arguments.features != nullptr)
      score *= grand_factor(squared_norm(arguments.features + row * arguments.width, arguments.width, block));
    if (block.rank() == 0) arguments.keep(row, score);
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

unsigned blocks_for(int64_t work, int64_t each) {
  const int64_t blocks = (work + each - 1) / each;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <class T, class Label>
void launch(const Request& request, cudaStream_t stream) {
  using F = typename Computed<T>::type;
  const Arguments<T, Label> arguments{static_cast<const T*>(request.logits),
                                      static_cast<const T*>(request.features),
                                      static_cast<const Label*>(request.labels),
                                      request.rows,
                                      request.classes,
                                      request.width,
                                      static_cast<F*>(request.scores),
                                      request.mean,
                                      request.deviations,
                                      request.seen};
  if (request.classes <= kThreadRow && request.features == nullptr) {
    const size_t shared = kThreads * static_cast<size_t>(request.classes | 1) * sizeof(F);
    // 33 doubles a thread are more than the 48 KB that need no permission.
    cudaFuncSetAttribute(score_by_threads<T, Label>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(kThreads * (kThreadRow + 1) * sizeof(F)));
    score_by_threads<<<blocks_for(request.rows, kThreads), kThreads, shared, stream>>>(arguments);
    return;
  }
  const unsigned warps = blocks_for(request.rows, kThreads / kWarp);
  if (request.classes <= kWarp)
    score_by_warps<1><<<warps, kThreads, 0, stream>>>(arguments);
  else if (request.classes <= 4 * kWarp)
    score_by_warps<4><<<warps, kThreads, 0, stream>>>(arguments);
  else if (request.classes <= 8 * kWarp)
    score_by_warps<8><<<warps, kThreads, 0, stream>>>(arguments);
  else if (request.classes <= 16 * kWarp)
    score_by_warps<16><<<warps, kThreads, 0, stream>>>(arguments);
  else if (request.classes <= kWarpRow)
    score_by_warps<32><<<warps, kThreads, 0, stream>>>(arguments);
  else
    score_by_blocks<<<blocks_for(request.rows, 1), kThreads, 0, stream>>>(arguments);
}

template <class T>
void launch(const Request& request, cudaStream_t stream) {
  if (request.integer == Integer::i32)
    launch<T, int32_t>(request, stream);
  else
    launch<T, int64_t>(request, stream);
}

}  // namespace

const char* score_cuda(const Request& request, int device, void* stream) {
  if (request.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (request.number) {
    case Number::f32: launch<float>(request, on); break;
    case Number::f64: launch<double>(request, on); break;
    case Number::bf16: launch<BFloat16>(request, on); break;
  }
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace scoring
}  // namespace pad_fast
