// Padded tiles: any padding, stride 1 or 2, and parts of rows. Rows of x are copied to lines with zeros where they
// reach over an edge, with stride 2 split into even and odd columns, and lines lie by the remainder of their row. So
// with all rows of a tile as one long row, too, taps are shifts; the columns between two rows' ends are computed and
// thrown away.
#pragma once

#include "cpu/tile/hadamard_tile.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

template <int... l>
EXPLAINFIX_INLINE void interleave(V even, V odd, V& low, V& high, std::integer_sequence<int, l...>) {
  low = EXPLAINFIX_SHUFFLE(even, odd, ((l & 1 ? kLanes : 0) + l / 2)...);
  high = EXPLAINFIX_SHUFFLE(even, odd, ((l & 1 ? kLanes : 0) + (l + kLanes) / 2)...);
}

struct PaddedTiles {
  // Brings up to kLanes neighbouring channels of x: lines[channel][phase][row][column], `step` from one channel to the
  // next, c.plane from one phase to the next.
  template <class T>
  static const float* bring(const HadamardConv& c, const HadamardTile& t, int channel, int channels, float* lines,
                            int64_t& step) {
    const int phases = c.transposed ? 1 : c.horizontal.stride, stride = c.transposed ? 1 : c.vertical.stride;
    step = phases * c.plane;
    float* to = lines;
    for (int e = 0; e < stride; ++e) {  // in the order of memory, since whole vectors are written
      for (int r = e; r < t.x_rows; r += stride, to += t.pitch) {
        const bool there = t.x_row + r >= 0 && t.x_row + r < c.height;
        const T* row = pixel_of<const T>(c.x, t, channel, there ? t.x_row + r : 0, 0);
        const int width = there ? c.width : 0;
        if (c.x.w == 1) {
          for (int l = 0; l < channels; ++l, row += c.x.c) {
            float* line = to + l * step;
            phases == 1 ? copy_row<1>(row, width, t.x_column, t.pitch, line, nullptr)
                        : copy_row<2>(row, width, t.x_column, t.pitch, line, line + c.plane);
          }
        } else {
          for (int p = 0; p < phases; ++p) bring_line(c, t, row, width, p, phases, channels, step, to + p * c.plane);
        }
      }
    }
    return lines;
  }

  static void filter_first(const HadamardConv& c, const HadamardTile& t, const HadamardRead& read, const float* lines,
                           float* z) {
    const HadamardAxis &v = c.vertical, &h = c.horizontal;
    Sources sources;
    if (!c.transposed) {
      for (int k = 0; k < h.kernel; ++k) sources.add(lines + k % h.stride * c.plane + k / h.stride, read.taps[k]);
      return combine<false>(sources, t.z_rows * t.pitch, 0, read.adds, z);
    }
    for (int e = 0; e < v.stride && e < t.rows; ++e) {
      sources.taps = 0;
      for (int k = 0; k < v.kernel; ++k) {
        const int at = t.row + e + v.padding - k, row = floor_div(at, v.stride);
        if (row * v.stride == at) sources.add(lines + int64_t(row - t.x_row) * t.pitch, read.taps[k]);
      }
      const int rows = (t.rows - e + v.stride - 1) / v.stride;
      combine<false>(sources, rows * t.pitch, 0, read.adds, z + int64_t(t.z_row_of(e, v.stride)) * t.pitch);
    }
  }

  // Writes up to kLanes channels of y that are neighbours in memory, from `write` on.
  template <class T>
  static void write(const HadamardConv& c, const HadamardTile& t, const float* z, int write, int channels, bool last,
                    float* out) {
    const int stride = c.transposed ? c.vertical.stride : 1, phases = c.transposed ? c.horizontal.stride : 1;
    const int at_once = at_least(1, kSegmentFloats / at_least(1, t.pitch));
    for (int e = 0; e < stride && e < t.rows; ++e) {
      const int rows = (t.rows - e + stride - 1) / stride, first = t.z_row_of(e, stride);
      for (int r = 0; r < rows; r += at_once) {
        const int some = at_most(at_once, rows - r);
        for (int l = 0; l < channels; ++l) {
          for (int p = 0; p < phases; ++p) {
            filter_second(c, t, z, write + l, c.transposed ? first + r : r, some, p,
                          out + (l * phases + p) * c.segment);
          }
        }
        for (int i = 0; i < some; ++i) {
          T* y = pixel_of<T>(c.y, t, c.writes[write], t.row + (r + i) * stride + e, t.column);
          put_row(c, t, out + i * t.pitch, phases, channels, last, y);
        }
      }
    }
  }

 private:
  template <class T>
  static void bring_line(const HadamardConv& c, const HadamardTile& t, const T* row, int width, int phase, int phases,
                         int channels, int64_t step, float* to) {
    const int first = t.x_column + phase;  // columns [begin, end) of the line are in x
    const int begin = at_most(t.pitch, at_least(0, floor_div(phases - 1 - first, phases)));
    const int end = at_least(begin, at_most(t.pitch, floor_div(width - 1 - first, phases) + 1));
    for (int l = 0; l < channels; ++l) {
      for (int i = 0; i < begin; ++i) to[l * step + i] = 0;
      for (int i = end; i < t.pitch; ++i) to[l * step + i] = 0;
    }
    if (begin == end) return;
    row += (first + begin * phases) * c.x.w;
    if (c.x.c == 1) return copy_channels_last(row, phases * c.x.w, channels, end - begin, to + begin, step);
    for (int i = begin; i < end; ++i) to[i] = widen(row[(i - begin) * phases * c.x.w]);
  }

  // Sums rows of z, filtered along the second axis, for the outputs of `rows` rows from `row` on; of the phase's
  // columns.
  static void filter_second(const HadamardConv& c, const HadamardTile& t, const float* z, int write, int row, int rows,
                            int phase, float* to) {
    const HadamardAxis &v = c.vertical, &h = c.horizontal;
    for (int i = 0; i < c.terms; ++i) {
      const HadamardTerm& term = c.term[int64_t(write) * c.terms + i];
      const float* line = z + term.row * c.row_floats + int64_t(row) * t.pitch;
      Sources sources;
      if (!c.transposed) {
        for (int k = 0; k < v.kernel; ++k) sources.add(line + int64_t(t.z_row_of(k, v.stride)) * t.pitch, term.taps[k]);
      } else {
        for (int k = 0; k < h.kernel; ++k) {
          const int at = t.column + phase + h.padding - k, column = floor_div(at, h.stride);
          if (column * h.stride == at) sources.add(line + (column - t.x_column), term.taps[k]);
        }
      }
      combine<false>(sources, rows * t.pitch, i || !c.bias ? 0 : c.bias[c.writes[write]], i > 0, to);
    }
  }

  // Copies a row of the tile to y, from lines[channel][phase].
  template <class T>
  static void put_row(const HadamardConv& c, const HadamardTile& t, const float* lines, int phases, int channels,
                      bool last, T* y) {
    if (phases == 2 && c.y.w == 1) {
      for (int j = 0; j < t.columns; j += 2 * kLanes) {
        V low, high;
        interleave(load(lines + j / 2), load(lines + c.segment + j / 2), low, high,
                   std::make_integer_sequence<int, kLanes>());
        store_some(at_most(kLanes, t.columns - j), y + j, low);
        if (t.columns - j > kLanes) store_some(at_most(kLanes, t.columns - j - kLanes), y + j + kLanes, high);
      }
      return;
    }
    for (int p = 0; p < phases; ++p) {
      const int count = (t.columns - p + phases - 1) / phases;
      put_lines(lines + p * c.segment, phases * c.segment, channels, count, last, y + p * c.y.w, phases * c.y.w);
    }
  }
};

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
