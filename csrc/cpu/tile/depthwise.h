// The depthwise family, for an index bank with one input channel a group: each output is one separable function, or its
// negative, of one input, computed from x to y plane by plane, without z. Called through TileKernels.
#pragma once

#include "cpu/tile/tile.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kAhead = 32;  // vectors that are prefetched

// The row filter v on a line of column-filtered pixels, to y. `next`: what the next tile will read of x.
template <int K, int stride, int... t>
EXPLAINFIX_INLINE void respond_row(const TiledConv& c, const Source& s, const float* line, int v, float sign,
                                   float bias, int vectors, int64_t pixels, float* to, const float* next,
                                   std::integer_sequence<int, t...>) {
  V row[K / 2 + 1];
  load_row<K>(c.table + v * K, sign, row);
  for (int k = 0; k < vectors; ++k) {
    const V r[K] = {neighbour<quotient<stride>(t - K / 2)>(s.cols[kMaxShift + quotient<stride>(t - K / 2)][k],
                                                           line + rest<stride>(t - K / 2) * c.line_size, k)...};
    const Fold<K> fold(r);
    // These halve the time of planes that come from memory: two sweeps a tile keep the hardware from prefetching
    // itself.
    __builtin_prefetch(next + (k + kAhead) * kLanes, 0, 3);
    __builtin_prefetch(to + (k + kAhead) * kLanes, 1, 3);
    const V out = (v % 2 ? fold.respond(true, row) : fold.respond(false, row)) + bias;
    store_some(int(pixels - k * kLanes < kLanes ? pixels - k * kLanes : kLanes), to + k * kLanes, out);
  }
}

// One tile of one plane. `output` is counted over all groups.
template <int K, int stride>
void depthwise_tile(const TiledConv& c, const Task& t, int output, float* scratch) {
  float *line = scratch, *y = line + stride * c.line_size, *planes = y + c.y_size;
  const int64_t pixel = int64_t(t.vector) * kLanes, left = c.span_pixels - pixel;
  const int64_t pixels = left < t.vectors * kLanes ? left : t.vectors * kLanes;
  float* to = c.direct_store ? static_cast<float*>(c.y.data) + t.span * c.y.n + output * c.y.c + pixel : y;
  const float bias = c.bias ? c.bias[output] : 0.0f;
  const bool negative = c.names[output] < 0;
  const int name = negative ? ~c.names[output] : c.names[output];
  if (name == kNoFunction) {
    for (int i = 0; i < pixels; ++i) to[i] = bias;
  } else {
    Source s = source_of(c, t, t.vectors);
    const Block one{0, 1, 0, 0, nullptr, nullptr, nullptr};
    open_source(c, t, one, t.vectors, planes, s);
    if (s.full) {
      filter_columns<K, stride, true, 0>(c, s, s.x, name / K, t.vectors, line);
    } else {
      filter_columns<K, stride, false, 0>(c, s, s.x, name / K, t.vectors, line);
    }
    respond_row<K, stride>(c, s, line, name % K, negative ? -1.0f : 1.0f, bias, t.vectors, pixels, to,
                           s.x + K / 2 * c.grid_w, std::make_integer_sequence<int, K>());
  }
  if (c.direct_store) return;
  const auto unstage_to = c.y.bf16 ? unstage<uint16_t> : unstage<float>;
  unstage_to(c, t.span, output, 0, 1, pixel, pixel + pixels, y, 0);
}

// Task: a plane of the output.
inline void depthwise_plane(const TiledConv& c, int64_t number, float* scratch) {
  const int outputs = c.groups * c.out_channels, output = int(number % outputs);
  for (int tile = 0; tile < c.tiles; ++tile) {
    Task t{};
    t.group = output / c.out_channels;
    t.span = int(number / outputs);
    t.vector = tile * c.tile_vectors;
    t.vectors = c.vectors - t.vector < c.tile_vectors ? c.vectors - t.vector : c.tile_vectors;
    with_geometry(c, [&](auto K, auto stride) { depthwise_tile<K(), stride()>(c, t, output, scratch); });
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
