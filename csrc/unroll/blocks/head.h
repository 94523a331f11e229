// The linear classifier and the mean cross entropy of one group of images, with tangent and adjoint.
#pragma once
#include "unroll/network.h"
#include "unroll/vector/gemm.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

// Softmax of one row in double; returns log sum exp.
template <class T> static double softmax(const T* u, index_t classes, double* p) {
  double top = double(u[0]), sum = 0;
  for (index_t k = 1; k < classes; ++k) top = double(u[k]) > top ? double(u[k]) : top;
  for (index_t k = 0; k < classes; ++k) sum += p[k] = __builtin_exp(double(u[k]) - top);
  for (index_t k = 0; k < classes; ++k) p[k] /= sum;
  return top + __builtin_log(sum);
}

template <class T> struct Head {
  index_t classes, features;                // features counts the padding of the channels-last map
  index_t padded_classes;
  const T *w, *wt, *bias, *v, *vt, *bias_v;  // w [classes][features], wt [features][padded_classes]; v: tangent

  struct Rows {
    T *u, *ud;    // logits and tangents [images][padded_classes]
    T *gu, *gud;  // u' and ud'
  };

  void logits(const T* f, index_t images, T* u) const {
    gemm<T, false>(images, padded_classes, features, f, features, wt, padded_classes, u, padded_classes, false);
    for (index_t i = 0; i < images; ++i)
      for (index_t k = 0; k < classes; ++k) u[i * padded_classes + k] += bias[k];
  }
  // ud = W fd + V f + vb  (eq. 24)
  void tangent(const T* f, const T* fd, index_t images, T* ud) const {
    gemm<T, false>(images, padded_classes, features, fd, features, wt, padded_classes, ud, padded_classes, false);
    gemm<T, false>(images, padded_classes, features, f, features, vt, padded_classes, ud, padded_classes, true);
    for (index_t i = 0; i < images; ++i)
      for (index_t k = 0; k < classes; ++k) ud[i * padded_classes + k] += bias_v[k];
  }

  // Target distribution q of one row, and its total (1 unless the caller's probabilities do not sum to 1).
  double target(const void* labels, LabelKind kind, index_t image, double* q) const {
    if (kind == kHard) {
      for (index_t k = 0; k < classes; ++k) q[k] = 0;
      q[static_cast<const std::int64_t*>(labels)[image]] = 1;
      return 1;
    }
    const T* y = static_cast<const T*>(labels) + image * classes;
    if (kind == kLogits) {
      softmax(y, classes, q);
      return 1;
    }
    double total = 0;
    for (index_t k = 0; k < classes; ++k) total += q[k] = double(y[k]);
    return total;
  }

  // ud' = (p - q) / B for every row, and the sum of the rows' losses. `scratch` holds two rows of doubles.
  double loss(Rows rows, index_t first, index_t images, index_t batch, const void* labels, LabelKind kind,
              double* scratch) const {
    double *p = scratch, *q = scratch + classes, sum = 0;
    for (index_t i = 0; i < images; ++i) {
      const T* u = rows.u + i * padded_classes;
      T* gud = rows.gud + i * padded_classes;
      const double lse = softmax(u, classes, p), total = target(labels, kind, first + i, q);
      for (index_t k = 0; k < classes; ++k) {
        sum += q[k] == 0 ? 0 : q[k] * (lse - double(u[k]));
        gud[k] = T((p[k] * total - q[k]) / double(batch));
      }
    }
    return sum;
  }

  // Adds u' and y' (eq. 25), returns this group's part of phi = <ud', ud>.
  double adjoint(Rows rows, index_t first, index_t images, index_t batch, const void* labels, LabelKind kind, T* gy,
                 double* scratch) const {
    double *p = scratch, *q = scratch + classes, phi = 0;
    const double scale = 1.0 / double(batch);
    for (index_t i = 0; i < images; ++i) {
      const T *u = rows.u + i * padded_classes, *ud = rows.ud + i * padded_classes;
      T *gu = rows.gu + i * padded_classes, *gud = rows.gud + i * padded_classes;
      softmax(u, classes, p);
      const double total = target(labels, kind, first + i, q);
      double mean_p = 0, mean_q = 0;
      for (index_t k = 0; k < classes; ++k) mean_p += p[k] * double(ud[k]), mean_q += q[k] * double(ud[k]);
      phi += (mean_p * total - mean_q) * scale;
      for (index_t k = 0; k < classes; ++k) {
        gud[k] = T((p[k] * total - q[k]) * scale);
        gu[k] = T(total * p[k] * (double(ud[k]) - mean_p) * scale);
      }
      if (!gy) continue;
      T* out = gy + (first + i) * classes;
      for (index_t k = 0; k < classes; ++k)
        out[k] = kind == kLogits ? T(-q[k] * (double(ud[k]) - mean_q) * scale) : T((mean_p - double(ud[k])) * scale);
    }
    return phi;
  }

  // f' (+)= W^T u'
  void pull(const T* gu, const T* weights, index_t images, T* gf, bool accumulate) const {
    gemm<T, false>(images, features, classes, gu, padded_classes, weights, features, gf, features, accumulate);
  }
  // dW += u' (x) f, db += sum u'
  void accumulate(const T* gu, const T* f, index_t images, T* dw, T* db) const {
    gemm<T, true>(classes, features, images, gu, padded_classes, f, features, dw, features, true);
    if (!db) return;
    for (index_t i = 0; i < images; ++i)
      for (index_t k = 0; k < classes; ++k) db[k] += gu[i * padded_classes + k];
  }
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
