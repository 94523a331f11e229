// One bit per lane: the signs of ReLU inputs, packed, so that a map need not be kept for its backward pass.
#pragma once
#include "simd.h"
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

using Mask = std::uint16_t;

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
PAD_INLINE Mask positive(VecFloat a) { return Mask(_mm512_cmp_ps_mask(__m512(a), _mm512_setzero_ps(), _CMP_GT_OQ)); }
PAD_INLINE Mask positive(VecDouble a) { return Mask(_mm512_cmp_pd_mask(__m512d(a), _mm512_setzero_pd(), _CMP_GT_OQ)); }
PAD_INLINE VecFloat select(Mask m, VecFloat v) { return VecFloat(_mm512_maskz_mov_ps(__mmask16(m), __m512(v))); }
PAD_INLINE VecDouble select(Mask m, VecDouble v) { return VecDouble(_mm512_maskz_mov_pd(__mmask8(m), __m512d(v))); }
#else
template <class V, class T> PAD_INLINE Mask pack_positive(V a) {
  Mask m = 0;
  for (int l = 0; l < lanes<T>; ++l) m = Mask(m | (Mask(a[l] > 0) << l));
  return m;
}
template <class V, class I, class T> PAD_INLINE V unpack(Mask m, V v) {
  typedef I Ints __attribute__((vector_size(PAD_VECTOR_BYTES)));
  Ints bit;
  for (int l = 0; l < lanes<T>; ++l) bit[l] = I(1) << l;
  const Ints on = ((Ints{} + I(m)) & bit) == bit;
  return on ? v : V{};
}
#if defined(__AVX2__)
PAD_INLINE Mask positive(VecFloat a) {
  return Mask(_mm256_movemask_ps(_mm256_cmp_ps(__m256(a), _mm256_setzero_ps(), _CMP_GT_OQ)));
}
PAD_INLINE Mask positive(VecDouble a) {
  return Mask(_mm256_movemask_pd(_mm256_cmp_pd(__m256d(a), _mm256_setzero_pd(), _CMP_GT_OQ)));
}
#else
PAD_INLINE Mask positive(VecFloat a) { return pack_positive<VecFloat, float>(a); }
PAD_INLINE Mask positive(VecDouble a) { return pack_positive<VecDouble, double>(a); }
#endif
PAD_INLINE VecFloat select(Mask m, VecFloat v) { return unpack<VecFloat, std::int32_t, float>(m, v); }
PAD_INLINE VecDouble select(Mask m, VecDouble v) { return unpack<VecDouble, std::int64_t, double>(m, v); }
#endif

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
