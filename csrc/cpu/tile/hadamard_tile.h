// Where a tile of the hadamard kernel lies in x, y and z.
#pragma once

#include "cpu/tile/hadamard_combine.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

struct HadamardTile {
  int image, group;
  int row, rows, column, columns;          // of y
  int x_row, x_rows, x_column, x_columns;  // that are read; may begin and end outside of x
  int z_rows, pitch;                       // of z, and floats from one row of it to the next

  HadamardTile(const HadamardConv& c, int64_t task) {
    column = int(task % c.column_tiles) * c.tile_columns;
    task /= c.column_tiles;
    row = int(task % c.row_tiles) * c.tile_rows;
    task /= c.row_tiles;
    group = int(task % c.groups);
    image = int(task / c.groups);
    rows = at_most(c.tile_rows, c.out_height - row);
    columns = at_most(c.tile_columns, c.out_width - column);
    read_along(c.transposed, c.vertical, row, rows, x_row, x_rows);
    read_along(c.transposed, c.horizontal, column, columns, x_column, x_columns);
    z_rows = c.transposed ? rows : x_rows;
    const int stride = c.horizontal.stride, written = (columns + stride - 1) / stride;  // of a phase of y's columns
    pitch = c.flat         ? columns
            : c.transposed ? at_least(x_columns, written)
                           : columns + (c.horizontal.kernel - 1) / stride;
  }

  // Rows of z with vertical stride s lie by their remainder mod s, so that neighbours in memory are s rows apart.
  int z_row_of(int r, int stride) const {
    int before = 0;
    for (int e = 0; e < r % stride; ++e) before += (z_rows - e + stride - 1) / stride;
    return before + r / stride;
  }

 private:
  static void read_along(bool transposed, const HadamardAxis& a, int first, int count, int& from, int& size) {
    if (!transposed) {
      from = first * a.stride - a.padding;
      size = (count - 1) * a.stride + a.kernel;
    } else {
      from = floor_div(first + a.padding - a.kernel + a.stride, a.stride);
      size = at_least(0, floor_div(first + count - 1 + a.padding, a.stride) - from + 1);
    }
  }
};

template <class T>
T* pixel_of(const Planes& p, const HadamardTile& t, int channel, int64_t row, int64_t column) {
  return static_cast<T*>(p.data) + t.image * p.n + channel * p.c + row * p.h + column * p.w;
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
