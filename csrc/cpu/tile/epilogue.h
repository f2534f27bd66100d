// The epilogue of a convolution: what is done with the outputs of a task while they are in the cache.
#pragma once

#include "cpu/tile/elements.h"
#include "cpu/tile/staging.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Finishes `count` outputs of a channel that follow each other in memory; `place` counts from y's first element.
EXPLAINFIX_INLINE void finish(const Epilogue& e, int64_t channel, int64_t place, int count, float* data) {
  const float factor = e.factor ? e.factor[channel] : 1.0f, shift = e.factor ? e.shift[channel] : 0.0f;
  float* y = data + place;
  with_act(e.act, [&](auto act) __attribute__((always_inline)) {
    if (e.added) {
      const float* added = e.added + place;
      for (int i = 0; i < count; ++i) y[i] = activate<act()>(factor * y[i] + shift + added[i], 0.0f);
    } else {
      for (int i = 0; i < count; ++i) y[i] = activate<act()>(factor * y[i] + shift, 0.0f);
    }
  });
}

// Finishes outputs [o_begin, o_end) of a group, whose first channel is channel0, at the flat pixels [begin, end).
inline void finish_tile(const TiledConv& c, int span, int channel0, int o_begin, int o_end, int64_t begin,
                        int64_t end) {
  const int64_t first = span * int64_t(c.span_images) * c.y.n;
  for (int64_t channel = channel0 + o_begin; channel < channel0 + o_end; ++channel) {
    for_each_output_run(c, begin, end, [&](int64_t, int64_t place, int count) {
      finish(c.epilogue, channel, first + channel * c.y.c + place, count, static_cast<float*>(c.y.data));
    });
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
