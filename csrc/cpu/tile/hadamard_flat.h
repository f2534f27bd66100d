// Flat tiles: stride 1, and rows of x, y and z equally long. A shift along a row is one in memory then, all rows of a
// tile are one long row, and masks take away what a shift brings across an edge. Planes of floats are read and written
// in place.
#pragma once

#include "cpu/tile/hadamard_tile.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kSegmentPixels = 64;  // of outputs that are computed before they are copied to y
constexpr int kSegmentPitch = kSegmentPixels + kLanes;
static_assert(kSegmentPitch <= kSegmentFloats && kLanes <= kJoinedChannels, "what the driver reserves");

struct FlatTiles {
  // Returns where up to kLanes neighbouring channels of x are as floats, [channel][row][column] from the tile's x_row
  // on, `step` from one channel to the next: in place, or in `lines`. Rows outside of x are not read.
  template <class T>
  static const float* bring(const HadamardConv& c, const HadamardTile& t, int channel, int channels, float* lines,
                            int64_t& step) {
    if (sizeof(T) == 4 && c.x.w == 1 && c.x.h == c.width) return pixel_of<float>(c.x, t, channel, t.x_row, 0);
    const int begin = at_least(0, -t.x_row), end = at_most(t.x_rows, c.height - t.x_row);
    const bool joined = c.x.h == c.width * c.x.w;
    const int runs = joined ? 1 : end - begin, length = joined ? (end - begin) * c.width : c.width;
    step = int64_t(t.x_rows) * c.width;
    for (int r = 0; r < runs; ++r) {
      const T* x = pixel_of<const T>(c.x, t, channel, t.x_row + begin + r, 0);
      float* to = lines + int64_t(begin + r) * c.width;
      if (c.x.c == 1) {
        copy_channels_last(x, c.x.w, channels, length, to, step);
      } else {
        for (int i = 0; i < length; ++i) to[i] = widen(x[i * c.x.w]);
      }
    }
    return lines;
  }

  // Filters a channel along the first axis, to a row of z. Forward, pixels of z outside of x are left as they are.
  static void filter_first(const HadamardConv& c, const HadamardTile& t, const HadamardRead& read, const float* plane,
                           float* z) {
    Sources sources;
    if (!c.transposed) {
      const int begin = at_least(0, -t.x_row), end = at_most(t.x_rows, c.height - t.x_row);
      for (int k = 0; k < c.horizontal.kernel; ++k) {
        sources.add(plane + begin * c.width + k - c.horizontal.padding, read.taps[k], c.inside[k]);
      }
      return combine<true>(sources, (end - begin) * c.width, 0, read.adds, z + begin * c.width);
    }
    const HadamardAxis& v = c.vertical;
    for (int r = 0, run; r < t.rows; r += run) {
      sources.taps = 0;
      const int first = t.row + r + v.padding;
      for (int k = 0; k < v.kernel; ++k) {
        if (first - k < 0 || first - k >= c.height) continue;
        sources.add(plane + int64_t(first - k - t.x_row) * c.width, read.taps[k]);
      }
      run = sources.taps == v.kernel ? at_most(t.rows - r, c.height - first) : 1;  // rows that have all taps, too
      combine<false>(sources, run * c.width, 0, read.adds, z + int64_t(r) * c.width);
    }
  }

  // Sums rows of z, filtered along the second axis, for `count` pixels of the tile from `first` on.
  static void filter_second(const HadamardConv& c, const HadamardTile& t, const float* z, int write, int first,
                            int count, float* to) {
    for (int i = 0; i < c.terms; ++i) {
      const HadamardTerm& term = c.term[int64_t(write) * c.terms + i];
      const float *row = z + term.row * c.row_floats + first, start = i || !c.bias ? 0 : c.bias[c.writes[write]];
      Sources sources;
      if (!c.transposed) {
        for (int k = 0; k < c.vertical.kernel; ++k) sources.add(row + int64_t(k) * c.width, term.taps[k]);
        combine<false>(sources, count, start, i > 0, to);
      } else {
        for (int k = 0; k < c.horizontal.kernel; ++k) {
          sources.add(row + c.horizontal.padding - k, term.taps[k], c.inside[k] + first / kLanes);
        }
        combine<true>(sources, count, start, i > 0, to);
      }
    }
  }

  // Writes up to kLanes channels of y that are neighbours in memory, from `write` on.
  template <class T>
  static void write(const HadamardConv& c, const HadamardTile& t, const float* z, int write, int channels, bool last,
                    float* out) {
    const bool joined = c.y.h == c.out_width * c.y.w, direct = sizeof(T) == 4 && c.y.w == 1 && joined;
    const int length = joined ? t.rows * t.columns : t.columns, segment = direct ? length : kSegmentPixels;
    for (int r = 0; r < (joined ? 1 : t.rows); ++r) {
      for (int first = 0; first < length; first += segment) {
        const int count = at_most(segment, length - first);
        T* y = pixel_of<T>(c.y, t, c.writes[write], t.row + r, first);
        for (int l = 0; l < channels; ++l) {
          float* to = direct ? reinterpret_cast<float*>(y) : out + l * kSegmentPitch;
          filter_second(c, t, z, write + l, r * t.columns + first, count, to);
        }
        if (!direct) put_lines(out, kSegmentPitch, channels, count, last, y, c.y.w);
      }
    }
  }
};

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
