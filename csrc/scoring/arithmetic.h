// Arithmetic of the difficulty scores EL2N and last-layer GraNd (Paul et al. 2021, arXiv 2107.07075), for the CPU and
// for CUDA: scalars everywhere, and GCC's vector types where the CPU loops over rows use them.
//
//   EL2N  = || softmax(z) - onehot(y) ||_2
//   GraNd = EL2N * sqrt(1 + ||h||^2)      the norm of the last layer's gradient, bias included; h its input
//
// With t = max_{k != y} z_k, f_k = exp(z_k - t), O = sum_{k != y} f_k, Q = sum_{k != y} f_k^2 and the softmax's
// denominator O + exp(z_y - t), both in units of exp(t), the entry 1 - p_y equals O over that denominator. Hence
//
//   EL2N = sqrt(O^2 + Q) / (O + exp(z_y - t))                                                               (1)
//
// Nothing overflows, underflows or cancels: O and Q lie between 1 and the number of classes, and 1 - p_y is never
// formed by subtraction. Easy samples, many of which a float32 softmax rounds to the same 0, keep their order.
// Only exp(z_y - t) spans many orders of magnitude; it is taken once a row, in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define PAD_HD __host__ __device__ __forceinline__
#define PAD_UNROLL _Pragma("unroll")
#else
#define PAD_UNROLL
#define PAD_HD inline __attribute__((always_inline))
#endif

namespace pad_fast {
namespace scoring {

// The upper half of a float32.
struct BFloat16 { uint16_t bits; };

PAD_HD float widened(float x) { return x; }
PAD_HD double widened(double x) { return x; }
PAD_HD float widened(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// What the rows of logits of type T are computed in.
template <class T> struct Computed { using type = T; };
template <> struct Computed<BFloat16> { using type = float; };

template <class E> struct Exp;

template <> struct Exp<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, degree = 7;
  static constexpr float lowest = -86.0f;             // exp(x) is a normal number, and so is half of it
  static constexpr float round = 12582912.0f;         // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float log2_e = 1.44269504088896341f;
  static constexpr float ln2_high = 0.693359375f;     // nine bits, so that k * ln2_high is exact
  static constexpr float ln2_low = -2.12194440054690583e-4f;
};

template <> struct Exp<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, degree = 13;
  static constexpr double lowest = -708.0;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double log2_e = 1.44269504088896341;
  static constexpr double ln2_high = 6.93147180369123816490e-01;  // its last 11 bits are zero
  static constexpr double ln2_low = 1.90821492927058770002e-10;
};

// Same-sized integers of a scalar; vectors say theirs where they are defined.
template <class V> struct BitsOf { using type = typename Exp<V>::Bits; };

template <int n> struct Factorial { static constexpr double value = n * Factorial<n - 1>::value; };
template <> struct Factorial<0> { static constexpr double value = 1; };

// sum_{i >= n} r^(i - n) / i!, i up to E's degree: Taylor's polynomial of exp for n = 0. On |r| <= ln(2) / 2 the first
// term left out is below 2^-27 of the sum in float, and below 2^-57 in double.
template <class E, int n, class V> PAD_HD V taylor(V r) {
  if constexpr (n == Exp<E>::degree)
    return V{} + static_cast<E>(1 / Factorial<n>::value);
  else
    return taylor<E, n + 1>(r) * r + static_cast<E>(1 / Factorial<n>::value);
}

// exp(x) for x <= 0 within 2 ulp, without branches, calls or tables; V is E or a vector of E. Below Exp<E>::lowest it
// stays at that value's result, a number that no sum with a 1 in it notices; NaN stays NaN.
template <class E, class V> PAD_HD V exp_nonpositive(V x) {
  using C = Exp<E>;
  using Bits = typename BitsOf<V>::type;
  x = x < C::lowest ? V{} + C::lowest : x;
  const V shifted = x * C::log2_e + C::round;
  const V k = shifted - C::round;
  const V r = (x - k * C::ln2_high) - k * C::ln2_low;
  const V p = taylor<E, 0>(r);
  // 2^k comes in as k added to the exponent; everything else in `shifted` is shifted out.
  Bits power, bits;
  memcpy(&power, &shifted, sizeof power);
  memcpy(&bits, &p, sizeof bits);
  bits += power << C::mantissa;
  V result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// Equation (1) from a row's sums; `own` = z_y, `top` = t, minus infinity where there is no other class or all are
// ruled out. Like softmax it is NaN for a logit of plus infinity and where every logit is minus infinity.
PAD_HD double el2n_from_sums(double others, double squares, double own, double top) {
  const double margin = own - top;
  const double distance = margin < 0 ? -margin : margin;
  double small = exp_nonpositive<double>(-distance);  // exp of the smaller of the two logits, the larger one being 0
  small = distance > -Exp<double>::lowest ? 0.0 : small;
  small += own > 0 ? own - own : 0.0;
  const bool easy = margin > 0;
  const double numerator = std::sqrt(others * others + squares) * (easy ? small : 1.0);
  return numerator / (easy ? others * small + 1.0 : others + small);
}

// The factor by which last-layer GraNd exceeds EL2N, from the sum of squared features.
PAD_HD double grand_factor(double squared_features) { return std::sqrt(1.0 + squared_features); }

// Mean and sum of squared deviations over networks, one network at a time (Welford 1962). `seen` networks are in
// already; with none the old contents do not matter.
PAD_HD void accumulate(double& mean, double& deviations, double value, int64_t seen) {
  const double before = seen == 0 ? value : mean;
  const double delta = value - before;
  mean = before + delta / static_cast<double>(seen + 1);
  deviations = (seen == 0 ? 0.0 : deviations) + delta * (value - mean);
}

// EL2N of one row by a group of threads (a CUDA warp or block, or the one of Alone): every member calls this, every
// member gets the result. A group has rank(), size(), max(F) and sum(double).
//
// Two passes over memory, for rows of any length; sums in Sum.
template <class Sum, class T, class Group>
PAD_HD double el2n_of_row(const T* z, int64_t label, int64_t classes, const Group& group) {
  using F = typename Computed<T>::type;
  F top = -static_cast<F>(INFINITY);
  for (int64_t k = group.rank(); k < classes; k += group.size()) {
    const F value = widened(z[k]);
    if (k != label && value > top) top = value;
  }
  top = group.max(top);
  const F base = top > -static_cast<F>(INFINITY) ? top : static_cast<F>(0);
  Sum others = 0, squares = 0;
  for (int64_t k = group.rank(); k < classes; k += group.size()) {
    const F e = k == label ? static_cast<F>(0) : exp_nonpositive<F>(widened(z[k]) - base);
    others += e;
    squares += static_cast<Sum>(e) * e;
  }
  return el2n_from_sums(group.sum(others), group.sum(squares), widened(z[label]), top);
}

// One pass over memory: the row, of at most `each` * group.size() logits, stays in registers.
template <int each, class T, class Group>
PAD_HD double el2n_of_short_row(const T* z, int64_t label, int64_t classes, const Group& group) {
  using F = typename Computed<T>::type;
  F mine[each];
  F top = -static_cast<F>(INFINITY);
  PAD_UNROLL
  for (int i = 0; i < each; ++i) {
    const int64_t k = group.rank() + static_cast<int64_t>(i) * group.size();
    mine[i] = k < classes && k != label ? widened(z[k]) : -static_cast<F>(INFINITY);
    top = mine[i] > top ? mine[i] : top;
  }
  top = group.max(top);
  const F base = top > -static_cast<F>(INFINITY) ? top : static_cast<F>(0);
  F others = 0, squares = 0;
  PAD_UNROLL
  for (int i = 0; i < each; ++i) {
    const F e = exp_nonpositive<F>(mine[i] - base);
    others += e;
    squares += e * e;
  }
  return el2n_from_sums(group.sum(others), group.sum(squares), widened(z[label]), top);
}

// A group of one.
struct Alone {
  PAD_HD int rank() const { return 0; }
  PAD_HD int size() const { return 1; }
  template <class F> PAD_HD F max(F value) const { return value; }
  PAD_HD double sum(double value) const { return value; }
};

}  // namespace scoring
}  // namespace pad_fast
