#include "score.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "blocks.h"
#include "cpu.h"
#include "parallel.h"

namespace pad_fast {
namespace scoring {
namespace {

struct Isa {
  const char* name;
  void (*score_rows)(const Request&, int64_t, int64_t, void*);
  bool (*available)();
};

const Isa kIsas[] = {
#if defined(__x86_64__)
    {"avx512", score_rows_avx512, has_avx512},
    {"avx2", score_rows_avx2, has_avx2},
#endif
    {"baseline", score_rows_baseline, [] { return true; }},
};

// The best one, or the one that PAD_FAST_ISA names; other names there mean sets that only the student engine knows.
const Isa& chosen() {
  const char* named = std::getenv("PAD_FAST_ISA");
  const Isa* best = nullptr;
  for (const Isa& isa : kIsas) {
    if (!isa.available()) continue;
    if (named != nullptr && std::strcmp(named, isa.name) == 0) return isa;
    if (best == nullptr) best = &isa;
  }
  return *best;
}

// Elements of a piece: tens of microseconds, enough to be worth waking a thread, and a short wait for the last one.
constexpr int64_t kGrain = 1 << 15;

// Either a block of narrow rows, or a group of wide ones: one row, or as many as kGroupBytes hold, with their padding.
int64_t scratch_bytes(int64_t classes) {
  const int64_t elements = std::max<int64_t>(classes, kBlock * std::min(classes, kNarrow)) + 64;
  return std::max<int64_t>(elements * static_cast<int64_t>(sizeof(double)), kGroupBytes);
}

}  // namespace

void score(const Request& request, int threads) {
  constexpr std::align_val_t line{64};
  const auto run = chosen().score_rows;
  const int64_t blocks = (request.rows + kBlock - 1) / kBlock;
  const int64_t work = kBlock * (request.classes + (request.features != nullptr ? request.width / 8 : 0));
  const int64_t bytes = (scratch_bytes(request.classes) + 63) / 64 * 64;
  char* scratch = static_cast<char*>(::operator new(static_cast<size_t>(bytes * threads), line));
  parallel_for(blocks, kGrain / work, threads, [&](int worker, int64_t begin, int64_t end) {
    run(request, begin * kBlock, std::min(end * kBlock, request.rows), scratch + worker * bytes);
  });
  ::operator delete(scratch, line);
}

const char* instructions() { return chosen().name; }

template <class Label> bool labels_fit(const Label* labels, int64_t rows, int64_t classes) {
  // The sign bit of y | (classes - 1 - y) says that y is below 0 or above the last class; without comparisons, which
  // no baseline vector has for 64 bits.
  using Bits = std::make_unsigned_t<Label>;
  const Bits last = static_cast<Bits>(std::min<int64_t>(classes - 1, std::numeric_limits<Label>::max()));
  Bits signs = 0;
  for (int64_t i = 0; i < rows; ++i) signs |= static_cast<Bits>(labels[i]) | (last - static_cast<Bits>(labels[i]));
  return static_cast<Label>(signs) >= 0;
}

template bool labels_fit(const int32_t*, int64_t, int64_t);
template bool labels_fit(const int64_t*, int64_t, int64_t);

template <class T, class Label>
void class_order(int64_t* order, int64_t* offsets, const T* scores, const Label* labels, int64_t rows, int64_t classes,
                 int threads) {
  std::fill(offsets, offsets + classes + 1, 0);
  for (int64_t i = 0; i < rows; ++i) ++offsets[labels[i] + 1];
  for (int64_t c = 0; c < classes; ++c) offsets[c + 1] += offsets[c];
  std::vector<int64_t> next(offsets, offsets + classes);
  for (int64_t i = 0; i < rows; ++i) order[next[static_cast<size_t>(labels[i])]++] = i;
  // The index as second key makes the order total, and std::sort, unlike std::stable_sort, needs no memory.
  const auto easier = [scores](int64_t a, int64_t b) { return scores[a] != scores[b] ? scores[a] < scores[b] : a < b; };
  parallel_for(classes, 1, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) std::sort(order + offsets[c], order + offsets[c + 1], easier);
  });
}

template void class_order(int64_t*, int64_t*, const float*, const int32_t*, int64_t, int64_t, int);
template void class_order(int64_t*, int64_t*, const float*, const int64_t*, int64_t, int64_t, int);
template void class_order(int64_t*, int64_t*, const double*, const int32_t*, int64_t, int64_t, int);
template void class_order(int64_t*, int64_t*, const double*, const int64_t*, int64_t, int64_t, int);

}  // namespace scoring
}  // namespace pad_fast
