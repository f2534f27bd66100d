// A convolution cut into tiles of pixels: what the driver (cpu/driver) works out once a call, and what the tile kernels
// of an instruction set then read.
//
// The pixels of a tile are lanes of vectors. They are consecutive pixels of the *grid*: the output's pixels, plus those
// input pixels that lie outside of it, row after row without gaps. On the grid every tap of a filter is a shift by a
// constant; masks take away what a shift brings across an edge. So one kernel serves any padding, height and width.
//
// z[i, l] is input channel i filtered by basis function l. A row of z is that response at the pixels of a sub-tile.
#pragma once

#include <cstdint>

#include "cpu/tile/inference.h"
#include "shared/packed_layout.h"
#include "shared/passes.h"

namespace explainfix {

constexpr int kMaxKernel = 7;
constexpr int kMaxShift = kMaxKernel / 2;
constexpr int kNoFunction = kMaxKernel * kMaxKernel;  // the zero filter's

// A tensor (N, C, H, W): float32, or bfloat16 as uint16. Strides in elements.
struct Planes {
  void* data;
  bool bf16;
  int64_t n, c, h, w;
};

// The lists of one chunk of outputs, which say which rows of z each output adds. A task takes whole chunks.
struct QuadList {
  int32_t size;          // quads
  const Quad* quad;      // [size]
  const uint16_t* rows;  // quad after quad: [count][4 outputs]
};

// Input channels whose responses z fit the cache together. A tile is computed block after block.
struct Block {
  int32_t channel_begin, channel_end, rows, segments;
  const Segment* segment;
  const TransformOp* op;
  const QuadList* list;  // one for each chunk of outputs; sparse index family only
};

struct TiledConv {
  Planes x, y;
  const float* bias;                              // (O) or null
  Finish finish;                                  // where it does anything, y is planes of float32
  int images, groups, in_channels, out_channels;  // channels of one group
  int height, width, out_height, out_width;
  int kernel, stride;

  // Output pixel p lies at grid pixel p + origin; input pixel i at (i + offset) / stride, and the rest is its phase.
  int grid_h, grid_w, origin_y, origin_x, offset_y, offset_x;
  bool staged;  // x is copied tile by tile into scratch; else it is float32 planes that are the grid, read in place
  bool x_is_grid, y_is_grid;  // the plane's pixels are the grid's, one row after the other without gaps
  bool direct_store;          // y is float32 planes that are the grid: the last block stores to it, without a copy
  int span_images;            // images that share one flat range of pixels, a span
  int64_t span_pixels;
  int vectors, tile_vectors, tiles;  // of a span

  // Masks of the lanes whose neighbour, `shift` rows (columns) away, is in the plane: [kMaxShift + shift][1 + vector].
  const uint16_t* rows_in[2 * kMaxShift + 1];
  const uint16_t* cols_in[2 * kMaxShift + 1];

  // The basis. separable: function u * K + v is the outer product of table[u] and table[v], where even rows of the
  // table are symmetric and odd ones antisymmetric. Otherwise functions are given by their taps.
  bool separable;
  float table[kMaxKernel * kMaxKernel];
  float scale;
  const float* taps;  // [L][K * K], scaled
  int rank;           // L

  // What differs by family. Low rank: S[o, i, l] lies at o * coeff_out + i * coeff_in + l in its group.
  const float* coeff;
  int64_t coeff_out, coeff_in, group_coeff;
  const int32_t* names;        // depthwise: the DCT function of each output channel, ~ its negative, or kNoFunction
  const Block* block;          // of group 0, then of group 1, ...
  const int32_t* block_begin;  // group g has blocks [block_begin[g], block_begin[g + 1])
  bool group_blocks;           // else all groups share the same, those of group 0
  int chunks;                  // of the outputs
  int parts;                   // tasks that share the outputs of a tile

  // Scratch memory of a thread, in floats: z, then y, then the staged planes, then lines of the separable transform.
  int64_t z_sub, y_sub;  // of a sub-tile
  int64_t stage_channel, stage_phase;
  int64_t z_size, y_size, stage_size, line_size;
};

// Input channels, of the gradient with stride 2, whose sums of output gradients fit the cache together.
struct Stride2Block {
  int32_t channel_begin, channel_end;
  const int32_t* row;    // [channel][functions]: the row of g that has the function's sum, 0 where no filter uses it
  const QuadList* list;  // one for each block of outputs; sparse index family only
};

// The input gradient with stride 2. Lanes are dy's pixels. dx is written in two parts, its even and its odd rows.
struct Stride2Grad {
  TiledConv grid;         // its x is dy, and its in_channels are the outputs of a group
  TiledConv parities[2];  // their y: the rows of dx of one parity, on the grid with twice its width
  const Stride2Block* block;
  int blocks, out_blocks, functions;
  bool group_blocks;  // `block` has the blocks of group 0, then of group 1, ...; else all groups share the same
  int before, after;  // the halo of a tile, in vectors

  // Scratch memory of a thread, in floats: z, then g, then the taps and the planes of dx.
  int64_t z_sub, z_size, g_size, line, dx_parity;
};

struct HadamardConv;   // cpu/tile/hadamard_conv.h
struct PointwiseConv;  // cpu/tile/inference.h
struct PlaneConv;
struct Pooling;  // shared/pooling.h

// The kernels that each instruction set brings (cpu/tile/isa.h); cpu/driver/choose_isa.cpp picks one of these tables.
// A task is numbered from 0; `scratch` is the thread's own.
struct TileKernels {
  int lanes;
  int sparse_index_vectors, low_rank_vectors;  // vectors in a sub-tile: the pitch of a row of z
  int pointwise_vectors;                       // in a tile, at most
  void (*sparse_index)(const TiledConv&, int64_t task, float* scratch);
  void (*low_rank)(const TiledConv&, int64_t task, float* scratch);
  void (*depthwise)(const TiledConv&, int64_t task, float* scratch);
  void (*hadamard)(const HadamardConv&, int64_t task, float* scratch);
  void (*sparse_index_stride2_grad)(const Stride2Grad&, int64_t task, float* scratch);
  void (*low_rank_stride2_grad)(const Stride2Grad&, int64_t task, float* scratch);
  void (*pointwise)(const PointwiseConv&, int64_t task, float* scratch);
  void (*plane_conv)(const PlaneConv&, int64_t task, float* scratch);
  void (*finish)(const Finish&, int channels, int64_t pixels, float* y, int64_t begin, int64_t end);    // planes of y
  void (*max_pool)(const Pooling&, const float* x, float* y, int64_t begin, int64_t end, float* line);  // planes
  void (*mean_planes)(const float* x, int64_t pixels, float* y, int64_t planes);
  RunPass pass;
  uint16_t (*largest)(const uint16_t* number, int64_t count);  // 0 of none
};

}  // namespace explainfix
