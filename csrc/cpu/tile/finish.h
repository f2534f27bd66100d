// What follows a convolution in a network that only infers: a BatchNorm's scale and bias, an addition, an activation.
// Called through TileKernels, and by the kernels that finish a tile while the cache still has it.
#pragma once

#include "cpu/tile/elements.h"
#include "cpu/tile/inference.h"
#include "cpu/tile/staging.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

#if EXPLAINFIX_LANES == 16
// 1 / (1 + e^-z), off by 2 units in the last place at most: a polynomial for e^r, and a Newton step instead of a
// division, which takes as long as all the rest.
EXPLAINFIX_INLINE V sigmoid(V z) {
  const __m512 x = _mm512_min_ps(_mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), (__m512)z), _mm512_set1_ps(-87)),
                                 _mm512_set1_ps(87));
  const V n = (V)_mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  const V r = ((V)x - n * 0.693359375f) + n * 2.12194440e-4f;
  V series = r * (1.0f / 5040) + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const V sum = (V)_mm512_scalef_ps((__m512)series, (__m512)n) + 1.0f, guess = (V)_mm512_rcp14_ps((__m512)sum);
  return guess * (2.0f - sum * guess);
}

// Below -87, where the sigmoid is no normal number, z * 0: of minus infinity that is NaN, as in torch.
EXPLAINFIX_INLINE V silu(V z) {
  const __mmask16 inside = _mm512_cmp_ps_mask((__m512)z, _mm512_set1_ps(-87), _CMP_NLT_UQ);
  return z * (V)_mm512_maskz_mov_ps(inside, (__m512)sigmoid(z));
}
#endif

// to[i] = act(scale * from[i] + bias + add[i]) for i < count. `to` may be `from` or `add`. A loop for the compiler to
// vectorise, but for silu: a number's result then does not depend on its place in a vector, which the threads' number
// moves.
template <int act, bool adds>
EXPLAINFIX_INLINE void finish_row(const float* from, float scale, float bias, const float* add, float slope, float* to,
                                  int64_t count) {
#if EXPLAINFIX_LANES == 16
  if constexpr (act == kSilu) {
    for (int64_t i = 0; i < count; i += kLanes) {
      const Mask m = count - i < kLanes ? (1u << (count - i)) - 1 : kAllLanes;
      const V value = scale * load(m, from + i) + bias;
      store(m, to + i, silu(adds ? value + load(m, add + i) : value));
    }
    return;
  }
#endif
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float value = scale * from[i] + bias;
    to[i] = activate<act>(adds ? value + add[i] : value, slope);
  }
}

// The pixels [begin, begin + count) of a channel of y, whose first element is `offset` elements from y's first.
EXPLAINFIX_INLINE void finish_pixels(const Finish& f, int channel, int64_t offset, const float* from, float* y,
                                     int64_t count) {
  const float scale = f.scale ? f.scale[channel] : 1.0f, bias = f.bias ? f.bias[channel] : 0.0f;
  with_act(f.act, [&](auto act) __attribute__((always_inline)) {
    f.residual ? finish_row<act(), true>(from, scale, bias, f.residual + offset, f.slope, y + offset, count)
               : finish_row<act(), false>(from, scale, bias, nullptr, f.slope, y + offset, count);
  });
}

// The rows of a channel that lie in `sums` with a pitch, to y without gaps, from `offset` on. They are finished where
// they are, all at once: rows may be short.
EXPLAINFIX_INLINE void finish_rows(const Finish& f, int channel, int64_t offset, float* sums, int pitch, int rows,
                                   int width, float* y) {
  if (!f.residual) finish_pixels(f, channel, 0, sums, sums, int64_t(rows - 1) * pitch + width);
  for (int r = 0; r < rows; ++r, sums += pitch, offset += width) {
    f.residual ? finish_pixels(f, channel, offset, sums, y, width)
               : (void)memcpy(y + offset, sums, width * sizeof(float));
  }
}

// Finishes planes [begin, end) of y in place; planes are counted over all images.
inline void finish_planes(const Finish& f, int channels, int64_t pixels, float* y, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    finish_pixels(f, int(plane % channels), plane * pixels, y + plane * pixels, y, pixels);
  }
}

// Finishes outputs [o_begin, o_end) of a group, whose first channel is channel0, at the flat pixels [begin, end).
inline void finish_tile(const TiledConv& c, int span, int channel0, int o_begin, int o_end, int64_t begin,
                        int64_t end) {
  float* y = static_cast<float*>(c.y.data);
  const int64_t first = span * int64_t(c.span_images) * c.y.n;
  for (int channel = channel0 + o_begin; channel < channel0 + o_end; ++channel) {
    for_each_output_run(c, begin, end, [&](int64_t, int64_t place, int count) {
      const int64_t offset = first + channel * c.y.c + place;
      finish_pixels(c.finish, channel, offset, y + offset, y, count);
    });
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
