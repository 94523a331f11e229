// Difficulty scores of classified samples: EL2N and last-layer GraNd (Paul et al. 2021, arXiv 2107.07075).
//
//   EL2N  = || softmax(z) - onehot(y) ||_2
//   GraNd = EL2N * sqrt(1 + ||h||^2)      the norm of the last layer's gradient, bias included; h its input
//
// With e_k = exp(z_k - max z), S = sum_k e_k and O = sum_{k != y} e_k, the entry 1 - p_y equals O / S. Hence
//
//   EL2N  = sqrt(O^2 + sum_{k != y} e_k^2) / S
//
// which, unlike p_y - 1, loses no digits where p_y is close to 1. Easy samples, many of which a float32 softmax
// rounds to the same 0, keep their order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define PAD_HD __host__ __device__
#else
#define PAD_HD
#endif

namespace pad_fast {

// exp(x) for x <= 0 within 2 ulp, without branches or calls, so that compilers vectorise loops over it.
// Below -708 (where the result would leave the normal range) it stays at exp(-708); NaN stays NaN.
PAD_HD inline double exp_nonpositive(double x) {
  constexpr double log2_e = 1.4426950408889634;
  // ln 2 in two parts: the first has 11 zero bits at the end, so that k * ln2_high is exact.
  constexpr double ln2_high = 6.93147180369123816490e-01;
  constexpr double ln2_low = 1.90821492927058770002e-10;
  // Adding 1.5 * 2^52 rounds to an integer and leaves that integer in the low bits.
  constexpr double round_to_integer = 6755399441055744.0;

  x = x < -708.0 ? -708.0 : x;
  const double shifted = x * log2_e + round_to_integer;
  const double k = shifted - round_to_integer;
  const double r = (x - k * ln2_high) - k * ln2_low;  // |r| <= ln(2) / 2

  // Taylor's polynomial: the first term left out is below 2^-57.
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;

  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;  // 2^k: everything above the exponent's 11 bits is shifted out
  double scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// EL2N from the sums over a row: `others` = O, `squares` = sum_{k != y} e_k^2, `total` = S.
PAD_HD inline double el2n_from_sums(double others, double squares, double total) {
  return std::sqrt(others * others + squares) / total;
}

// The factor by which last-layer GraNd exceeds EL2N, from the sum of squared features.
PAD_HD inline double grand_factor(double squared_features) { return std::sqrt(1.0 + squared_features); }

// CPU loops over rows (scoring.cpp). `out` [rows], `logits` [rows, classes], `labels` [rows] in [0, classes),
// `features` [rows, width], all contiguous. Arithmetic is in double whatever T is.
template <class T>
void el2n(T* out, const T* logits, const int64_t* labels, int64_t rows, int64_t classes, int threads);

template <class T>
void grand(T* out, const T* logits, const T* features, const int64_t* labels, int64_t rows, int64_t classes,
           int64_t width, int threads);

// Rows grouped by label, each group from low to high score, ties by index. `order` [rows] holds the groups one
// after the other; group c is order[offsets[c]] .. order[offsets[c + 1]], with `offsets` [classes + 1].
template <class T>
void class_order(int64_t* order, int64_t* offsets, const T* scores, const int64_t* labels, int64_t rows,
                 int64_t classes, int threads);

// The same on a GPU (scoring.cu): device addresses, `stream` a cudaStream_t of `device`. Return nullptr, or CUDA's
// message when the launch is refused.
template <class T>
const char* el2n_cuda(T* out, const T* logits, const int64_t* labels, int64_t rows, int64_t classes, int device,
                      void* stream);

template <class T>
const char* grand_cuda(T* out, const T* logits, const T* features, const int64_t* labels, int64_t rows,
                       int64_t classes, int64_t width, int device, void* stream);

// The widest instruction set the row loops use on this machine.
const char* scoring_instructions();

}  // namespace pad_fast
