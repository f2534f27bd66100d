// A learned 1x1 convolution with what follows it. A task copies its tile of x into a panel, channel after channel
// without gaps, which then stays in the second-level cache; four outputs at a time are summed in registers over all
// channels, and finished on their way to y. Called through TileKernels.
//
// The bound is the multiply-adds: each brings nothing but a share of a load (1/4 of a row, 1/P of a weight). The copy is
// one of 4 x (outputs of the part / 4) sweeps over the panel.
#pragma once

#include "cpu/tile/finish.h"
#include "cpu/tile/pointwise_conv.h"
#include "cpu/tile/tile.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kPointwiseVectors = kLanes == 16 ? 6 : 3;  // 24 sums of 32 registers, or 12 of 16

// Calls f(number in the tile, image, pixel of the plane, count) for runs of the tile's pixels [begin, end) that are
// neighbours in y, and in x, too, if `rows`: then a run ends with its row.
template <class F>
EXPLAINFIX_INLINE void for_each_run(const PointwiseConv& c, int64_t begin, int64_t end, bool rows, F&& f) {
  const int64_t length = rows ? c.out_width : c.out_plane;
  for (int64_t p = begin, next; p < end; p = next) {
    next = (p / length + 1) * length;
    if (next > end) next = end;
    f(p - begin, p / c.out_plane, p % c.out_plane, next - p);
  }
}

// Copies a sub-tile's pixels of all channels to its panel; lanes beyond the last pixel are zero.
inline void fill_panel(const PointwiseConv& c, int64_t begin, int64_t end, int vectors, float* panel) {
  const int pitch = vectors * kLanes, used = int(end - begin), s = c.stride;
  for_each_run(c, begin, end, s > 1, [&](int64_t at, int64_t image, int64_t pixel, int64_t count) {
    const int64_t from = s == 1 ? pixel : pixel / c.out_width * s * c.width + pixel % c.out_width * s;
    const float* x = c.x + image * c.in_channels * c.in_plane + from;
    float* to = panel + at;
    for (int i = 0; i < c.in_channels; ++i, x += c.in_plane, to += pitch) {
      if (s == 1) {
        memcpy(to, x, count * sizeof(float));
      } else {
        for (int64_t k = 0; k < count; ++k) to[k] = x[k * s];
      }
    }
  });
  for (int i = 0; used < pitch && i < c.in_channels; ++i) memset(panel + i * pitch + used, 0, (pitch - used) * 4);
}

// Sums of four outputs at a panel's P vectors, to `sums` [4][P * kLanes]; weight: their rows.
template <int P>
EXPLAINFIX_INLINE void multiply_panel(const float* panel, const float* const weight[4], int channels, float* sums) {
  V acc[4][P] = {};
  for (int i = 0; i < channels; ++i, panel += P * kLanes) {
    V row[P];
    EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) row[p] = load(panel + p * kLanes);
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
      const float factor = weight[o][i];
      EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) acc[o][p] += factor * row[p];
    }
  }
  EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
    EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) store(sums + (o * P + p) * kLanes, acc[o][p]);
  }
}

// Task: a tile of the pixels, and a part of the outputs. Scratch: a panel for each sub-tile, then four rows of sums.
inline void pointwise_tile(const PointwiseConv& c, int64_t number, float* scratch) {
  constexpr int sub = kPointwiseVectors;
  const int64_t first = number % c.tiles * c.tile_vectors * kLanes, panel_size = int64_t(c.in_channels) * sub * kLanes;
  const int64_t left = c.pixels - first, pixels = left < c.tile_vectors * kLanes ? left : c.tile_vectors * kLanes;
  const int part = int(number / c.tiles), quads = (c.out_channels + 3) / 4;
  Task t{};
  t.vectors = int((pixels + kLanes - 1) / kLanes);
  t.subs = (t.vectors + sub - 1) / sub;
  float* sums = scratch + t.subs * panel_size;
  const auto begin_of = [&](int b) { return first + (pixels < b * sub * kLanes ? pixels : b * sub * kLanes); };
  for (int b = 0; b < t.subs; ++b) {
    fill_panel(c, begin_of(b), begin_of(b + 1), t.vectors - b * sub < sub ? t.vectors - b * sub : sub,
               scratch + b * panel_size);
  }
  for (int q = part_begin(quads, part, c.parts); q < part_begin(quads, part + 1, c.parts); ++q) {
    const float* weight[4];
    for (int o = 0; o < 4; ++o) {
      const int real = 4 * q + o < c.out_channels ? 4 * q + o : c.out_channels - 1;
      weight[o] = c.weight + int64_t(real) * c.in_channels;
    }
    for (int b = 0; b < t.subs; ++b) {
      with_vectors<sub>(t, b, [&](auto vectors) {
        multiply_panel<vectors()>(scratch + b * panel_size, weight, c.in_channels, sums);
        for_each_run(c, begin_of(b), begin_of(b + 1), false, [&](int64_t at, int64_t image, int64_t pixel, int64_t count) {
          for (int o = 4 * q; o < 4 * q + 4 && o < c.out_channels; ++o) {
            const float* from = sums + (o - 4 * q) * vectors() * kLanes + at;
            finish_pixels(c.finish, o, (image * c.out_channels + o) * c.out_plane + pixel, from, c.y, count);
          }
        });
      });
    }
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
