// The tile kernel of the hadamard family: see hadamard_conv.h for what it computes. Lanes are pixels of a tile, one row
// after the other.
//
// Bytes bound it: x and y once each. The arithmetic (kw + log2(order) + kh operations a vector and channel) takes a
// fraction of the time that memory does, if z stays in the second-level cache, and a block of it (16 pixels of all
// rows) in the first.
#pragma once

#include "cpu/tile/finish.h"
#include "cpu/tile/hadamard_flat.h"
#include "cpu/tile/hadamard_padded.h"
#include "cpu/tile/hadamard_transform.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Prefetches what a tile reads of a channel. Channels lie far apart, so that the hardware cannot guess the next one;
// where x is in memory, this takes a quarter of the time away.
template <class T>
void prefetch_channel(const HadamardConv& c, const HadamardTile& t, int channel) {
  const int begin = at_least(0, -t.x_row), end = at_most(t.x_rows, c.height - t.x_row);
  for (int r = begin; r < end; ++r) {
    const T* row = pixel_of<const T>(c.x, t, channel, t.x_row + r, at_least(0, t.x_column));
    for (int k = 0; k < t.x_columns; k += 64 / int(sizeof(T))) __builtin_prefetch(row + k, 0, 3);
  }
}

// Adds what a pass reads, filtered along the first axis, to z.
template <class T, class Tiles>
void read_channels(const HadamardConv& c, const HadamardTile& t, const HadamardPass& pass, float* z, float* lines) {
  const int together = c.x_joined ? kLanes : 1;
  for (int i = pass.read_begin, next; i < pass.read_end; i = next) {
    const int channel = c.reads[i].channel;
    for (next = i; next < pass.read_end && c.reads[next].channel < channel + together;) ++next;
    if (c.x.w == 1 && next < pass.read_end) prefetch_channel<T>(c, t, c.reads[next].channel);
    int64_t step = c.x.c;
    const float* planes = Tiles::template bring<T>(c, t, channel, c.reads[next - 1].channel - channel + 1, lines, step);
    for (int k = i; k < next; ++k) {
      const HadamardRead& read = c.reads[k];
      Tiles::filter_first(c, t, read, planes + (read.channel - channel) * step, z + read.row * c.row_floats);
    }
  }
}

template <class T, class Tiles>
void write_channels(const HadamardConv& c, const HadamardTile& t, const HadamardPass& pass, const float* z,
                    float* out) {
  const bool last = c.y_joined;
  for (int w = pass.write_begin, next; w < pass.write_end; w = next) {
    next = w + 1;
    while (last && next < pass.write_end && next < w + kLanes && c.writes[next] == c.writes[w] + next - w) ++next;
    Tiles::template write<T>(c, t, z, w, next - w, last, out);
  }
}

// Finishes what a pass has written.
inline void finish_channels(const HadamardConv& c, const HadamardTile& t, const HadamardPass& pass) {
  const bool joined = t.columns == c.y.h;
  const int rows = joined ? 1 : t.rows, count = joined ? t.rows * t.columns : t.columns;
  float* y = static_cast<float*>(c.y.data);
  for (int w = pass.write_begin; w < pass.write_end; ++w) {
    for (int r = 0; r < rows; ++r) {
      const int64_t place = t.image * c.y.n + c.writes[w] * c.y.c + (t.row + r) * c.y.h + t.column;
      finish_pixels(c.finish, c.writes[w], place, y + place, y, count);
    }
  }
}

template <class T, class Tiles>
void hadamard_tile_of(const HadamardConv& c, int64_t task, float* scratch) {
  const HadamardTile t(c, task);
  float *z = scratch, *lines = z + c.z_size, *out = lines + c.lines_size, *block = out + c.out_size;
  const int pixels = t.z_rows * t.pitch;
  // Pixels of z that are written: with flat tiles, forward, not those outside of x. They stay zero.
  int begin = 0, end = pixels;
  if (c.flat && !c.transposed) {
    begin = at_most(t.z_rows, at_least(0, -t.x_row)) * t.pitch;
    end = at_least(begin, at_most(t.z_rows, c.height - t.x_row) * t.pitch);
  }
  for (int p = 0; p < c.passes; ++p) {
    const HadamardPass& pass = c.pass[int64_t(t.group) * c.passes + p];
    for (int u = pass.unread_begin; u < pass.unread_end; ++u) memset(z + c.unread[u] * c.row_floats, 0, pixels * 4);
    read_channels<T, Tiles>(c, t, pass, z, lines);
    for (int r = 0; r < c.branches * c.order && end - begin < pixels; ++r) {
      memset(z + r * c.row_floats, 0, begin * 4);
      memset(z + r * c.row_floats + end, 0, (pixels - end) * 4);
    }
    for (int b = 0; b < c.branches; ++b) transform(c, z + int64_t(b) * c.order * c.row_floats, begin, end, block);
    write_channels<T, Tiles>(c, t, pass, z, out);
    if (c.finish.any()) finish_channels(c, t, pass);
  }
}

inline void hadamard_tile(const HadamardConv& c, int64_t task, float* scratch) {
  if (c.flat) {
    c.x.bf16 ? hadamard_tile_of<uint16_t, FlatTiles>(c, task, scratch)
             : hadamard_tile_of<float, FlatTiles>(c, task, scratch);
  } else {
    c.x.bf16 ? hadamard_tile_of<uint16_t, PaddedTiles>(c, task, scratch)
             : hadamard_tile_of<float, PaddedTiles>(c, task, scratch);
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
