// A learned 1x1 convolution with what follows it. A task copies its tile of x into a panel, channel after channel
// without gaps, which then stays in the second-level cache; four outputs at a time are summed in registers over all
// channels, and finished on their way to y. Called through TileKernels.
//
// The bound is the multiply-adds: each brings nothing but a share of a load (1/4 of a row, 1/P of a weight). The copy
// is one of 4 x (outputs of the part / 4) sweeps over the panel.
#pragma once

#include "cpu/tile/finish.h"
#include "cpu/tile/tile.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kPointwiseVectors = kLanes == 16 ? 6 : 3;  // 24 sums of 32 registers, or 12 of 16

constexpr int kRow = kPointwiseVectors * kLanes;  // pixels of a sub-tile, at most
constexpr int kChain = 128;                       // channels of a chain of additions
constexpr int kMostDots = kLanes / 4;             // pixels left that are done one by one

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

// A sub-tile: full vectors of pixels, and the pixels that are left. Of few left ones, each is a dot product over the
// channels (1/16 of a vector's work a pixel); more are a vector with idle lanes.
struct SubTile {
  int64_t begin, end;  // pixels
  int vectors, left;
};

EXPLAINFIX_INLINE SubTile sub_tile(int64_t begin, int64_t end) {
  const int vectors = int(end - begin) / kLanes, left = int(end - begin) % kLanes;
  return left > kMostDots ? SubTile{begin, end, vectors + 1, 0} : SubTile{begin, end, vectors, left};
}

// Copies a sub-tile's pixels to its panel: [channel][vectors * kLanes], where lanes beyond the last pixel are zero, and
// then [left][channel].
inline void fill_panel(const PointwiseConv& c, const SubTile& t, float* panel) {
  const int pitch = t.vectors * kLanes;
  const int64_t whole = t.end - t.left;
  const auto copy = [&](int64_t begin, int64_t end, float* to, int64_t pixel_step, int64_t channel_step) {
    for_each_run(c, begin, end, c.stride > 1, [&](int64_t at, int64_t image, int64_t pixel, int64_t count) {
      const int64_t s = c.stride;
      const int64_t from = s == 1 ? pixel : pixel / c.out_width * s * c.width + pixel % c.out_width * s;
      const float* x = c.x + image * c.in_channels * c.in_plane + from;
      float* run = to + at * pixel_step;
      const float* gate = c.gate ? c.gate + image * c.in_channels : nullptr;
      for (int i = 0; i < c.in_channels; ++i, x += c.in_plane, run += channel_step) {
        const float factor = gate ? gate[i] : 1.0f;
        if (s == 1 && pixel_step == 1) {
          for (int64_t k = 0; k < count; ++k) run[k] = factor * x[k];
        } else {
          for (int64_t k = 0; k < count; ++k) run[k * pixel_step] = factor * x[k * s];
        }
      }
    });
  };
  copy(t.begin, whole, panel, 1, pitch);
  copy(whole, t.end, panel + c.in_channels * pitch, c.in_channels, 1);
  const int used = int(whole - t.begin);
  for (int i = 0; used < pitch && i < c.in_channels; ++i) memset(panel + i * pitch + used, 0, (pitch - used) * 4);
}

// Sums of four outputs at a panel's P vectors, to sums[output * kRow]; weight: their rows. Chains of additions end
// after kChain channels and are added up: one long chain would round as much more as it is longer.
template <int P>
EXPLAINFIX_INLINE void multiply_panel(const float* panel, const float* const weight[4], int channels, float* sums) {
  for (int first = 0; first < channels; first += kChain) {
    const int last = first + kChain < channels ? first + kChain : channels;
    V acc[4][P] = {};
    for (int i = first; i < last; ++i, panel += P * kLanes) {
      V row[P];
      EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) row[p] = load(panel + p * kLanes);
      EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
        const float factor = weight[o][i];
        EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) acc[o][p] += factor * row[p];
      }
    }
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
      EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) {
        float* sum = sums + o * kRow + p * kLanes;
        store(sum, first ? load(sum) + acc[o][p] : acc[o][p]);
      }
    }
  }
}

// The same at one pixel, whose channels lie together.
EXPLAINFIX_INLINE void multiply_pixel(const float* pixel, const float* const weight[4], int channels, float* sums) {
  V acc[4] = {};
  for (int i = 0; i < channels; i += kLanes) {
    const Mask m = channels - i < kLanes ? (1u << (channels - i)) - 1 : kAllLanes;
    const V x = load(m, pixel + i);
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) acc[o] += load(m, weight[o] + i) * x;
  }
  EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
    float sum = 0;
    EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) sum += acc[o][l];
    sums[o * kRow] = sum;
  }
}

// Four outputs, from 4 * quad on, at a sub-tile.
EXPLAINFIX_INLINE void pointwise_quad(const PointwiseConv& c, const SubTile& t, int quad, const float* panel) {
  alignas(64) float sums[4 * kRow];
  const float* weight[4];
  for (int o = 0; o < 4; ++o) {
    const int real = 4 * quad + o < c.out_channels ? 4 * quad + o : c.out_channels - 1;
    weight[o] = c.weight + int64_t(real) * c.in_channels;
  }
  with_count<kPointwiseVectors>(t.vectors,
                                [&](auto vectors) { multiply_panel<vectors()>(panel, weight, c.in_channels, sums); });
  for (int k = 0; k < t.left; ++k) {
    const float* pixel = panel + int64_t(t.vectors * kLanes + k) * c.in_channels;
    multiply_pixel(pixel, weight, c.in_channels, sums + t.vectors * kLanes + k);
  }
  for_each_run(c, t.begin, t.end, false, [&](int64_t at, int64_t image, int64_t pixel, int64_t count) {
    for (int o = 4 * quad; o < 4 * quad + 4 && o < c.out_channels; ++o) {
      const int64_t offset = (image * c.out_channels + o) * c.out_plane + pixel;
      finish_pixels(c.finish, o, offset, sums + (o - 4 * quad) * kRow + at, c.y, count);
    }
  });
}

// Task: a tile of the pixels, and a part of the outputs. Scratch: a panel for each sub-tile.
inline void pointwise_tile(const PointwiseConv& c, int64_t number, float* scratch) {
  const int64_t length = int64_t(c.tile_vectors) * kLanes, begin = number % c.tiles * length;
  const int64_t end = begin + length < c.pixels ? begin + length : c.pixels;
  const int part = int(number / c.tiles), quads = (c.out_channels + 3) / 4;
  const int64_t panel_size = int64_t(c.in_channels) * kRow;
  const auto sub_of = [&](int64_t first) { return sub_tile(first, first + kRow < end ? first + kRow : end); };
  for (int64_t first = begin; first < end; first += kRow) {
    fill_panel(c, sub_of(first), scratch + (first - begin) / kRow * panel_size);
  }
  for (int q = part_begin(quads, part, c.parts); q < part_begin(quads, part + 1, c.parts); ++q) {
    for (int64_t first = begin; first < end; first += kRow) {
      pointwise_quad(c, sub_of(first), q, scratch + (first - begin) / kRow * panel_size);
    }
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
