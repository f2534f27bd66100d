// Elements of a tensor of any floating dtype, read as float (or double) and written back. Used by the passes.
#pragma once

#include "cpu/tile/simd.h"
// Included after simd.h, which defines EXPLAINFIX_INLINE.
#include "shared/activations.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

EXPLAINFIX_INLINE float read(float value) { return value; }
EXPLAINFIX_INLINE double read(double value) { return value; }
EXPLAINFIX_INLINE float read(BFloat16 value) { return from_bits(uint32_t(value.bits) << 16); }
EXPLAINFIX_INLINE float read(Half value) {
  // A multiplication corrects the exponent's bias, for subnormal halves too.
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13, sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;  // infinity and NaN
  return from_bits(to_bits(from_bits(magnitude) * 0x1p112f) | special | sign);
}

EXPLAINFIX_INLINE void write(float value, float* to) { *to = value; }
EXPLAINFIX_INLINE void write(double value, double* to) { *to = value; }
EXPLAINFIX_INLINE void write(float value, BFloat16* to) { narrow(value, &to->bits); }
EXPLAINFIX_INLINE void write(float value, Half* to) {  // to nearest, ties to even
  const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude >= 0x47800000) {
    half = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;  // NaN; infinity, which 65520 and more become too
  } else if (magnitude < 0x38800000) {
    half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000;  // subnormal: the addition rounds
  } else {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  to->bits = uint16_t(half | (bits >> 16 & 0x8000));
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
