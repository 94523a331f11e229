// The scoring loops as the bindings see them. Sizes and addresses only; pad_fast/scoring/native.py has checked them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pad_fast {
namespace scoring {

enum class Number { f32, f64, bf16 };
enum class Integer { i32, i64 };

struct Request {
  Number number;            // of logits and features
  Integer integer;          // of labels
  const void* logits;       // [rows, classes]
  const void* features;     // [rows, width]; null: EL2N instead of GraNd
  const void* labels;       // [rows], each in [0, classes)
  int64_t rows, classes, width;
  void* scores;             // [rows] double for f64 logits, else float; null: not wanted
  double* mean;             // [rows], running mean of scores over networks; null: not wanted
  double* deviations;       // [rows], running sum of squared deviations from it; null with `mean`
  int64_t seen;             // networks that are in mean and deviations already; 0 overwrites them
};

// On the CPU, on at most `threads` threads; the result does not depend on their number.
void score(const Request& request, int threads);

// The rows from `begin` to `end`, once per instruction set (rows.h); `scratch` is scratch_bytes() of aligned memory.
void score_rows_avx512(const Request& request, int64_t begin, int64_t end, void* scratch);
void score_rows_avx2(const Request& request, int64_t begin, int64_t end, void* scratch);
void score_rows_baseline(const Request& request, int64_t begin, int64_t end, void* scratch);

// The instruction set in use: the best one this machine has, or the one named by PAD_FAST_ISA if it has that.
const char* instructions();

// On a GPU: addresses of device memory, `stream` a cudaStream_t of `device`. Returns null, or CUDA's message when
// the launch is refused.
const char* score_cuda(const Request& request, int device, void* stream);

// Whether every label is in [0, classes).
template <class Label> bool labels_fit(const Label* labels, int64_t rows, int64_t classes);

// Rows grouped by label, each group from low to high score, ties by index. `order` [rows] holds the groups one
// after the other; group c is order[offsets[c]] .. order[offsets[c + 1]], with `offsets` [classes + 1].
template <class T, class Label>
void class_order(int64_t* order, int64_t* offsets, const T* scores, const Label* labels, int64_t rows, int64_t classes,
                 int threads);

}  // namespace scoring
}  // namespace pad_fast
