// A depthwise convolution by any filters, with what follows it, for networks that only infer. Lanes are pixels of a row
// of y; four rows are summed at once, in registers. x is copied band by band to lines with zeros around them, for
// stride 2 its even and its odd columns apart, so that every tap is a shift. Called through TileKernels.
//
// Reading x and writing y bound it, and the loads of the lines: one for each tap and row of x.
#pragma once

#include "cpu/tile/finish.h"
#include "cpu/tile/staging.h"
#include "cpu/tile/tile.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kRowsAtOnce = 4;

// Copies the rows of x that `rows` rows of y read, from `row` on, to `lines`: [row of x][phase][pitch].
template <int stride>
void fill_lines(const PlaneConv& c, const float* x, int row, int rows, float* lines) {
  const int first = row * c.stride - c.padding[0], count = (rows - 1) * c.stride + c.kernel[0];
  for (int r = first; r < first + count; ++r, lines += stride * c.pitch) {
    const bool there = r >= 0 && r < c.height;
    copy_row<stride>(x + int64_t(there ? r : 0) * c.width, there ? c.width : 0, -c.padding[1], c.pitch, lines,
                     lines + c.pitch);
  }
}

// R rows of y, the first of which begins to read at `lines`, to `sums` [R][pitch]. K: the size of the filters, or 0.
template <int K, int stride, int R>
EXPLAINFIX_INLINE void filter_rows(const PlaneConv& c, const float* weight, const float* lines, float* sums) {
  const int kh = K ? K : c.kernel[0], kw = K ? K : c.kernel[1];
  for (int v = 0; v < c.out_width; v += kLanes) {
    V acc[R] = {};
    EXPLAINFIX_UNROLL for (int row = 0; row < (R - 1) * stride + kh; ++row) {
      EXPLAINFIX_UNROLL for (int j = 0; j < kw; ++j) {
        const V x = load(lines + (row * stride + j % stride) * c.pitch + j / stride + v);
        EXPLAINFIX_UNROLL for (int r = 0; r < R; ++r) {
          const int i = row - r * stride;
          if (i >= 0 && i < kh) acc[r] += weight[i * kw + j] * x;
        }
      }
    }
    EXPLAINFIX_UNROLL for (int r = 0; r < R; ++r) store(sums + r * c.pitch + v, acc[r]);
  }
}

template <int K, int stride>
void plane_conv_of(const PlaneConv& c, int64_t plane, float* scratch) {
  const int channel = int(plane % c.channels);
  const float *x = c.x + plane * c.height * c.width, *weight = c.weight + int64_t(channel) * c.kernel[0] * c.kernel[1];
  float *sums = scratch, *lines = scratch + int64_t(c.band) * c.pitch;
  for (int row = 0; row < c.out_height; row += c.band) {
    const int rows = c.out_height - row < c.band ? c.out_height - row : c.band;
    fill_lines<stride>(c, x, row, rows, lines);
    for (int r = 0; r < rows; r += kRowsAtOnce) {
      with_count<kRowsAtOnce>(rows - r < kRowsAtOnce ? rows - r : kRowsAtOnce, [&](auto R) {
        filter_rows<K, stride, R()>(c, weight, lines + int64_t(r) * stride * stride * c.pitch, sums + r * c.pitch);
      });
    }
    const int64_t first = (plane * c.out_height + row) * c.out_width;
    finish_rows(c.finish, channel, first, sums, c.pitch, rows, c.out_width, c.y);
  }
}

// Task: a plane of y. Scratch: the sums of a band, and the lines that it reads.
inline void plane_conv(const PlaneConv& c, int64_t plane, float* scratch) {
  const int kernel = c.kernel[0] == c.kernel[1] ? c.kernel[0] : 0;
  if (c.stride == 1) {
    kernel == 3   ? plane_conv_of<3, 1>(c, plane, scratch)
    : kernel == 5 ? plane_conv_of<5, 1>(c, plane, scratch)
                  : plane_conv_of<0, 1>(c, plane, scratch);
  } else {
    kernel == 3   ? plane_conv_of<3, 2>(c, plane, scratch)
    : kernel == 5 ? plane_conv_of<5, 2>(c, plane, scratch)
                  : plane_conv_of<0, 2>(c, plane, scratch);
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
