// The CPU's loop over rows, compiled once per instruction set: each including source names PAD_ISA and
// PAD_VECTOR_BYTES and has flags of its own in setup.py. Everything here lives in a namespace of that name, so that the
// linker cannot pick, say, an AVX-512 copy of a function for a machine without it (one-definition rule).
#pragma once

#include <limits>
#include <utility>

#include "arithmetic.h"
#include "blocks.h"
#include "join.h"
#include "score.h"

#ifndef PAD_ISA
#error "define PAD_ISA (a name) and PAD_VECTOR_BYTES (16, 32 or 64) before including this"
#endif

// Nothing but constants may come from the standard library here, for the same reason.
namespace pad_fast {
namespace scoring {
namespace PAD_ISA {

typedef float VecFloat __attribute__((vector_size(PAD_VECTOR_BYTES)));
typedef double VecDouble __attribute__((vector_size(PAD_VECTOR_BYTES)));
typedef uint32_t BitsFloat __attribute__((vector_size(PAD_VECTOR_BYTES)));
typedef uint64_t BitsDouble __attribute__((vector_size(PAD_VECTOR_BYTES)));
typedef int32_t IntsFloat __attribute__((vector_size(PAD_VECTOR_BYTES)));
typedef int64_t IntsDouble __attribute__((vector_size(PAD_VECTOR_BYTES)));

template <class F> struct Kinds;
template <> struct Kinds<float> {
  using Vec = VecFloat;
  using Ints = IntsFloat;
  using Int = int32_t;
};
template <> struct Kinds<double> {
  using Vec = VecDouble;
  using Ints = IntsDouble;
  using Int = int64_t;
};
template <class F> using Vec = typename Kinds<F>::Vec;
template <class F> using Ints = typename Kinds<F>::Ints;

}  // namespace PAD_ISA

template <> struct BitsOf<PAD_ISA::VecFloat> { using type = PAD_ISA::BitsFloat; };
template <> struct BitsOf<PAD_ISA::VecDouble> { using type = PAD_ISA::BitsDouble; };

namespace PAD_ISA {

template <class F> constexpr int lanes = PAD_VECTOR_BYTES / int(sizeof(F));
template <class F> constexpr F infinity = std::numeric_limits<F>::infinity();

#define PAD_INLINE inline __attribute__((always_inline))

template <class V, class P> PAD_INLINE V load(const P* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class P> PAD_INLINE void store(P* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
template <class F> PAD_INLINE Vec<F> splat(F value) { return Vec<F>{} + value; }

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PAD_HAS_SHUFFLEVECTOR
#endif
#endif

template <class F, int bytes> struct Sized { typedef F Vec __attribute__((vector_size(bytes))); };

// Lanes first, first + 1, ... of a vector, as many as `lane` counts.
#if defined(PAD_HAS_SHUFFLEVECTOR)
template <int first, class V, int... lane> PAD_INLINE auto piece(V v, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(v, v, (first + lane)...);
}
#endif
template <class F, int bytes, bool upper> PAD_INLINE auto half(typename Sized<F, bytes>::Vec v) {
  constexpr int count = bytes / 2 / int(sizeof(F));
#if defined(PAD_HAS_SHUFFLEVECTOR)
  return piece<upper ? count : 0>(v, std::make_integer_sequence<int, count>());
#else
  F lane[2 * count];
  store(lane, v);
  return load<typename Sized<F, bytes / 2>::Vec>(lane + (upper ? count : 0));
#endif
}

// Sum or largest of a vector's lanes, by halves.
template <class F, bool largest, int bytes = PAD_VECTOR_BYTES> PAD_INLINE F folded(typename Sized<F, bytes>::Vec v) {
  if constexpr (bytes == 2 * int(sizeof(F))) {
    if constexpr (largest)
      return v[1] > v[0] ? v[1] : v[0];
    else
      return v[0] + v[1];
  } else {
    const auto low = half<F, bytes, false>(v), high = half<F, bytes, true>(v);
    if constexpr (largest)
      return folded<F, largest, bytes / 2>(high > low ? high : low);
    else
      return folded<F, largest, bytes / 2>(low + high);
  }
}
template <class F> PAD_INLINE F sum_of(Vec<F> v) { return folded<F, false>(v); }
template <class F> PAD_INLINE F largest_of(Vec<F> v) { return folded<F, true>(v); }

// Half a vector of numbers as a whole vector of doubles.
PAD_INLINE VecDouble doubles(const float* p) {
  typedef float Half __attribute__((vector_size(PAD_VECTOR_BYTES / 2)));
  return __builtin_convertvector(load<Half>(p), VecDouble);
}
PAD_INLINE VecDouble doubles(const double* p) { return load<VecDouble>(p); }
PAD_INLINE VecDouble doubles(const BFloat16* p) {
  typedef uint16_t Quarter __attribute__((vector_size(PAD_VECTOR_BYTES / 4)));
  typedef uint32_t HalfBits __attribute__((vector_size(PAD_VECTOR_BYTES / 2)));
  typedef float Half __attribute__((vector_size(PAD_VECTOR_BYTES / 2)));
  const HalfBits bits = __builtin_convertvector(load<Quarter>(p), HalfBits) << 16;
  return __builtin_convertvector(load<Half>(&bits), VecDouble);
}

// A whole vector's lanes, added two by two as doubles.
PAD_INLINE VecDouble doubled(VecFloat v) {
  return __builtin_convertvector((half<float, PAD_VECTOR_BYTES, false>(v)), VecDouble) +
         __builtin_convertvector((half<float, PAD_VECTOR_BYTES, true>(v)), VecDouble);
}
PAD_INLINE VecDouble doubled(VecDouble v) { return v; }

// A vector's lanes as doubles.
PAD_INLINE void store_doubles(double* p, VecFloat v) {
  store(p, __builtin_convertvector((half<float, PAD_VECTOR_BYTES, false>(v)), VecDouble));
  store(p + lanes<double>, __builtin_convertvector((half<float, PAD_VECTOR_BYTES, true>(v)), VecDouble));
}
PAD_INLINE void store_doubles(double* p, VecDouble v) { store(p, v); }

// Asks for memory that comes next: processors look ahead by themselves, but not across the ends of pages. To be called
// for a few lines at a time, between other work: a processor that has too many requests open stops.
template <class T> PAD_INLINE void prefetch(const T* p, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(p);
  for (int64_t at = 0; at < count * int64_t(sizeof(T)); at += 64) __builtin_prefetch(bytes + at);
}

// Wide rows worked on together, if kGroupBytes allow.
constexpr int kGroup = 16;
// Vectors that may be summed in F before the sums move on to double.
constexpr int64_t kRun = 16;

struct Sums { double others[kBlock], squares[kBlock], own[kBlock], top[kBlock]; };

// 16 bytes each from p, p + stride, p + 2 stride ...: as many as make a vector.
#if defined(PAD_HAS_SHUFFLEVECTOR)
template <class V, int... lane> PAD_INLINE auto joined(V a, V b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, lane...);
}
template <class F, int bytes> PAD_INLINE auto strided_bytes(const F* p, int64_t stride) {
  if constexpr (bytes == 16) {
    return load<typename Sized<F, 16>::Vec>(p);
  } else {
    constexpr int half = bytes / 2;
    return joined(strided_bytes<F, half>(p, stride), strided_bytes<F, half>(p + half / 16 * stride, stride),
                  std::make_integer_sequence<int, bytes / int(sizeof(F))>());
  }
}
template <class F> PAD_INLINE Vec<F> strided(const F* p, int64_t stride) {
  return strided_bytes<F, PAD_VECTOR_BYTES>(p, stride);
}
#else
template <class F> PAD_INLINE Vec<F> strided(const F* p, int64_t stride) {
  constexpr int each = 16 / int(sizeof(F));
  F lane[lanes<F>];
  for (int q = 0; q < lanes<F> / each; ++q) __builtin_memcpy(lane + q * each, p + q * stride, 16);
  return load<Vec<F>>(lane);
}
#endif

// One round of a transpose within the parts: exchanges the off-diagonal entries at distance d.
template <class F, int d, int... lane>
PAD_INLINE void exchange(Vec<F>& upper, Vec<F>& lower, std::integer_sequence<int, lane...>) {
  constexpr int L = lanes<F>;
  const Vec<F> a = upper, b = lower;
#if defined(PAD_HAS_SHUFFLEVECTOR)
  upper = __builtin_shufflevector(a, b, (lane & d ? L + lane - d : lane)...);
  lower = __builtin_shufflevector(a, b, (lane & d ? L + lane : lane + d)...);
#else
  upper = __builtin_shuffle(a, b, Ints<F>{(lane & d ? L + lane - d : lane)...});
  lower = __builtin_shuffle(a, b, Ints<F>{(lane & d ? L + lane : lane + d)...});
#endif
}
template <class F, int d> PAD_INLINE void exchange_rows(Vec<F>* rows) {
  constexpr int square = 16 / int(sizeof(F));
  constexpr auto all = std::make_integer_sequence<int, lanes<F>>();
  exchange<F, d>(rows[0], rows[d], all);
  if constexpr (square == 4) exchange<F, d>(rows[3 - d], rows[3], all);
}

// Narrow rows: lane i works on row i of `z`, `lanes` rows of `classes` logits, readable for another 16 bytes.
template <class F>
PAD_INLINE void narrow_rows(const F* z, Ints<F> labels, int64_t classes, Sums& sums, int at) {
  constexpr int L = lanes<F>;
  constexpr int square = 16 / int(sizeof(F));  // columns read at a time: 16 bytes of each row
  alignas(64) F columns[kNarrow + square][L];
  Vec<F> top = splat(-infinity<F>), own = top;
  for (int64_t k = 0; k < classes; k += square) {
    Vec<F> x[square];
    for (int j = 0; j < square; ++j) x[j] = strided<F>(z + j * classes + k, square * classes);
    // Now part q of x[j] holds the columns k ... of row q * square + j. Transposed within each part, x[j] is column
    // k + j.
    exchange_rows<F, 1>(x);
    if constexpr (square == 4) exchange_rows<F, 2>(x);
    for (int j = 0; j < square; ++j) {
      // Columns beyond the last class belong to the next row: they become minus infinity, as the label's does.
      const Ints<F> is_label = labels == static_cast<typename Kinds<F>::Int>(k + j);
      own = is_label ? x[j] : own;
      x[j] = is_label || k + j >= classes ? splat(-infinity<F>) : x[j];
      top = x[j] > top ? x[j] : top;
      store(columns[k + j], x[j]);
    }
  }
  const Vec<F> base = top > -infinity<F> ? top : Vec<F>{};
  Vec<F> others[square] = {}, squares[square] = {};
  int64_t k = 0;
  for (; k + square <= classes; k += square)
    for (int j = 0; j < square; ++j) {
      const Vec<F> e = exp_nonpositive<F>(load<Vec<F>>(columns[k + j]) - base);
      others[j] += e;
      squares[j] += e * e;
    }
  for (; k < classes; ++k) {
    const Vec<F> e = exp_nonpositive<F>(load<Vec<F>>(columns[k]) - base);
    others[0] += e;
    squares[0] += e * e;
  }
  for (int j = 1; j < square; ++j) others[0] += others[j], squares[0] += squares[j];
  store_doubles(sums.others + at, others[0]);
  store_doubles(sums.squares + at, squares[0]);
  store_doubles(sums.own + at, own);
  store_doubles(sums.top + at, top);
}

// A row into scratch, at least one vector long.
template <class F> PAD_INLINE void copy_row(const F* z, F* row, int64_t classes) {
  constexpr int L = lanes<F>;
  for (int64_t k = 0; k < classes - L; k += L) store(row + k, load<Vec<F>>(z + k));
  store(row + classes - L, load<Vec<F>>(z + classes - L));
}
PAD_INLINE void copy_row(const BFloat16* z, float* row, int64_t classes) {
  for (int64_t k = 0; k < classes; ++k) row[k] = widened(z[k]);
}

// The address itself where rows can be worked on without conversion.
template <class F> PAD_INLINE const F* in_place(const F* z) { return z; }
PAD_INLINE const float* in_place(const BFloat16*) { return nullptr; }

// Wide rows: the vectors run along a row. A group of rows goes through each phase together, because what one row has
// to wait for (the largest logit before the first exponential, then the sums) the processor fills with the next row's
// work. `work` holds the group's rows, each padded with minus infinity to a whole vector; `after` rows of `z`
// follow them.
template <class T, class F, class Label>
PAD_INLINE void wide_rows(const T* z, const Label* labels, int count, int64_t after, int64_t classes, F* work,
                          Sums& sums, int at) {
  constexpr int L = lanes<F>;
  const int64_t stop = (classes + L - 1) / L * L;
  for (int i = 0; i < count; ++i) {
    F* row = work + i * stop;
    copy_row(z + i * classes, row, classes);
    sums.own[at + i] = row[labels[i]];
    row[labels[i]] = -infinity<F>;
  }
  F base[kGroup];
  for (int i = 0; i < count; ++i) {
    const F* row = work + i * stop;
    Vec<F> tops[2] = {splat(-infinity<F>), splat(-infinity<F>)};
    int64_t k = 0;
    for (; k + 2 * L <= stop; k += 2 * L)
      for (int j = 0; j < 2; ++j) {
        const Vec<F> x = load<Vec<F>>(row + k + j * L);
        tops[j] = x > tops[j] ? x : tops[j];
      }
    if (k < stop) {
      const Vec<F> x = load<Vec<F>>(row + k);
      tops[0] = x > tops[0] ? x : tops[0];
    }
    const F top = largest_of<F>(tops[0] > tops[1] ? tops[0] : tops[1]);
    sums.top[at + i] = top;
    base[i] = top > -infinity<F> ? top : F(0);
  }
  for (int i = 0; i < count; ++i) {
    const F* row = work + i * stop;
    if (i < after) prefetch(z + (count + i) * classes, classes);
    VecDouble others = {}, squares = {};
    for (int64_t k = 0; k < stop;) {
      const int64_t end = stop - k > kRun * L ? k + kRun * L : stop;
      Vec<F> o[2] = {}, q[2] = {};
      for (; k + 2 * L <= end; k += 2 * L)
        for (int j = 0; j < 2; ++j) {
          const Vec<F> e = exp_nonpositive<F>(load<Vec<F>>(row + k + j * L) - base[i]);
          o[j] += e;
          q[j] += e * e;
        }
      if (k < end) {
        const Vec<F> e = exp_nonpositive<F>(load<Vec<F>>(row + k) - base[i]);
        o[0] += e;
        q[0] += e * e;
        k = end;
      }
      others += doubled(o[0] + o[1]);
      squares += doubled(q[0] + q[1]);
    }
    sums.others[at + i] = sum_of<double>(others);
    sums.squares[at + i] = sum_of<double>(squares);
  }
}

template <class T> PAD_INLINE double squared_norm(const T* h, int64_t width) {
  constexpr int L = lanes<double>;
  VecDouble sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * L <= width; k += 4 * L)
    for (int j = 0; j < 4; ++j) {
      const VecDouble value = doubles(h + k + j * L);
      sums[j] += value * value;
    }
  double rest = 0;
  for (; k < width; ++k) {
    const double value = widened(h[k]);
    rest += value * value;
  }
  return sum_of<double>((sums[0] + sums[2]) + (sums[1] + sums[3])) + rest;
}

template <class T, class Label>
PAD_INLINE void score_rows(const Request& request, int64_t begin, int64_t end, void* scratch) {
  using F = typename Computed<T>::type;
  constexpr int L = lanes<F>;
  constexpr int spare = 16 / int(sizeof(F));
  const int64_t classes = request.classes;
  const Label* labels = static_cast<const Label*>(request.labels);
  const T* features = static_cast<const T*>(request.features);
  F* own_scratch = static_cast<F*>(scratch);
  const int64_t stop = (classes + L - 1) / L * L;
  const int64_t fitting = kGroupBytes / (stop * int64_t(sizeof(F)));
  const int group = fitting < 1 ? 1 : fitting < kGroup ? static_cast<int>(fitting) : kGroup;
  for (int i = 0; classes > kNarrow && i < group; ++i)
    for (int64_t k = classes; k < stop; ++k) own_scratch[i * stop + k] = -infinity<F>;

  Sums sums;
  double scores[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int count = end - first < kBlock ? static_cast<int>(end - first) : kBlock;
    const T* z = static_cast<const T*>(request.logits) + first * classes;
    for (int i = 0; i < kBlock; ++i) sums.others[i] = sums.squares[i] = sums.own[i] = sums.top[i] = 0;
    if (classes > kNarrow) {
      for (int i = 0; i < count; i += group) {
        const int grouped = count - i < group ? count - i : group;
        const int64_t after = request.rows - first - i - grouped;
        wide_rows(z + i * classes, labels + first + i, grouped, after, classes, own_scratch, sums, i);
      }
    } else {
      typename Kinds<F>::Int label[kBlock] = {};
      for (int i = 0; i < count; ++i) label[i] = static_cast<typename Kinds<F>::Int>(labels[first + i]);
      // The last rows of all, and those that need converting, are worked on in a copy.
      const F* rows = in_place(z);
      if (rows == nullptr || (request.rows - first) * classes < kBlock * classes + spare) {
        for (int64_t k = 0; k < count * classes; ++k) own_scratch[k] = widened(z[k]);
        for (int64_t k = count * classes; k < kBlock * classes + spare; ++k) own_scratch[k] = F(0);
        rows = own_scratch;
      }
      for (int i = 0; i < count; i += L) {
        if (request.rows - first >= kBlock + i + L) prefetch(z + (kBlock + i) * classes, L * classes);
        narrow_rows<F>(rows + i * classes, load<Ints<F>>(label + i), classes, sums, i);
      }
    }
    for (int i = 0; i < kBlock; ++i)
      scores[i] = el2n_from_sums(sums.others[i], sums.squares[i], sums.own[i], sums.top[i]);
    if (features != nullptr)
      for (int i = 0; i < count; ++i)
        scores[i] *= grand_factor(squared_norm(features + (first + i) * request.width, request.width));
    if (request.scores != nullptr) {
      F* out = static_cast<F*>(request.scores) + first;
      for (int i = 0; i < count; ++i) out[i] = static_cast<F>(scores[i]);
    }
    if (request.mean != nullptr)
      for (int i = 0; i < count; ++i)
        accumulate(request.mean[first + i], request.deviations[first + i], scores[i], request.seen);
  }
}

template <class T> PAD_INLINE void score_rows(const Request& request, int64_t begin, int64_t end, void* scratch) {
  if (request.integer == Integer::i32)
    score_rows<T, int32_t>(request, begin, end, scratch);
  else
    score_rows<T, int64_t>(request, begin, end, scratch);
}

}  // namespace PAD_ISA

void PAD_JOIN(score_rows_, PAD_ISA)(const Request& request, int64_t begin, int64_t end, void* scratch) {
  switch (request.number) {
    case Number::f32: return PAD_ISA::score_rows<float>(request, begin, end, scratch);
    case Number::f64: return PAD_ISA::score_rows<double>(request, begin, end, scratch);
    case Number::bf16: return PAD_ISA::score_rows<BFloat16>(request, begin, end, scratch);
  }
}

}  // namespace scoring
}  // namespace pad_fast
