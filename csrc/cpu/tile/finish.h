// What follows a convolution in a network that only infers: a BatchNorm's scale and bias, an addition, an activation.
// Called through TileKernels, and by the kernels that finish a tile while the cache still has it.
#pragma once

#include "cpu/tile/elements.h"
#include "cpu/tile/inference.h"
#include "cpu/tile/staging.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// to[i] = act(scale * from[i] + bias + add[i]) for i < count. `to` may be `from` or `add`. A loop for the compiler to
// vectorise.
template <int act, bool adds>
EXPLAINFIX_INLINE void finish_row(const float* from, float scale, float bias, const float* add, float slope, float* to,
                                  int64_t count) {
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

// The rows of a channel that lie in `sums` with a pitch, to y without gaps, from `offset` on. They are finished where they
// are, all at once: rows may be short.
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
