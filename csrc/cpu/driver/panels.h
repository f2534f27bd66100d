// Panels: a convolution with many columns, cut into convolutions of some columns each. A tile that copies its input
// brings K - 1 rows of the grid as its halo: on the narrow grid of a panel these are few pixels, however wide the
// image. Used by the drivers.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/driver/grid.h"

namespace explainfix {

constexpr int64_t kPanelColumns = 128;  // of the tensor that is written, about. 64 to 256 were measured

inline int64_t panel_count(int64_t columns) {
  return std::max<int64_t>(1, (columns + kPanelColumns / 2) / kPanelColumns);
}

// Columns [out, out + out_size) of the forward convolution's output and [in, in + in_size) of its input, and where they
// lie on the grid, as TiledConv has it.
struct Panel {
  int64_t out, out_size, in, in_size;
  int origin, offset;
};

// The sizes of the forward convolution along a row.
struct Columns {
  int64_t in_size, out_size, kernel, stride, padding;
};

struct Panels {
  Columns columns;
  std::vector<Panel> panels;
  int grid_w = 0;  // the widest, which serves all of them

  // One panel of all columns.
  static Panels whole(const Columns& c) {
    Panels all{c};
    all.add(0, c.out_size, 0, c.in_size, c.padding);
    return all;
  }

  // Panels of the output's columns, with the input's that they read.
  static Panels of_output(const Columns& c) {
    Panels cut{c};
    for_each_range(c.out_size, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * c.stride - c.padding, stop = (end - 1) * c.stride - c.padding + c.kernel;
      const int64_t in = std::clamp<int64_t>(first, 0, c.in_size), in_end = std::clamp<int64_t>(stop, 0, c.in_size);
      cut.add(begin, end - begin, in, in_end - in, in - first);
    });
    return cut;
  }

  // Panels of the input's columns, with the output's that read them.
  static Panels of_input(const Columns& c) {
    Panels cut{c};
    for_each_range(c.in_size, [&](int64_t begin, int64_t end) {
      const int64_t first = (std::max<int64_t>(0, begin + c.padding - c.kernel + c.stride)) / c.stride;
      const int64_t out = std::min(first, c.out_size);
      const int64_t out_end = std::clamp<int64_t>((end - 1 + c.padding) / c.stride + 1, out, c.out_size);
      cut.add(out, out_end - out, begin, end - begin, c.padding + begin - out * c.stride);
    });
    return cut;
  }

 private:
  // Calls f(begin, end) for equal ranges of columns.
  template <class F>
  static void for_each_range(int64_t size, F&& f) {
    const int64_t count = panel_count(size), columns = (size + count - 1) / count;
    for (int64_t begin = 0; begin < size; begin += columns) f(begin, std::min(begin + columns, size));
  }

  void add(int64_t out, int64_t out_size, int64_t in, int64_t in_size, int64_t padding) {
    Panel p{out, out_size, in, in_size, 0, 0};
    if (in_size == 0 || out_size == 0) padding = columns.kernel / 2;  // only zeros: where they lie is all the same
    int grid;
    lay_axis(in_size, out_size, columns.kernel, columns.stride, padding, p.origin, p.offset, grid);
    grid_w = std::max(grid_w, grid);
    panels.push_back(p);
  }
};

// The planes from a column on.
inline Planes from_column(Planes p, int64_t column) {
  p.data = static_cast<char*>(p.data) + column * p.w * (p.bf16 ? 2 : 4);
  return p;
}

}  // namespace explainfix
