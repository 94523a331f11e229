#include "scoring.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.h"

// One binary serves every x86-64: the row loops exist in several versions and the loader picks one. Inlined callees
// follow their caller. Elsewhere the baseline already has the vectors there are (NEON on aarch64).
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define PAD_FAST_HAS_CLONES
#define PAD_FAST_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PAD_FAST_CLONES
#endif

namespace pad_fast {
namespace {

// Sums run in this many independent lanes, because compilers may not reorder a sum of doubles themselves.
constexpr int64_t kLanes = 8;

// Elements below which starting a thread costs more than it saves.
constexpr int64_t kGrain = 1 << 15;

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

double sum(const double (&lanes)[kLanes]) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

template <class T>
inline __attribute__((always_inline)) void el2n_rows(T* out, const T* logits, const int64_t* labels, int64_t begin,
                                                     int64_t end, int64_t classes, double* row) {
  // Padding with -inf adds exp(-708) ~ 3e-308 per entry, which no sum notices.
  const int64_t stop = padded(classes);
  for (int64_t k = classes; k < stop; ++k) row[k] = -std::numeric_limits<double>::infinity();

  for (int64_t i = begin; i < end; ++i) {
    const T* z = logits + i * classes;
    double largest[kLanes];
    for (double& lane : largest) lane = -std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < classes; ++k) row[k] = static_cast<double>(z[k]);
    for (int64_t k = 0; k < stop; k += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) largest[j] = row[k + j] > largest[j] ? row[k + j] : largest[j];
    const double top = *std::max_element(largest, largest + kLanes);

    const double at_label = exp_nonpositive(row[labels[i]] - top);
    double others[kLanes] = {};
    double squares[kLanes] = {};
    row[labels[i]] = -std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < stop; k += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) {
        const double e = exp_nonpositive(row[k + j] - top);
        others[j] += e;
        squares[j] += e * e;
      }
    const double rest = sum(others);
    out[i] = static_cast<T>(el2n_from_sums(rest, sum(squares), rest + at_label));
  }
}

template <class T>
inline __attribute__((always_inline)) void grand_rows(T* out, const T* features, int64_t begin, int64_t end,
                                                      int64_t width) {
  for (int64_t i = begin; i < end; ++i) {
    const T* h = features + i * width;
    double squares[kLanes] = {};
    int64_t k = 0;
    for (; k + kLanes <= width; k += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) {
        const double value = static_cast<double>(h[k + j]);
        squares[j] += value * value;
      }
    for (; k < width; ++k) squares[0] += static_cast<double>(h[k]) * static_cast<double>(h[k]);
    out[i] = static_cast<T>(static_cast<double>(out[i]) * grand_factor(sum(squares)));
  }
}

// target_clones wants functions, not templates.
PAD_FAST_CLONES void el2n_piece(float* out, const float* logits, const int64_t* labels, int64_t begin, int64_t end,
                                int64_t classes, double* row) {
  el2n_rows(out, logits, labels, begin, end, classes, row);
}

PAD_FAST_CLONES void el2n_piece(double* out, const double* logits, const int64_t* labels, int64_t begin,
                                int64_t end, int64_t classes, double* row) {
  el2n_rows(out, logits, labels, begin, end, classes, row);
}

PAD_FAST_CLONES void grand_piece(float* out, const float* features, int64_t begin, int64_t end, int64_t width) {
  grand_rows(out, features, begin, end, width);
}

PAD_FAST_CLONES void grand_piece(double* out, const double* features, int64_t begin, int64_t end, int64_t width) {
  grand_rows(out, features, begin, end, width);
}

}  // namespace

template <class T>
void el2n(T* out, const T* logits, const int64_t* labels, int64_t rows, int64_t classes, int threads) {
  const int64_t stride = padded(classes);
  std::vector<double> scratch(static_cast<size_t>(stride) * static_cast<size_t>(threads));
  parallel_for(rows, kGrain / classes, threads, [&](int64_t piece, int64_t begin, int64_t end) {
    el2n_piece(out, logits, labels, begin, end, classes, scratch.data() + piece * stride);
  });
}

template <class T>
void grand(T* out, const T* logits, const T* features, const int64_t* labels, int64_t rows, int64_t classes,
           int64_t width, int threads) {
  el2n(out, logits, labels, rows, classes, threads);
  parallel_for(rows, kGrain / std::max<int64_t>(1, width), threads,
               [&](int64_t, int64_t begin, int64_t end) { grand_piece(out, features, begin, end, width); });
}

template <class T>
void class_order(int64_t* order, int64_t* offsets, const T* scores, const int64_t* labels, int64_t rows,
                 int64_t classes, int threads) {
  std::fill(offsets, offsets + classes + 1, 0);
  for (int64_t i = 0; i < rows; ++i) ++offsets[labels[i] + 1];
  for (int64_t c = 0; c < classes; ++c) offsets[c + 1] += offsets[c];
  std::vector<int64_t> next(offsets, offsets + classes);
  for (int64_t i = 0; i < rows; ++i) order[next[static_cast<size_t>(labels[i])]++] = i;
  // The index as second key makes the order total, and std::sort, unlike std::stable_sort, needs no memory.
  const auto easier = [scores](int64_t a, int64_t b) {
    return scores[a] != scores[b] ? scores[a] < scores[b] : a < b;
  };
  parallel_for(classes, 1, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) std::sort(order + offsets[c], order + offsets[c + 1], easier);
  });
}

const char* scoring_instructions() {
#ifdef PAD_FAST_HAS_CLONES
  if (__builtin_cpu_supports("avx512f")) return "avx512f";
  if (__builtin_cpu_supports("avx2")) return "avx2";
#endif
  return "baseline";
}

template void el2n(float*, const float*, const int64_t*, int64_t, int64_t, int);
template void el2n(double*, const double*, const int64_t*, int64_t, int64_t, int);
template void grand(float*, const float*, const float*, const int64_t*, int64_t, int64_t, int64_t, int);
template void grand(double*, const double*, const double*, const int64_t*, int64_t, int64_t, int64_t, int);
template void class_order(int64_t*, int64_t*, const float*, const int64_t*, int64_t, int64_t, int);
template void class_order(int64_t*, int64_t*, const double*, const int64_t*, int64_t, int64_t, int);

}  // namespace pad_fast
