// Pooling of float32 planes for networks that only infer: maxima without their places, which only a gradient needs, and
// the mean of a plane. Called through TileKernels.
#pragma once

#include "cpu/tile/simd.h"
#include "shared/pooling.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

EXPLAINFIX_INLINE float larger(float best, float value) {  // NaN stays, as in torch
  return value > best || value != value ? value : best;
}

// to[i] = the larger of to[i] and from[i * stride], for i in [begin, end).
template <int stride>
EXPLAINFIX_INLINE void keep_larger(const float* from, int64_t step, int64_t begin, int64_t end, float* to) {
  for (int64_t i = begin; i < end; ++i) to[i] = larger(to[i], from[i * (stride ? stride : step)]);
}

// Planes [begin, end) of x to y: a row of outputs at a time, first down the columns, to `line` of the width of x, then
// along the row.
inline void max_pool_planes(const Pooling& p, const float* x, float* y, int64_t begin, int64_t end, float* line) {
  for (int64_t plane = begin; plane < end; ++plane) {
    for (int64_t oy = 0; oy < p.out_height; ++oy) {
      const int64_t top = oy * p.stride[0] - p.padding[0], stop = top + p.kernel[0];
      const int64_t first = top < 0 ? 0 : top, last = stop < p.height ? stop : p.height;
      const float* row = x + (plane * p.height + first) * p.width;
      memcpy(line, row, p.width * sizeof(float));
      for (int64_t r = first + 1; r < last; ++r) keep_larger<1>(row += p.width, 1, 0, p.width, line);
      float* to = y + (plane * p.out_height + oy) * p.out_width;
      for (int64_t i = 0; i < p.out_width; ++i) to[i] = -__builtin_inff();
      const int64_t s = p.stride[1];
      for (int64_t k = 0; k < p.kernel[1]; ++k) {
        const int64_t shift = k - p.padding[1];  // outputs [from, to_end) have this column inside of x
        const int64_t from = shift < 0 ? (-shift + s - 1) / s : 0;
        const int64_t fits = p.width > shift ? (p.width - 1 - shift) / s + 1 : 0;
        const int64_t to_end = fits < p.out_width ? fits : p.out_width;
        s == 1   ? keep_larger<1>(line + shift, s, from, to_end, to)
        : s == 2 ? keep_larger<2>(line + shift, s, from, to_end, to)
                 : keep_larger<0>(line + shift, s, from, to_end, to);
      }
    }
  }
}

// y[i] = the mean of plane i. Sums of 256 pixels are added in double, so that large planes lose nothing.
inline void mean_planes(const float* x, int64_t pixels, float* y, int64_t planes) {
  for (int64_t plane = 0; plane < planes; ++plane, x += pixels) {
    double total = 0;
    for (int64_t first = 0; first < pixels; first += 16 * kLanes) {
      const int64_t last = first + 16 * kLanes < pixels ? first + 16 * kLanes : pixels;
      V sums{};
      int64_t i = first;
      for (; i + kLanes <= last; i += kLanes) sums += load(x + i);
      if (i < last) sums += load((1u << (last - i)) - 1, x + i);
      float sum = 0;
      EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) sum += sums[l];
      total += sum;
    }
    y[plane] = float(total / double(pixels));
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
