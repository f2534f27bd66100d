// The transform of 3x3 DCT filters with stride 1, all in registers: for 16 lanes only, where a lane shift over two
// registers is one instruction. Used by transform_block.h.
#pragma once

#include "cpu/tile/transform.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

#if EXPLAINFIX_LANES == 16

// The DCT's factors. Those of row 0 are all equal, d: they are taken out of the row filters and folded into the column
// filters.
struct Table3 {
  V column[3][2], row1, row2[2];
  explicit EXPLAINFIX_INLINE Table3(const TiledConv& c) {
    const float* d = c.table;
    for (int u = 0; u < 3; ++u) {
      for (int k = 0; k < 2; ++k) column[u][k] = splat(c.scale * d[0] * d[u * 3 + k]);
    }
    row1 = splat(d[3] / d[0]);
    row2[0] = splat(d[6] / d[0]);
    row2[1] = splat(d[7] / d[0]);
  }
};

// Column filter u at vector k.
template <int u, bool full>
EXPLAINFIX_INLINE V column3(const TiledConv& c, const Source& s, const Table3& t, const float* x, int k) {
  const float* p = x + k * kLanes;
  const V above = full ? load(p - c.grid_w) : load(Mask(s.rows[kMaxShift - 1][k]), p - c.grid_w);
  const V below = full ? load(p + c.grid_w) : load(Mask(s.rows[kMaxShift + 1][k]), p + c.grid_w);
  if (u == 1) return t.column[1][0] * (above - below);
  const V here = full ? load(p) : load(Mask(s.rows[kMaxShift][k]), p);
  if (u == 0) return t.column[0][0] * (above + below + here);
  return t.column[2][1] * here + t.column[2][0] * (above + below);
}

// The row filters `columns` (bit v) at vector k, from the column-filtered vectors around it, to rows of z.
template <int columns, int sub>
EXPLAINFIX_INLINE void rows3(const Source& s, const Table3& t, int k, V before, V here, V after, float* to) {
  const V left = funnel<15>(s.cols[kMaxShift - 1][k], before, here);
  const V right = funnel<1>(s.cols[kMaxShift + 1][k], here, after);
  const V sum = left + right;
  if (columns & 1) {
    store(to, sum + here);
    to += sub * kLanes;
  }
  if (columns & 2) {
    store(to, t.row1 * (left - right));
    to += sub * kLanes;
  }
  if (columns & 4) store(to, t.row2[1] * here + t.row2[0] * sum);
}

// A segment of ops with column filter u and row filters `columns`.
template <int u, int columns, int sub, bool full>
void transform3(const TiledConv& c, const Source& s, const Segment& segment, const TransformOp* op, float* z,
                int subs) {
  const Table3 t(c);
  for (int i = segment.begin; i < segment.end; ++i) {
    prefetch_channel(c, s, op[i], subs * sub);
    const float* x = s.x + op[i].channel * s.channel;
    float* to = z + int64_t(op[i].row) * sub * kLanes;
    V before = column3<u, full>(c, s, t, x, -1), here = column3<u, full>(c, s, t, x, 0);
    for (int b = 0, k = 0; b < subs; ++b, to += c.z_sub) {
      EXPLAINFIX_UNROLL for (int q = 0; q < sub; ++q, ++k) {
        const V after = column3<u, full>(c, s, t, x, k + 1);
        rows3<columns, sub>(s, t, k, before, here, after, to + q * kLanes);
        before = here;
        here = after;
      }
    }
  }
}

// A segment of ops that want the square of the lowest `low` functions: x is read once for their column filters.
template <int low, int sub, bool full>
void transform3_square(const TiledConv& c, const Source& s, const Segment& segment, const TransformOp* op, float* z,
                       int subs) {
  const Table3 t(c);
  for (int i = segment.begin; i < segment.end; ++i) {
    prefetch_channel(c, s, op[i], subs * sub);
    const float* x = s.x + op[i].channel * s.channel;
    float* to = z + int64_t(op[i].row) * sub * kLanes;
    V before[low], here[low], after[low];
    const auto columns = [&](int k, V* v) __attribute__((always_inline)) {
      v[0] = column3<0, full>(c, s, t, x, k);
      v[1] = column3<1, full>(c, s, t, x, k);
      if constexpr (low == 3) v[2] = column3<2, full>(c, s, t, x, k);
    };
    columns(-1, before);
    columns(0, here);
    for (int b = 0, k = 0; b < subs; ++b, to += c.z_sub) {
      EXPLAINFIX_UNROLL for (int q = 0; q < sub; ++q, ++k) {
        columns(k + 1, after);
        EXPLAINFIX_UNROLL for (int u = 0; u < low; ++u) {
          rows3<(1 << low) - 1, sub>(s, t, k, before[u], here[u], after[u], to + (u * low * sub + q) * kLanes);
          before[u] = here[u];
          here[u] = after[u];
        }
      }
    }
  }
}

// transform3 with the segment's columns as a constant.
template <int u, int sub, bool full>
void transform3_columns(const TiledConv& c, const Source& s, const Segment& segment, const TransformOp* op, float* z,
                        int subs) {
  switch (segment.columns) {
#define EXPLAINFIX_COLUMNS(n) \
  case n:                     \
    return transform3<u, n, sub, full>(c, s, segment, op, z, subs);
    EXPLAINFIX_COLUMNS(1)
    EXPLAINFIX_COLUMNS(2)
    EXPLAINFIX_COLUMNS(3)
    EXPLAINFIX_COLUMNS(4)
    EXPLAINFIX_COLUMNS(5)
    EXPLAINFIX_COLUMNS(6)
    EXPLAINFIX_COLUMNS(7)
#undef EXPLAINFIX_COLUMNS
  }
}

#endif

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
