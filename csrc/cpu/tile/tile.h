// What a task of any family does: for a tile of pixels and a part of the outputs, block after block of input channels,
// it filters x to z (through a copy of x where that is `staged`) and lets the family add z to y. sparse_index.h and
// low_rank.h are the families; stride2_grad.h and depthwise.h use parts of this.
#pragma once

#include "cpu/tile/accumulate.h"
#include "cpu/tile/finish.h"
#include "cpu/tile/staging.h"
#include "cpu/tile/transform_block.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

struct Task {
  int group, span, part, vector;  // vector: the tile's first one
  int subs, vectors;              // sub-tiles and vectors of the tile; the last sub-tile may have fewer vectors
};

// The task of this number. sub: vectors of a sub-tile.
EXPLAINFIX_INLINE Task task_of(const TiledConv& c, int64_t number, int sub) {
  Task t;
  t.vector = int(number % c.tiles) * c.tile_vectors;
  number /= c.tiles;
  const int spans = c.images / c.span_images;
  t.span = number % spans;
  number /= spans;
  t.group = int(number % c.groups);
  t.part = int(number / c.groups);  // slowest: threads get equal shares of tiles that are not equal
  t.vectors = c.vectors - t.vector < c.tile_vectors ? c.vectors - t.vector : c.tile_vectors;
  t.subs = (t.vectors + sub - 1) / sub;
  return t;
}

// The tile's masks; open_source adds where x is.
EXPLAINFIX_INLINE Source source_of(const TiledConv& c, const Task& t, int vectors) {
  Source s{};
  const int reach = c.kernel / 2;
  for (int i = kMaxShift - reach; i <= kMaxShift + reach; ++i) {
    s.rows[i] = c.rows_in[i] + 1 + t.vector;
    s.cols[i] = c.cols_in[i] + 1 + t.vector;
  }
  const int64_t halo = kLanes + int64_t(reach) * c.grid_w, begin = int64_t(t.vector) * kLanes;
  s.full = c.span_images == 1 && begin >= halo && begin + int64_t(vectors) * kLanes + halo <= c.span_pixels;
  return s;
}

// Points `s` at the input channels of a block: in x itself, or copied to `planes`, which begin a vector and K / 2 rows
// before the tile.
EXPLAINFIX_INLINE void open_source(const TiledConv& c, const Task& t, const Block& block, int vectors, float* planes,
                                   Source& s) {
  const int channel0 = t.group * c.in_channels;
  const int64_t pixel = int64_t(t.vector) * kLanes;
  if (!c.staged) {
    s.x = static_cast<const float*>(c.x.data) + t.span * c.x.n + channel0 * c.x.c + pixel;
    s.channel = c.x.c;
    s.prefetch = true;
    return;
  }
  const int64_t margin = kLanes + int64_t(c.kernel / 2) * c.grid_w;
  const int64_t begin = pixel - margin, end = pixel + int64_t(vectors) * kLanes + margin;
  const int first = channel0 + block.channel_begin, count = block.channel_end - block.channel_begin;
  c.x.bf16 ? stage<uint16_t>(c, t.span, first, count, begin, end, planes)
           : stage<float>(c, t.span, first, count, begin, end, planes);
  s.x = planes + margin - block.channel_begin * c.stage_channel;
  s.channel = c.stage_channel;
  s.phase = c.stage_phase;
}

// The accumulators of four outputs at sub-tile b. first, last: whether the block is the first one, the last one.
EXPLAINFIX_INLINE Accumulators open_outputs(const TiledConv& c, const Task& t, int b, int sub, const int32_t* output,
                                            float* y, bool first, bool last) {
  const int vectors = t.vectors - b * sub < sub ? t.vectors - b * sub : sub;
  const int64_t pixel = int64_t(t.vector + b * sub) * kLanes, left = c.span_pixels - pixel;
  float* direct = static_cast<float*>(c.y.data) + t.span * c.y.n + pixel;
  Accumulators a;
  a.first = first;
  a.tail = left < vectors * kLanes ? int(left - (vectors - 1) * kLanes) : kLanes;
  for (int o = 0; o < 4; ++o) {
    const bool real = output[o] < c.out_channels;
    const int64_t channel = t.group * c.out_channels + output[o];
    a.y[o] = y + b * c.y_sub + int64_t(output[o]) * sub * kLanes;
    a.final[o] = !last || !c.direct_store ? nullptr : real ? direct + channel * c.y.c : a.y[o];
    a.bias[o] = first && c.bias && real ? c.bias[channel] : 0.0f;
  }
  return a;
}

// Calls f with `count`, of 1 to `most`, as a constant.
template <int most, class F>
EXPLAINFIX_INLINE void with_count(int count, F&& f) {
  switch (count) {
#define EXPLAINFIX_COUNT(n)                                       \
  case n:                                                         \
    if constexpr (n <= most) f(std::integral_constant<int, n>()); \
    break;
    EXPLAINFIX_COUNT(1)
    EXPLAINFIX_COUNT(2)
    EXPLAINFIX_COUNT(3)
    EXPLAINFIX_COUNT(4)
    EXPLAINFIX_COUNT(5)
    EXPLAINFIX_COUNT(6)
    EXPLAINFIX_COUNT(7)
#undef EXPLAINFIX_COUNT
  }
}

// Calls f with the number of vectors in sub-tile b as a constant.
template <int sub, class F>
EXPLAINFIX_INLINE void with_vectors(const Task& t, int b, F&& f) {
  with_count<sub>(t.vectors - b * sub < sub ? t.vectors - b * sub : sub, f);
}

// Does the task, block after block, where the family adds z to y: combine(block, z, open), and open(b, outputs) gives
// the accumulators of four outputs at sub-tile b.
template <int sub, class Combine>
EXPLAINFIX_INLINE void run_tile(const TiledConv& c, const Task& t, int o_begin, int o_end, float* scratch,
                                Combine&& combine) {
  float *z = scratch, *y = z + c.z_size, *planes = y + c.y_size, *line = planes + c.stage_size;
  Source s = source_of(c, t, t.subs * sub);
  const int32_t* blocks = c.block_begin + (c.group_blocks ? t.group : 0);
  const Block *begin = c.block + blocks[0], *end = c.block + blocks[1];
  for (int b = 0; b < t.subs; ++b) memset(z + b * c.z_sub, 0, sub * kLanes * sizeof(float));  // row 0: adds nothing
  for (const Block* block = begin; block < end; ++block) {
    open_source(c, t, *block, t.subs * sub, planes, s);
    transform_block<sub>(c, s, *block, z, t.subs, line);
    combine(*block, z, [&](int b, const int32_t* output) __attribute__((always_inline)) {
      return open_outputs(c, t, b, sub, output, y, block == begin, block + 1 == end);
    });
  }
  const int64_t first = int64_t(t.vector) * kLanes;
  for (int b = 0; b < t.subs && !c.direct_store; ++b) {
    const int64_t pixel = first + int64_t(b) * sub * kLanes;
    const auto unstage_to = c.y.bf16 ? unstage<uint16_t> : unstage<float>;
    unstage_to(c, t.span, t.group * c.out_channels, o_begin, o_end, pixel, pixel + sub * kLanes, y + b * c.y_sub,
               sub * kLanes);
  }
  if (!c.finish.any()) return;
  finish_tile(c, t.span, t.group * c.out_channels, o_begin, o_end, first, first + int64_t(t.vectors) * kLanes);
}

// Where part number `part` of `parts` of `total` items begins.
EXPLAINFIX_INLINE int part_begin(int total, int part, int parts) { return int(int64_t(total) * part / parts); }

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
