// How a low-rank convolution is cut into tiles and steps, and where things lie in shared memory. Plain C++, shared by
// the launcher (cuda/launch/low_rank.cu), the kernel (low_rank.cuh) and the emulation's tests.
//
// A thread block computes a tile of 128 output pixels for 64 or 128 outputs, in steps: a step takes 32 bytes of input
// channels. The input pixels that a tile reads are its halo.
#pragma once

#include "shared/conv_params.h"
#include "shared/packed_layout.h"

#ifdef __CUDACC__
#define EXPLAINFIX_HOST_DEVICE __host__ __device__
#else
#define EXPLAINFIX_HOST_DEVICE
#endif

namespace explainfix {

constexpr int kTilePixels = 128;   // of a tile: rows x columns x images, each a power of two
constexpr int kRoleThreads = 256;  // of a thread block multiply; as many more make what is multiplied
constexpr int kMaxRank = 9;
constexpr int kProductRowsLog2 = 2;  // ProductResponses needs tiles with a multiple of 4 rows
constexpr int kMaxHalo = 1024;       // pixels of a halo, at most

// A call, as the kernel gets it.
struct LowRank {
  ConvShape shape;
  int rank;                     // L, the number of functions
  int rows_log2, columns_log2;  // of a tile
  bool flipped;                 // use the functions upside down and mirrored: the input gradient
  bool relu;                    // apply ReLU to the result; no launcher asks for it yet, the tests do
  float scale;

  EXPLAINFIX_HOST_DEVICE int rows() const { return 1 << rows_log2; }
  EXPLAINFIX_HOST_DEVICE int columns() const { return 1 << columns_log2; }
  EXPLAINFIX_HOST_DEVICE int images() const { return kTilePixels >> (rows_log2 + columns_log2); }
  EXPLAINFIX_HOST_DEVICE int halo_rows() const { return (rows() - 1) * shape.stride[0] + shape.kernel[0]; }
  EXPLAINFIX_HOST_DEVICE int halo_columns() const { return (columns() - 1) * shape.stride[1] + shape.kernel[1]; }
  EXPLAINFIX_HOST_DEVICE int halo() const { return images() * halo_rows() * halo_columns(); }
  EXPLAINFIX_HOST_DEVICE int taps() const { return shape.kernel[0] * shape.kernel[1]; }
  EXPLAINFIX_HOST_DEVICE int group_channels() const { return int(shape.in_channels / shape.groups); }
  EXPLAINFIX_HOST_DEVICE int group_outputs() const { return int(shape.out_channels / shape.groups); }
  EXPLAINFIX_HOST_DEVICE int steps(int element_bytes) const {
    return (group_channels() * element_bytes + kLowRankStepBytes - 1) / kLowRankStepBytes;
  }
  EXPLAINFIX_HOST_DEVICE int64_t tile_rows() const { return (shape.out_height + rows() - 1) >> rows_log2; }
  EXPLAINFIX_HOST_DEVICE int64_t tile_columns() const { return (shape.out_width + columns() - 1) >> columns_log2; }
  EXPLAINFIX_HOST_DEVICE int64_t tile_images() const { return (shape.images + images() - 1) / images(); }
  EXPLAINFIX_HOST_DEVICE int64_t tiles() const { return tile_rows() * tile_columns() * tile_images(); }
};

// Where things lie in shared memory, in bytes. There are two of everything that a step reads, so that the next step's
// is made or fetched meanwhile. The result overlays all of it: it goes out through shared memory, to be stored in whole
// lines.
struct LowRankShared {
  int taps;         // of the functions
  int places;       // where each pixel of the halo is in x
  int halo;         // x
  int left, right;  // the operands of the product: z, and the coefficients
  int end;
  int halo_step, left_step, right_step;  // from the first of two to the second

  EXPLAINFIX_HOST_DEVICE LowRankShared(const LowRank& p, int outputs, int tap_count, int element_bytes) {
    halo_step = p.halo() * kLowRankStepBytes;
    left_step = p.rank * kTilePixels * kLowRankStepBytes;
    right_step = p.rank * outputs * kLowRankStepBytes;
    taps = 0;
    places = taps + tap_count * int(sizeof(float));
    halo = (places + p.halo() * int(sizeof(int)) + 127) / 128 * 128;
    left = halo + 2 * halo_step;
    right = left + 2 * left_step;
    end = right + 2 * right_step;
    const int result = kTilePixels * result_pitch(outputs, element_bytes);
    if (end < result) end = result;
  }

  // 16 bytes more than a row, so that the rows that a warp writes together lie in different banks.
  EXPLAINFIX_HOST_DEVICE static constexpr int result_pitch(int outputs, int element_bytes) {
    return outputs * element_bytes + 16;
  }
};

// Chooses the shape of the tile that makes the least work: a tile makes and multiplies responses for all of its pixels,
// also for those beyond the edge, and reads its halo. A pixel counts as twice the work of one of the halo, which is
// right for small L.
inline void choose_tile(LowRank* p, bool products) {
  int64_t best = INT64_MAX;
  int best_rows = 0, best_columns = 0;
  for (int columns = 4; columns >= 0; --columns) {  // of equals the widest, whose pixels are neighbours in memory
    for (int rows = 4; rows >= (products ? kProductRowsLog2 : 0); --rows) {
      if (rows + columns > 7) continue;
      p->rows_log2 = rows;
      p->columns_log2 = columns;
      const int64_t cost = p->tiles() * (2 * kTilePixels + p->halo());
      if (p->halo() > kMaxHalo || cost >= best) continue;
      best = cost;
      best_rows = rows;
      best_columns = columns;
    }
  }
  p->rows_log2 = best_rows;
  p->columns_log2 = best_columns;
}

// Outputs of a block: 128 if that pads no more than 64 would, and there are blocks for every multiprocessor; else 64.
// In strict float32 always 64: a thread has no registers for its part of the sums of 128.
inline int choose_outputs(const LowRank& p, bool strict, int64_t multiprocessors) {
  const int outputs = p.group_outputs();
  const int64_t wide = (outputs + 127) / 128, narrow = (outputs + 63) / 64;
  return strict || 2 * wide > narrow || p.tiles() * p.shape.groups * wide < multiprocessors ? 64 : 128;
}

inline int64_t blocks_of(const LowRank& p, int outputs) {
  return p.tiles() * p.shape.groups * ((p.group_outputs() + outputs - 1) / outputs);
}

// Elements of one direction of `packed`, forward or input gradient: [groups][steps][rank][outputs][channels of a step].
inline int64_t packed_elements(int64_t groups, int64_t channels, int64_t outputs, int64_t rank, int element_bytes) {
  const int64_t step = kLowRankStepBytes / element_bytes;
  const int64_t padded = (outputs + kLowRankOutputs - 1) / kLowRankOutputs * kLowRankOutputs;
  return groups * ((channels + step - 1) / step) * rank * padded * step;
}

}  // namespace explainfix
