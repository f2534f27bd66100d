// The fast Walsh-Hadamard transform of the hadamard kernel: rows of z against each other, at all pixels of a tile.
#pragma once

#include "cpu/tile/hadamard_conv.h"
#include "cpu/tile/simd.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// A step of the transform for 16 pixels: butterflies of K bits of a row's number at once, in registers.
template <int K>
EXPLAINFIX_INLINE void butterflies(const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int order,
                                   int bits) {
  constexpr int R = 1 << K;
  int64_t offset[R];
  offset[0] = 0;
  int rest = bits;
  for (int k = 0; k < K; ++k) {
    const int bit = rest & -rest;
    rest ^= bit;
    for (int j = 0; j < 1 << k; ++j) offset[(1 << k) + j] = offset[j] + bit;
  }
  for (int base = 0; base < order; base = ((base | bits) + 1) & ~bits) {
    for (int v = 0; v < kBlockPixels; v += kLanes) {
      V a[R];
      EXPLAINFIX_UNROLL for (int j = 0; j < R; ++j) a[j] = load(from + (base + offset[j]) * from_pitch + v);
      EXPLAINFIX_UNROLL for (int h = 1; h < R; h *= 2) {
        EXPLAINFIX_UNROLL for (int j = 0; j < R; ++j) {
          if (j & h) continue;
          const V sum = a[j] + a[j + h];
          a[j + h] = a[j] - a[j + h];
          a[j] = sum;
        }
      }
      EXPLAINFIX_UNROLL for (int j = 0; j < R; ++j) store(to + (base + offset[j]) * to_pitch + v, a[j]);
    }
  }
}

inline void transform_step(const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int order, int bits) {
  switch (__builtin_popcount(bits)) {
    case 1:
      return butterflies<1>(from, from_pitch, to, to_pitch, order, bits);
    case 2:
      return butterflies<2>(from, from_pitch, to, to_pitch, order, bits);
    case 3:
      return butterflies<3>(from, from_pitch, to, to_pitch, order, bits);
    default:
      return butterflies<4>(from, from_pitch, to, to_pitch, order, bits);
  }
}

// Transforms `order` rows of z at the flat pixels [begin, end). The steps between the first and the last one work on a
// copy of 16 pixels, whose rows lie close together.
inline void transform(const HadamardConv& c, float* z, int begin, int end, float* block) {
  for (int p = begin / kBlockPixels * kBlockPixels; p < end; p += kBlockPixels) {
    for (int s = 0; s < c.steps; ++s) {
      const float* from = s == 0 ? z + p : block;
      float* to = s == c.steps - 1 ? z + p : block;
      transform_step(from, s == 0 ? c.row_floats : kBlockPixels, to, s == c.steps - 1 ? c.row_floats : kBlockPixels,
                     c.order, c.step[s]);
    }
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
