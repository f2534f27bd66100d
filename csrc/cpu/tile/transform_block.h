// All transforms of a block of channels, from x to z: picks for each segment of ops the one for the kernel size, the
// stride and the basis. Called by run_tile of tile.h.
#pragma once

#include "cpu/tile/transform_3x3.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// One segment, with kernel size, stride and whether masks are needed known to the compiler.
template <int K, int stride, int sub, bool full>
void transform_segment(const TiledConv& c, const Source& s, const Segment& segment, const TransformOp* op, float* z,
                       int subs, float* line) {
  if (!c.separable) return transform_taps<K, stride, sub>(c, s, segment, op, z, subs);
  const bool square = segment.u == kIndexSquare, four = square && segment.columns == 3;
#if EXPLAINFIX_LANES == 16
  if constexpr (K == 3 && stride == 1) {
    switch (segment.u) {
      case 0:
        return transform3_columns<0, sub, full>(c, s, segment, op, z, subs);
      case 1:
        return transform3_columns<1, sub, full>(c, s, segment, op, z, subs);
      case 2:
        return transform3_columns<2, sub, full>(c, s, segment, op, z, subs);
      default:
        return four ? transform3_square<2, sub, full>(c, s, segment, op, z, subs)
                    : transform3_square<3, sub, full>(c, s, segment, op, z, subs);
    }
  }
#endif
  if (!square) return transform_separable<K, stride, sub, full, 0>(c, s, segment, op, z, subs, line);
  four ? transform_separable<K, stride, sub, full, 2>(c, s, segment, op, z, subs, line)
       : transform_separable<K, stride, sub, full, K>(c, s, segment, op, z, subs, line);
}

template <int sub>
void transform_block(const TiledConv& c, const Source& s, const Block& block, float* z, int subs, float* line) {
  for (int i = 0; i < block.segments; ++i) {
    const Segment& segment = block.segment[i];
    with_geometry(c, [&](auto K, auto stride) {
      s.full ? transform_segment<K(), stride(), sub, true>(c, s, segment, block.op, z, subs, line)
             : transform_segment<K(), stride(), sub, false>(c, s, segment, block.op, z, subs, line);
    });
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
