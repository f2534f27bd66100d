// One vector of floats, for the instruction set that the including file is compiled for: isa_*.cpp define
// EXPLAINFIX_ISA, the namespace of everything in cpu/tile but tiled_conv.h, and EXPLAINFIX_LANES, the floats of a
// vector. Arithmetic is GCC's and Clang's vector extension; only what that cannot express is an intrinsic.
//
// No std:: function template may be instantiated in cpu/tile: the linker would keep one copy of it for all instruction
// sets, and it might be one that this machine does not have. Hence comparisons written out where std::min would do.
#pragma once

#if EXPLAINFIX_LANES > 4
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#define EXPLAINFIX_INLINE inline __attribute__((always_inline))
#define EXPLAINFIX_UNROLL _Pragma("GCC unroll 16")

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kLanes = EXPLAINFIX_LANES;
typedef float V __attribute__((vector_size(4 * EXPLAINFIX_LANES)));
typedef float UnalignedV __attribute__((vector_size(4 * EXPLAINFIX_LANES), aligned(4), may_alias));
using Mask = uint32_t;  // bit l: lane l
constexpr Mask kAllLanes = (1u << kLanes) - 1;

EXPLAINFIX_INLINE V load(const float* p) { return *reinterpret_cast<const UnalignedV*>(p); }
EXPLAINFIX_INLINE void store(float* p, V v) { *reinterpret_cast<UnalignedV*>(p) = v; }
EXPLAINFIX_INLINE V splat(float value) { return V{} + value; }

#if EXPLAINFIX_LANES == 16
EXPLAINFIX_INLINE V load(Mask m, const float* p) { return (V)_mm512_maskz_loadu_ps(m, p); }
EXPLAINFIX_INLINE void store(Mask m, float* p, V v) { _mm512_mask_storeu_ps(p, m, (__m512)v); }
EXPLAINFIX_INLINE V load(Mask m, const uint16_t* p) {  // bfloat16
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16);
}
EXPLAINFIX_INLINE void store(Mask m, uint16_t* p, V v) {  // to nearest, ties to even; NaN stays NaN
  const __m512i bits = (__m512i)v, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7fc0));
  _mm256_mask_storeu_epi16(p, m, _mm512_cvtepi32_epi16(rounded));
}
// kLanes lanes of (low, high) from lane `by` on, zero where the mask is.
template <int by>
EXPLAINFIX_INLINE V funnel(Mask m, V low, V high) {
  return (V)_mm512_maskz_alignr_epi32(m, (__m512i)high, (__m512i)low, by);
}
#elif EXPLAINFIX_LANES == 8
// All bits of a lane where the mask has its bit.
EXPLAINFIX_INLINE __m256i expand(Mask m) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(m), bits), bits);
}
EXPLAINFIX_INLINE V load(Mask m, const float* p) {
  return m == kAllLanes ? load(p) : (V)_mm256_maskload_ps(p, expand(m));
}
EXPLAINFIX_INLINE void store(Mask m, float* p, V v) { _mm256_maskstore_ps(p, expand(m), (__m256)v); }
#else
EXPLAINFIX_INLINE V load(Mask m, const float* p) {
  if (m == kAllLanes) return load(p);
  V v{};
  for (int l = 0; l < kLanes; ++l) {
    if (m >> l & 1) v[l] = p[l];
  }
  return v;
}
EXPLAINFIX_INLINE void store(Mask m, float* p, V v) {
  for (int l = 0; l < kLanes; ++l) {
    if (m >> l & 1) p[l] = v[l];
  }
}
#endif

// One element: float32, or bfloat16 as uint16.
EXPLAINFIX_INLINE float widen(float value) { return value; }
EXPLAINFIX_INLINE float widen(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
EXPLAINFIX_INLINE void narrow(float value, float* to) { *to = value; }
EXPLAINFIX_INLINE void narrow(float value, uint16_t* to) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &value, 4);
  *to = value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
