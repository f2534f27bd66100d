// The grid that a convolution is laid on (cpu/tile/tiled_conv.h), and the masks of its edges. Used by the drivers.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "cpu/tile/tiled_conv.h"

namespace explainfix {

// Lays one axis on the grid: finds origin and offset, as TiledConv has them, and the grid's length.
inline void lay_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t padding, int& origin,
                     int& offset, int& grid) {
  const int64_t reach = kernel / 2;
  origin = int(std::max<int64_t>(0, (reach - padding + stride - 1) / stride));
  offset = int(origin * stride - reach + padding);
  grid = int(std::max(origin + out_size, (offset + size + stride - 1) / stride));
}

// The masks of TiledConv::rows_in and cols_in: lanes whose neighbour, `shift` rows or columns away, is in the plane.
// Keeps their memory alive.
struct Masks {
  std::vector<uint16_t> bits;

  Masks(TiledConv& c, int lanes) {
    const int reach = c.kernel / 2, length = c.vectors + c.tile_vectors + 3;
    bits.assign(size_t(length) * (2 * (2 * reach + 1)), 0);
    uint16_t* next = bits.data();
    for (int shift = -reach; shift <= reach; ++shift) {
      c.rows_in[kMaxShift + shift] = fill(c, next, lanes, shift, 0);
      next += length;
      c.cols_in[kMaxShift + shift] = fill(c, next, lanes, 0, shift);
      next += length;
    }
  }

 private:
  static const uint16_t* fill(const TiledConv& c, uint16_t* masks, int lanes, int down, int right) {
    uint16_t* mask = masks + 1;  // vector -1 stays empty
    const uint16_t all = uint16_t((1u << lanes) - 1);
    for (int v = 0; v < c.vectors; ++v) mask[v] = all;
    if (const int tail = int(c.span_pixels % lanes)) mask[c.vectors - 1] = uint16_t((1u << tail) - 1);
    const auto clear = [&](int64_t begin, int64_t count) {
      for (int64_t q = begin; q < begin + count; ++q) mask[q / lanes] &= uint16_t(~(1u << q % lanes));
    };
    const int64_t width = c.grid_w, rows = int64_t(c.span_images) * c.grid_h;
    if (down) {
      const int64_t lost = std::min<int64_t>(std::abs(down), c.grid_h);
      const int64_t first = down < 0 ? 0 : c.grid_h - lost;
      for (int64_t i = 0; i < c.span_images; ++i) clear((i * c.grid_h + first) * width, lost * width);
    }
    if (right) {
      const int64_t lost = std::min<int64_t>(std::abs(right), width), first = right < 0 ? 0 : width - lost;
      for (int64_t r = 0; r < rows; ++r) clear(r * width + first, lost);
    }
    return masks;
  }
};

}  // namespace explainfix
