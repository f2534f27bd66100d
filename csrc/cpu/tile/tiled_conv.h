// A convolution cut into tiles of flat pixels: what the driver (tiling.h) works out once and the tile kernels read.
//
// Lanes are consecutive pixels of the grid: the output's pixels, plus those input pixels that lie outside of it, row
// after row without gaps. On the grid every tap of a filter is a shift by a constant; masks take away what a shift
// brings across an edge. So one kernel serves any padding, height and width.
#pragma once

#include <cstdint>

#include "shared/passes.h"

namespace explainfix {

constexpr int kMaxKernel = 7;
constexpr int kMaxShift = kMaxKernel / 2;
constexpr int kChunk = 64;  // outputs whose lists are sorted together

// A tensor (N, C, H, W): float32, or bfloat16 as uint16. Strides in elements.
struct Planes {
  void* data;
  bool bf16;
  int64_t n, c, h, w;
};

// Computes, for one channel, the responses to the basis functions (u, v) with v in `columns`, into consecutive rows of
// z.
struct TransformOp {
  int32_t channel, row, columns, prefetch;  // prefetch: a channel that is needed soon, or -1
};

// Ops of one kind in sequence, so that the branch on it predicts: u, or K for all K x K functions.
struct Segment {
  int32_t u, columns, begin, end;  // ops [begin, end) share `columns`
};

// Four outputs that are accumulated together, and how many rows each of them adds. Output `out_channels` is nobody's.
struct Quad {
  int32_t count, output[4];
};

// The quads of one chunk of the outputs; a task takes whole chunks. Quad after quad, `rows` holds [count][4].
struct QuadList {
  int32_t size;
  const Quad* quad;
  const uint16_t* rows;
};

// Input channels whose responses z fit the cache together.
struct Block {
  int32_t channel_begin, channel_end, rows, segments;
  const Segment* segment;
  const TransformOp* op;
  const QuadList* list;  // one for each chunk; index family only
};

struct TiledConv {
  Planes x, y;
  const float* bias;                              // (O) or null
  int images, groups, in_channels, out_channels;  // channels of one group
  int height, width, out_height, out_width;
  int kernel, stride;
  // Grid pixel (gy, gx) is output pixel (gy - origin); input pixel i lies at grid i + offset (before the stride).
  int grid_h, grid_w, origin_y, origin_x, offset_y, offset_x;
  bool staged;  // x is copied tile by tile into scratch; else it is float32 planes that are the grid, read in place
  bool direct_store;  // y is float32 planes that are the grid
  int span_images;    // images that share one flat pixel range
  int64_t span_pixels;
  int vectors, tile_vectors, tiles;  // of a span
  const uint16_t*
      rows_in[2 * kMaxShift + 1];  // [kMaxShift + shift][1 + vector]: lanes whose row + shift is in the plane
  const uint16_t* cols_in[2 * kMaxShift + 1];
  // The basis. separable: function u * K + v is table[u] x table[v], (anti)symmetric for even (odd) u; else taps.
  bool separable;
  float table[kMaxKernel * kMaxKernel];
  float scale;
  const float* taps;  // [L][K * K], scaled
  int rank;
  // Coefficients of the low-rank family: S[o * coeff_out + i * coeff_in + l].
  const float* coeff;
  int64_t coeff_out, coeff_in, group_coeff;
  const uint8_t* index;  // depthwise family: the function of each output channel
  const Block* block;    // of group 0, then of group 1, ...
  const int32_t* block_begin;
  int group_blocks;   // group g has blocks [block_begin[g * group_blocks], block_begin[g * group_blocks + 1])
  int chunks, parts;  // of the outputs; parts is how many tasks share the outputs of a tile
  // Scratch of a thread, in floats: z, then y, then the staged planes, then rows of the separable transform.
  int64_t z_sub, y_sub, stage_channel, stage_phase, z_size, y_size, stage_size, line_size;
};

// Input channels of the gradient with stride 2 whose sums of outputs fit the cache together.
struct AdjointBlock {
  int32_t channel_begin, channel_end;
  const int32_t* row;    // [channel][functions]: the row of g with the function's sum, 0 where no filter uses it
  const QuadList* list;  // one for each block of the outputs; index family only
};

// The input gradient with stride 2. Lanes are dy's pixels; dx comes in rows of either parity.
struct TransposedConv {
  TiledConv grid;     // x: dy; in_channels: the outputs of a group
  TiledConv rows[2];  // y: the rows of dx of one parity, on the grid with twice its width
  const AdjointBlock* block;
  int blocks, out_blocks, functions;
  bool group_blocks;  // block of group 0, then of group 1, ...; else all groups have the same
  int before, after;  // the halo, in vectors
  // Scratch of a thread, in floats: z, then g, the taps and the planes of dx.
  int64_t z_sub, z_size, g_size, line, dx_parity;
};

// What an instruction set brings.
struct TileKernels {
  int lanes, index_vectors, low_rank_vectors;  // vectors in a sub-tile: the pitch of a row of z
  void (*index)(const TiledConv&, int64_t task, float* scratch);
  void (*low_rank)(const TiledConv&, int64_t task, float* scratch);
  void (*depthwise)(const TiledConv&, int64_t task, float* scratch);
  void (*index_transposed)(const TransposedConv&, int64_t task, float* scratch);
  void (*low_rank_transposed)(const TransposedConv&, int64_t task, float* scratch);
  RunPass pass;
};

}  // namespace explainfix
