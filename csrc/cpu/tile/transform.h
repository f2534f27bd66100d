// From x to z: the responses of a tile's pixels to basis functions, z[sub-tile][row][vector]. transform_block.h picks
// the transform of a segment of ops; that of 3x3 filters in registers is transform_3x3.h.
#pragma once

#include <utility>

#include "cpu/tile/simd.h"
#include "cpu/tile/tiled_conv.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Where a tile's input lies: vector 0 of channel 0, the distance to the next channel and to the next phase of a stride,
// and the masks of vector 0 (TiledConv::rows_in, cols_in). full: all rows of all taps are in the plane, and no row mask
// is needed. prefetch: x is read in place, and the next channels should be asked for.
struct Source {
  const float* x;
  int64_t channel, phase;
  const uint16_t *rows[2 * kMaxShift + 1], *cols[2 * kMaxShift + 1];
  bool full, prefetch;
};

// Calls f with the kernel size as a constant.
template <class F>
EXPLAINFIX_INLINE void with_kernel(int kernel, F&& f) {
  if (kernel == 3) return f(std::integral_constant<int, 3>());
  if (kernel == 5) return f(std::integral_constant<int, 5>());
  f(std::integral_constant<int, 7>());
}

// Calls f with kernel size and stride as constants.
template <class F>
EXPLAINFIX_INLINE void with_geometry(const TiledConv& c, F&& f) {
  with_kernel(c.kernel, [&](auto K) __attribute__((always_inline)) {
    c.stride == 1 ? f(K, std::integral_constant<int, 1>()) : f(K, std::integral_constant<int, 2>());
  });
}

// floor(a / stride), and the rest. With stride 2 the even and the odd pixels of x lie in planes of their own, its
// phases: tap a = k - K/2 reads phase `rest`, shifted by the quotient.
template <int stride>
constexpr int quotient(int a) {
  return stride == 1 ? a : (a >= 0 ? a / stride : -((-a + stride - 1) / stride));
}
template <int stride>
constexpr int rest(int a) {
  return a - quotient<stride>(a) * stride;
}

// Asks for the channel that a later op reads.
EXPLAINFIX_INLINE void prefetch_channel(const TiledConv& c, const Source& s, const TransformOp& op, int vectors) {
  if (!s.prefetch || op.prefetch < 0) return;
  const int run = (vectors + 2) * kLanes;  // of each row that is asked for; of short rows all pixels lie in between
  for (int shift = -1; shift <= 1; ++shift) {
    const float* p = s.x + op.prefetch * s.channel + shift * c.grid_w - kLanes;
    const int length = shift < 1 && c.grid_w < run ? c.grid_w : run;
    for (int i = 0; i < length; i += 16) __builtin_prefetch(p + i, 0, 3);
  }
}

// The pixels `shift` lanes away from vector k, of a line of vectors that begins with vector -1.
template <int shift>
EXPLAINFIX_INLINE V neighbour(Mask mask, const float* line, int k) {
  const float* p = line + (k + 1) * kLanes;
  if constexpr (shift == 0) return load(p);
#if EXPLAINFIX_LANES == 16  // a lane shift over two registers: an unaligned load would cross a cache line
  if constexpr (shift < 0) return funnel<kLanes + shift>(mask, load(p - kLanes), load(p));
  return funnel<shift>(mask, load(p), load(p + kLanes));
#else
  return load(mask, p + shift);
#endif
}

// K neighbours along one axis, folded for the DCT. Its even functions are symmetric and its odd ones antisymmetric: K
// inputs become K / 2 sums, the middle and K / 2 differences once, and each function needs half of the multiply-adds.
template <int K>
struct Fold {
  V sum[K / 2 + 1], difference[K / 2 + 1];

  explicit EXPLAINFIX_INLINE Fold(const V* r) {
    EXPLAINFIX_UNROLL for (int k = 0; k < K / 2; ++k) {
      sum[k] = r[k] + r[K - 1 - k];
      difference[k] = r[k] - r[K - 1 - k];
    }
    sum[K / 2] = r[K / 2];
  }

  // The response to a function, of which load_row read half a row.
  EXPLAINFIX_INLINE V respond(bool odd, const V* row) const {
    V out = row[0] * (odd ? difference : sum)[0];
    EXPLAINFIX_UNROLL for (int k = 1; k < K / 2; ++k) out += row[k] * (odd ? difference : sum)[k];
    return odd ? out : out + row[K / 2] * sum[K / 2];
  }
};

// Half a row of the table, which by symmetry is enough.
template <int K>
EXPLAINFIX_INLINE void load_row(const float* table, float scale, V* row) {
  EXPLAINFIX_UNROLL for (int k = 0; k <= K / 2; ++k) row[k] = splat(scale * table[k]);
}

// Filters a channel's columns by function u, or by the lowest `low` functions if there are any (then u is 0), at
// vectors -1 to `vectors`: line[function - u][phase of the columns][1 + vector].
template <int K, int stride, bool full, int low>
void filter_columns(const TiledConv& c, const Source& s, const float* x, int u, int vectors, float* line) {
  constexpr int count = low ? low : 1;
  V row[count][K / 2 + 1];
  EXPLAINFIX_UNROLL for (int i = 0; i < count; ++i) load_row<K>(c.table + (u + i) * K, c.scale, row[i]);
  for (int phase = 0; phase < stride; ++phase) {
    for (int k = -1; k <= vectors; ++k) {
      V r[K];
      EXPLAINFIX_UNROLL for (int t = 0; t < K; ++t) {
        const int shift = quotient<stride>(t - K / 2);
        const float* p = x + (rest<stride>(t - K / 2) * stride + phase) * s.phase + shift * c.grid_w + k * kLanes;
        r[t] = full ? load(p) : load(Mask(s.rows[kMaxShift + shift][k]), p);
      }
      const Fold<K> fold(r);
      float* to = line + phase * c.line_size + (k + 1) * kLanes;
      if constexpr (low > 0) {
        EXPLAINFIX_UNROLL for (int v = 0; v < low; ++v) {
          store(to + v * stride * c.line_size, fold.respond(v % 2, row[v]));
        }
      } else {
        store(to, u % 2 ? fold.respond(true, row[0]) : fold.respond(false, row[0]));
      }
    }
  }
}

// Filters one line of filter_columns by the lowest `low` functions, or by those whose bit is set in `columns` (low =
// 0), into consecutive rows of z.
template <int K, int stride, int sub, int low, int... t>
EXPLAINFIX_INLINE void filter_rows(const TiledConv& c, const Source& s, const float* line, uint32_t columns, float* z,
                                   int subs, std::integer_sequence<int, t...>) {
  constexpr int most = low ? low : K;
  V row[most][K / 2 + 1];
  EXPLAINFIX_UNROLL for (int v = 0; v < most; ++v) load_row<K>(c.table + v * K, 1.0f, row[v]);
  for (int b = 0; b < subs; ++b) {
    for (int q = 0; q < sub; ++q) {
      const int k = b * sub + q;
      const V r[K] = {neighbour<quotient<stride>(t - K / 2)>(s.cols[kMaxShift + quotient<stride>(t - K / 2)][k],
                                                             line + rest<stride>(t - K / 2) * c.line_size, k)...};
      const Fold<K> fold(r);
      float* to = z + b * c.z_sub + q * kLanes;
      EXPLAINFIX_UNROLL for (int v = 0; v < most; ++v) {
        if (low || columns >> v & 1) {
          store(to, fold.respond(v % 2, row[v]));
          to += sub * kLanes;
        }
      }
    }
  }
}

// The ops of a segment for the DCT: a column filter, and then those row filters that share it. The column filters of a
// square of the lowest `low` functions (0: no square) share what they read of x.
template <int K, int stride, int sub, bool full, int low>
void transform_separable(const TiledConv& c, const Source& s, const Segment& segment, const TransformOp* op, float* z,
                         int subs, float* line) {
  constexpr auto taps = std::make_integer_sequence<int, K>();
  for (int i = segment.begin; i < segment.end; ++i) {
    prefetch_channel(c, s, op[i], subs * sub);
    float* to = z + int64_t(op[i].row) * sub * kLanes;
    filter_columns<K, stride, full, low>(c, s, s.x + op[i].channel * s.channel, low ? 0 : segment.u, subs * sub, line);
    for (int u = 0; u < (low ? low : 1); ++u) {
      filter_rows<K, stride, sub, low>(c, s, line + u * stride * c.line_size, op[i].columns, to, subs, taps);
      to += low * sub * kLanes;
    }
  }
}

// The ops of a segment for any other basis: K x K multiply-adds for each function, which is called u * K + v as if it
// were the DCT's. There may be more than K x K functions, and u K or more.
template <int K, int stride, int sub>
void transform_taps(const TiledConv& c, const Source& s, const Segment& segment, const TransformOp* op, float* z,
                    int subs) {
  constexpr int reach = K / 2;
  for (int i = segment.begin; i < segment.end; ++i) {
    const float* x = s.x + op[i].channel * s.channel;
    const uint32_t columns = op[i].columns;
    const bool square = segment.u == kIndexSquare;
    const int u_begin = square ? 0 : segment.u, u_end = square ? __builtin_popcount(columns) : segment.u + 1;
    for (int b = 0; b < subs; ++b) {
      for (int q = 0; q < sub; ++q) {
        const int k = b * sub + q;
        V r[K * K];
        for (int t = 0; t < K * K; ++t) {
          const int y = t / K - reach, w = t % K - reach;
          const Mask mask = s.rows[kMaxShift + quotient<stride>(y)][k] & s.cols[kMaxShift + quotient<stride>(w)][k];
          r[t] = load(mask, x + (rest<stride>(y) * stride + rest<stride>(w)) * s.phase +
                                quotient<stride>(y) * c.grid_w + quotient<stride>(w) + k * kLanes);
        }
        float* to = z + b * c.z_sub + (int64_t(op[i].row) * sub + q) * kLanes;
        for (int u = u_begin; u < u_end; ++u) {
          for (int v = 0; v < K; ++v) {
            if (!(columns >> v & 1)) continue;
            const float* tap = c.taps + (u * K + v) * K * K;
            V even{}, odd{};  // two sums: the latency of one would bound the loop
            for (int t = 0; t + 1 < K * K; t += 2) {
              even += tap[t] * r[t];
              odd += tap[t + 1] * r[t + 1];
            }
            store(to, even + tap[K * K - 1] * r[K * K - 1] + odd);
            to += sub * kLanes;
          }
        }
      }
    }
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
