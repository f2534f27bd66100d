// A convolution by a horizontal and a vertical filter a channel with a fast Walsh-Hadamard transform between them, cut
// into tiles of pixels: what the driver (cpu/driver/hadamard.cpp) works out once a call, and what the kernel
// (cpu/tile/hadamard.h) reads.
//
// A tile is computed in passes. A pass reads some channels of x, filters each along the first axis and adds the results
// to rows of z; transforms z, row against row; and writes some channels of y, each a sum of rows of z filtered along
// the second axis. Forward, the first axis is the horizontal one: stride and width are taken there, before the
// transform. The input gradient is the transposed convolution: first vertical, then horizontal.
#pragma once

#include "cpu/tile/tiled_conv.h"

namespace explainfix {

// Adds channel `channel` of x, filtered by `taps`, to a row of z.
struct HadamardRead {
  int32_t channel, row;
  bool adds;  // else it is the row's first
  const float* taps;
};

// A row of z and the taps by which it goes into an output.
struct HadamardTerm {
  int32_t row;
  const float* taps;
};

struct HadamardPass {
  int32_t read_begin, read_end;      // of `reads`, channels ascending
  int32_t write_begin, write_end;    // of `writes`
  int32_t unread_begin, unread_end;  // of `unread`
};

// One axis of the convolution that x and y belong to: forward from x to y, else from y to x.
struct HadamardAxis {
  int kernel, stride, padding;
};

constexpr int kMaxHadamardKernel = 16;
constexpr int kHadamardSteps = 16;   // at most: steps of the transform, of a bit at least
constexpr int kBlockPixels = 16;     // of z that are transformed at once: a cache line of each row
constexpr int kJoinedChannels = 16;  // at most, that are read or written together: a vector's
constexpr int kSegmentFloats =
    256;  // of a padded tile's outputs that are computed before they are copied to y, or a row

struct HadamardConv {
  Planes x, y;
  bool x_joined, y_joined;  // channels are neighbours in memory: up to a vector of them are read or written together
  const float* bias;        // of y's channels, or null
  Finish finish;
  int height, width, out_height, out_width;  // of x and of y
  bool transposed;                           // the input gradient
  HadamardAxis vertical, horizontal;

  int images, groups, passes;  // passes: of a group
  const HadamardPass* pass;    // [groups][passes]
  const HadamardRead* reads;
  const int32_t* writes;     // channels of y, ascending
  const HadamardTerm* term;  // [write][terms]
  const int32_t* unread;     // rows of z that no channel is read for
  int terms;

  // Flat tiles (hadamard_flat.h), else padded ones. Flat ones have masks of the lanes whose neighbour is in the row,
  // for each tap of the horizontal filter and vector of a tile.
  bool flat;
  const uint16_t* inside[kMaxHadamardKernel];

  // z: `branches` blocks of `order` rows, transformed apart in `steps`, each of the bits of a row's number in its mask.
  int order, branches, steps;
  int step[kHadamardSteps];

  // Tiles of y, and scratch memory, in floats: rows of z; planes of lines of x; segments of lines of y; and a block of
  // the transform.
  int tile_rows, tile_columns, row_tiles, column_tiles;
  int64_t row_floats, plane, segment;
  int64_t z_size, lines_size, out_size;
};

}  // namespace explainfix
