// The tile kernel of the hadamard family: see hadamard_conv.h for what it computes. Lanes are pixels of a tile, one row
// after the other; z has a row of `pitch` floats for each place of the transform.
//
// Bytes bound it: x and y once each. The arithmetic (kw + log2(order) + kh operations a vector and channel) takes a
// fraction of the time that memory does, if z stays in the second-level cache, and a block of it (16 pixels of all
// rows) in the first.
#pragma once

#include "cpu/tile/hadamard_conv.h"
#include "cpu/tile/staging.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kBlockPixels = 16;    // of z that are transformed at once: a cache line of each row
constexpr int kMostTaps = 7;        // that combine_some has registers for
constexpr int kSegmentPixels = 64;  // of outputs that are computed before they are copied to y
constexpr int kOutPitch = kSegmentPixels + kLanes;

// What is combined: `taps` rows of floats, each times its tap. Lanes that a mask takes away count as zero; masks[k] has
// one for each vector of row k, or there are none.
struct Sources {
  int taps = 0;
  const float* from[kMaxHadamardKernel];
  float tap[kMaxHadamardKernel];
  const uint16_t* masks[kMaxHadamardKernel];
};

// to[i] = start + sum of tap[k] from[k][i] for i < count, and with `adds` what is there already; K of the sources from
// `begin` on.
template <int K, bool masked>
EXPLAINFIX_INLINE void combine_some(const Sources& sources, int begin, int count, float start, bool adds, float* to) {
  V taps[K];
  const float* from[K];
  const uint16_t* masks[K];
  EXPLAINFIX_UNROLL for (int k = 0; k < K; ++k) {
    taps[k] = splat(sources.tap[begin + k]);
    from[k] = sources.from[begin + k];
    if (masked) masks[k] = sources.masks[begin + k];
  }
  const V first = splat(start);
  const auto sum = [&](int i) {
    V value = first;
    EXPLAINFIX_UNROLL for (int k = 0; k < K; ++k) {
      value += taps[k] * (masked ? load(Mask(masks[k][i / kLanes]), from[k] + i) : load(from[k] + i));
    }
    return value;
  };
  int i = 0;
  if (adds) {
    for (; i + kLanes <= count; i += kLanes) store(to + i, sum(i) + load(to + i));
    if (i < count) store_some(count - i, to + i, sum(i) + load_lanes(0, count - i, to + i));
  } else {
    for (; i + kLanes <= count; i += kLanes) store(to + i, sum(i));
    if (i < count) store_some(count - i, to + i, sum(i));
  }
}

template <bool masked>
void combine(const Sources& sources, int count, float start, bool adds, float* to) {
  int begin = 0;
  for (; sources.taps - begin > kMostTaps; begin += kMostTaps, start = 0, adds = true) {
    combine_some<kMostTaps, masked>(sources, begin, count, start, adds, to);
  }
  switch (sources.taps - begin) {
    case 1:
      return combine_some<1, masked>(sources, begin, count, start, adds, to);
    case 2:
      return combine_some<2, masked>(sources, begin, count, start, adds, to);
    case 3:
      return combine_some<3, masked>(sources, begin, count, start, adds, to);
    case 4:
      return combine_some<4, masked>(sources, begin, count, start, adds, to);
    case 5:
      return combine_some<5, masked>(sources, begin, count, start, adds, to);
    case 6:
      return combine_some<6, masked>(sources, begin, count, start, adds, to);
    case 7:
      return combine_some<7, masked>(sources, begin, count, start, adds, to);
    default:  // no tap reaches the image: zeros
      for (int i = 0; i < count; ++i) to[i] = adds ? to[i] + start : start;
  }
}

EXPLAINFIX_INLINE int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
EXPLAINFIX_INLINE int at_least(int a, int b) { return a > b ? a : b; }
EXPLAINFIX_INLINE int at_most(int a, int b) { return a < b ? a : b; }

// Where a tile lies: rows and columns of y, the rows and columns that z has, and those of x that are read.
struct HadamardTile {
  int image, group;
  int row, rows, column, columns;  // of y
  int z_rows, z_columns;
  int x_row, x_rows, x_column, x_columns;  // may begin outside of x
  int line;                                // floats of a line of x, of one phase

  HadamardTile(const HadamardConv& c, int64_t task) {
    column = int(task % c.column_tiles) * c.tile_columns;
    task /= c.column_tiles;
    row = int(task % c.row_tiles) * c.tile_rows;
    task /= c.row_tiles;
    group = int(task % c.groups);
    image = int(task / c.groups);
    rows = at_most(c.tile_rows, c.out_height - row);
    columns = at_most(c.tile_columns, c.out_width - column);
    const HadamardAxis &v = c.vertical, &h = c.horizontal;
    if (c.flat) {
      x_column = 0;
      x_columns = z_columns = line = columns;
      x_row = c.transposed ? row + v.padding - v.kernel + 1 : row - v.padding;
      x_rows = rows + v.kernel - 1;
      z_rows = c.transposed ? rows : x_rows;
    } else if (!c.transposed) {
      x_row = row * v.stride - v.padding;
      z_rows = x_rows = (rows - 1) * v.stride + v.kernel;
      x_column = column * h.stride - h.padding;
      x_columns = (columns - 1) * h.stride + h.kernel;
      z_columns = columns;
      line = columns + (h.kernel - 1) / h.stride;
    } else {
      x_row = floor_div(row + v.padding - v.kernel + v.stride, v.stride);
      x_rows = at_least(0, floor_div(row + rows - 1 + v.padding, v.stride) - x_row + 1);
      x_column = floor_div(column + h.padding - h.kernel + h.stride, h.stride);
      x_columns = at_least(0, floor_div(column + columns - 1 + h.padding, h.stride) - x_column + 1);
      z_rows = rows;
      z_columns = line = x_columns;
    }
  }
};

// Flat tiles: rows of up to kLanes neighbouring channels are copied to
// `lines`, [channel][row][column], row after row without gaps.
template <class T>
void bring_planes(const HadamardConv& c, const HadamardTile& t, int channel, int channels, float* lines) {
  const int begin = at_least(0, -t.x_row), end = at_most(t.x_rows, c.height - t.x_row), pixels = t.x_rows * c.width;
  const T* x = static_cast<const T*>(c.x.data) + t.image * c.x.n + channel * c.x.c + (t.x_row + begin) * c.x.h;
  const bool joined = c.x.h == c.width * c.x.w;
  const int runs = joined ? 1 : end - begin, length = joined ? (end - begin) * c.width : c.width;
  for (int r = 0; r < runs; ++r, x += c.x.h) {
    float* to = lines + (begin + r) * c.width;
    if (c.x.c == 1) {
      copy_channels_last(x, c.x.w, channels, length, to, pixels);
    } else {
      for (int i = 0; i < length; ++i) to[i] = widen(x[i * c.x.w]);
    }
  }
}

// Brings rows of up to kLanes neighbouring channels of x as lines of floats: lines[channel][row][phase][column], a
// `c.line` apart, and zeros where the tile reaches over an edge at the left or right. Forward with stride 2 there are
// two phases, the even and the odd columns. Rows outside of x are left as they are.
template <class T>
void bring_lines(const HadamardConv& c, const HadamardTile& t, int channel, int channels, float* lines) {
  const int phases = c.transposed ? 1 : c.horizontal.stride;
  const T* x = static_cast<const T*>(c.x.data) + t.image * c.x.n + channel * c.x.c;
  const int64_t channel_step = int64_t(t.x_rows) * phases * c.line;
  for (int r = at_least(0, -t.x_row); r < t.x_rows && t.x_row + r < c.height; ++r) {
    const T* row = x + (t.x_row + r) * c.x.h;
    float* to = lines + int64_t(r) * phases * c.line;
    if (c.x.w == 1) {
      for (int l = 0; l < channels; ++l, row += c.x.c, to += channel_step) {
        if (phases == 1) {
          copy_row<1>(row, c.width, t.x_column, t.line, to, nullptr);
        } else {
          copy_row<2>(row, c.width, t.x_column, t.line, to, to + c.line);
        }
      }
      continue;
    }
    for (int phase = 0; phase < phases; ++phase, to += c.line) {
      // Line positions [begin, end) are in x.
      const int first = t.x_column + phase;
      const int begin = at_most(t.line, at_least(0, floor_div(phases - 1 - first, phases)));
      const int end = at_least(begin, at_most(t.line, floor_div(c.width - 1 - first, phases) + 1));
      for (int l = 0; l < channels; ++l) {
        float* p = to + l * channel_step;
        for (int i = 0; i < begin; ++i) p[i] = 0;
        for (int i = end; i < t.line; ++i) p[i] = 0;
      }
      const T* from = row + (first + begin * phases) * c.x.w;
      if (c.x.c == 1) {
        copy_channels_last(from, phases * c.x.w, channels, end - begin, to + begin, channel_step);
      } else {
        for (int i = begin; i < end; ++i) to[i] = widen(from[(i - begin) * phases * c.x.w]);
      }
    }
  }
}

// Filters one channel along the first axis, to a row of z. Flat tiles: lines are rows of x without gaps.
inline void filter_first(const HadamardConv& c, const HadamardTile& t, const HadamardRead& read, const float* lines,
                         float* z) {
  Sources sources;
  z += read.row * c.pitch;
  const HadamardAxis &v = c.vertical, &h = c.horizontal;
  if (!c.transposed) {
    sources.taps = h.kernel;
    const int begin = at_least(0, -t.x_row), end = at_most(t.x_rows, c.height - t.x_row), phases = h.stride;
    const int runs = c.flat ? 1 : end - begin, length = c.flat ? (end - begin) * t.z_columns : t.z_columns;
    for (int k = 0; k < h.kernel; ++k) sources.tap[k] = read.taps[k];
    for (int r = begin; r < begin + runs; ++r) {
      float* to = z + int64_t(r) * t.z_columns;
      for (int k = 0; k < h.kernel; ++k) {
        sources.from[k] = c.flat ? lines + r * c.width + k - h.padding
                                 : lines + (int64_t(r) * phases + k % phases) * c.line + k / phases;
        sources.masks[k] = c.flat ? c.inside[k] : nullptr;
      }
      c.flat ? combine<true>(sources, length, 0, read.adds, to) : combine<false>(sources, length, 0, read.adds, to);
    }
    return;
  }
  const int64_t line = c.flat ? c.width : c.line;
  for (int r = 0, run; r < t.rows; r += run) {
    sources.taps = 0;
    const int first = t.row + r + v.padding;
    for (int k = 0; k < v.kernel; ++k) {
      const int row = floor_div(first - k, v.stride);
      if (row * v.stride != first - k || row < 0 || row >= c.height) continue;
      sources.from[sources.taps] = lines + (row - t.x_row) * line;
      sources.tap[sources.taps++] = read.taps[k];
    }
    // Rows that follow and have all taps, too.
    run = c.flat && sources.taps == v.kernel ? at_most(t.rows - r, c.height - first) : 1;
    combine<false>(sources, run * t.z_columns, 0, read.adds, z + int64_t(r) * t.z_columns);
  }
}

// A step of the transform for 16 pixels: butterflies of K bits of a row's number at once, in registers.
template <int K>
EXPLAINFIX_INLINE void butterflies(const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int order,
                                   int bits) {
  constexpr int R = 1 << K;
  int64_t offset[R];
  offset[0] = 0;
  int rest = bits;
  for (int k = 0; k < K; ++k) {
    const int bit = rest & -rest;
    rest ^= bit;
    for (int j = 0; j < 1 << k; ++j) offset[(1 << k) + j] = offset[j] + bit;
  }
  for (int base = 0; base < order; base = ((base | bits) + 1) & ~bits) {
    for (int v = 0; v < kBlockPixels; v += kLanes) {
      V a[R];
      EXPLAINFIX_UNROLL for (int j = 0; j < R; ++j) a[j] = load(from + (base + offset[j]) * from_pitch + v);
      EXPLAINFIX_UNROLL for (int h = 1; h < R; h *= 2) {
        EXPLAINFIX_UNROLL for (int j = 0; j < R; ++j) {
          if (j & h) continue;
          const V sum = a[j] + a[j + h];
          a[j + h] = a[j] - a[j + h];
          a[j] = sum;
        }
      }
      EXPLAINFIX_UNROLL for (int j = 0; j < R; ++j) store(to + (base + offset[j]) * to_pitch + v, a[j]);
    }
  }
}

inline void transform_step(const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int order, int bits) {
  switch (__builtin_popcount(bits)) {
    case 1:
      return butterflies<1>(from, from_pitch, to, to_pitch, order, bits);
    case 2:
      return butterflies<2>(from, from_pitch, to, to_pitch, order, bits);
    case 3:
      return butterflies<3>(from, from_pitch, to, to_pitch, order, bits);
    default:
      return butterflies<4>(from, from_pitch, to, to_pitch, order, bits);
  }
}

// Transforms `order` rows of z at the flat pixels [begin, end). The steps between the first and the last one work on a
// copy of 16 pixels, whose rows lie close together.
inline void transform(const HadamardConv& c, float* z, int begin, int end, float* block) {
  for (int p = begin / kBlockPixels * kBlockPixels; p < end; p += kBlockPixels) {
    for (int s = 0; s < c.steps; ++s) {
      const float* from = s == 0 ? z + p : block;
      float* to = s == c.steps - 1 ? z + p : block;
      transform_step(from, s == 0 ? c.pitch : kBlockPixels, to, s == c.steps - 1 ? c.pitch : kBlockPixels, c.order,
                     c.step[s]);
    }
  }
}

// Sums rows of z, filtered along the second axis, for `count` outputs of a row of the tile from the pixel `first` on;
// in flat tiles, and forward with stride 1, pixels go on to the rows that follow.
inline void filter_second(const HadamardConv& c, const HadamardTile& t, const float* z, int write, int row, int first,
                          int count, float start, float* to) {
  Sources sources;
  const HadamardAxis &v = c.vertical, &h = c.horizontal;
  for (int i = 0; i < c.terms; ++i, start = 0) {
    const HadamardTerm& term = c.term[int64_t(write) * c.terms + i];
    const float* line = z + term.row * c.pitch;
    if (!c.transposed) {
      line += int64_t(row) * v.stride * t.z_columns + first;
      sources.taps = v.kernel;
      for (int k = 0; k < v.kernel; ++k) {
        sources.from[k] = line + int64_t(k) * t.z_columns;
        sources.tap[k] = term.taps[k];
      }
      combine<false>(sources, count, start, i > 0, to);
      continue;
    }
    line += int64_t(row) * t.z_columns;
    if (h.stride == 1) {
      sources.taps = h.kernel;
      for (int k = 0; k < h.kernel; ++k) {
        sources.from[k] = line + (t.column + first + h.padding - k - t.x_column);
        sources.tap[k] = term.taps[k];
        if (c.flat) sources.masks[k] = c.inside[k] + first / kLanes;
      }
      c.flat ? combine<true>(sources, count, start, i > 0, to) : combine<false>(sources, count, start, i > 0, to);
      continue;
    }
    float parity[2][kSegmentPixels / 2 + kLanes];  // outputs at even and odd places of the segment
    for (int e = 0; e < 2; ++e) {
      sources.taps = 0;
      for (int k = 0; k < h.kernel; ++k) {
        const int at = t.column + first + e + h.padding - k;
        if (at & 1) continue;
        sources.from[sources.taps] = line + (floor_div(at, 2) - t.x_column);
        sources.tap[sources.taps++] = term.taps[k];
      }
      combine<false>(sources, (count + 1 - e) / 2, start, false, parity[e]);
    }
    for (int k = 0; k < count; ++k) to[k] = parity[k & 1][k >> 1] + (i > 0 ? to[k] : 0);
  }
}

// Copies lines[channel][pixel] to y: `count` pixels, `step` elements apart, of one channel or, with `last`, of channels
// that are neighbours in memory.
template <class T>
void put_lines(const float* lines, int channels, int count, bool last, T* to, int64_t step) {
  for (int k = 0; k < count; k += kLanes) {
    const int pixels = at_most(kLanes, count - k);
    if (!last && step == 1) {
      store_some(pixels, to + k, load(lines + k));
    } else if (!last) {
      for (int l = 0; l < pixels; ++l) narrow(lines[k + l], to + (k + l) * step);
    } else {
      V r[kLanes];
      EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) r[l] = l < channels ? load(lines + l * kOutPitch + k) : V{};
      transpose(r);
      EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) {
        if (l < pixels) store_some(channels, to + (k + l) * step, r[l]);
      }
    }
  }
}

// Writes the channels of y of a pass.
template <class T>
void write_channels(const HadamardConv& c, const HadamardTile& t, const HadamardPass& pass, const float* z,
                    float* out) {
  const bool last = c.y.c == 1 && c.y.w != 1, even = c.transposed && c.horizontal.stride == 2;
  const bool rows_join = c.flat || (!c.transposed && c.vertical.stride == 1 && t.columns == c.out_width);
  const bool flat = rows_join && c.y.h == c.out_width * c.y.w;
  const bool direct = sizeof(T) == 4 && c.y.w == 1 && !even;
  const int runs = flat ? 1 : t.rows, length = flat ? t.rows * t.columns : t.columns;
  T* y = static_cast<T*>(c.y.data) + t.image * c.y.n + t.row * c.y.h + t.column * c.y.w;
  for (int w = pass.write_begin; w < pass.write_end;) {
    int channels = 1;  // neighbours in memory
    while (last && channels < kLanes && w + channels < pass.write_end &&
           c.writes[w + channels] == c.writes[w] + channels) {
      ++channels;
    }
    T* plane = y + c.writes[w] * c.y.c;
    for (int r = 0; r < runs; ++r) {
      const int segment = direct ? length : kSegmentPixels;
      for (int first = 0; first < length; first += segment) {
        const int count = at_most(segment, length - first);
        T* p = plane + r * c.y.h + first * c.y.w;
        for (int l = 0; l < channels; ++l) {
          float* to = out + l * kOutPitch;
          if constexpr (sizeof(T) == 4) {
            if (direct) to = p;
          }
          filter_second(c, t, z, w + l, r, first, count, c.bias ? c.bias[c.writes[w + l]] : 0, to);
        }
        if (!direct) put_lines(out, channels, count, last, p, c.y.w);
      }
    }
    w += channels;
  }
}

template <class T>
void hadamard_tile_of(const HadamardConv& c, int64_t task, float* scratch) {
  const HadamardTile t(c, task);
  float *z = scratch, *lines = z + c.z_size, *out = lines + c.lines_size, *block = out + c.out_size;
  const int z_pixels = t.z_rows * t.z_columns;
  // Forward, rows of z outside of x stay zero, and are not transformed.
  const int above = c.transposed ? 0 : at_most(t.z_rows, at_least(0, -t.x_row));
  const int below = c.transposed ? t.z_rows : at_least(above, at_most(t.z_rows, c.height - t.x_row));
  const int begin = above * t.z_columns, end = below * t.z_columns;
  const bool in_place = c.flat && sizeof(T) == 4 && c.x.w == 1 && c.x.h == c.width;
  for (int p = 0; p < c.passes; ++p) {
    const HadamardPass& pass = c.pass[int64_t(t.group) * c.passes + p];
    for (int u = pass.unread_begin; u < pass.unread_end; ++u) memset(z + c.unread[u] * c.pitch, 0, z_pixels * 4);
    for (int i = pass.read_begin; i < pass.read_end;) {
      const int channel = c.reads[i].channel;
      int next = i, channels = 1;
      while (next < pass.read_end && c.reads[next].channel < channel + (c.x.c == 1 && c.x.w != 1 ? kLanes : 1)) {
        channels = c.reads[next++].channel - channel + 1;
      }
      const float* planes = lines;
      int64_t channel_step = int64_t(t.x_rows) * (c.transposed ? 1 : c.horizontal.stride) * c.line;
      if (in_place) {
        planes = reinterpret_cast<const float*>(c.x.data) + t.image * c.x.n + channel * c.x.c + t.x_row * c.x.h;
      } else if (c.flat) {
        channel_step = t.x_rows * c.width;
        bring_planes<T>(c, t, channel, channels, lines);
      } else {
        bring_lines<T>(c, t, channel, channels, lines);
      }
      for (; i < next; ++i) filter_first(c, t, c.reads[i], planes + (c.reads[i].channel - channel) * channel_step, z);
    }
    for (int b = 0; b < c.branches; ++b) {
      float* rows = z + int64_t(b) * c.order * c.pitch;
      for (int r = 0; r < c.order && (begin > 0 || end < z_pixels); ++r) {
        memset(rows + r * c.pitch, 0, begin * 4);
        memset(rows + r * c.pitch + end, 0, (z_pixels - end) * 4);
      }
      transform(c, rows, begin, end, block);
    }
    write_channels<T>(c, t, pass, z, out);
  }
}

inline void hadamard_tile(const HadamardConv& c, int64_t task, float* scratch) {
  c.x.bf16 ? hadamard_tile_of<uint16_t>(c, task, scratch) : hadamard_tile_of<float>(c, task, scratch);
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
