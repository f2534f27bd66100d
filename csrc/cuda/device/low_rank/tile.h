// How a low-rank convolution is cut into blocks: plain arithmetic, for the launcher, the kernel and the tests alike.
#pragma once

#include "shared/conv_params.h"

#ifdef __CUDACC__
#define EXPLAINFIX_HOST_DEVICE __host__ __device__
#else
#define EXPLAINFIX_HOST_DEVICE
#endif

namespace explainfix {

constexpr int kTilePixels = 128;   // of a block, all channels_last: rows x columns x images
constexpr int kRoleThreads = 256;  // that multiply, and as many that make what is multiplied
constexpr int kStepBytes = 32;  // of the channels of a pixel that a step takes: what one tensor core instruction reads
constexpr int kPackedOutputs = 64;  // outputs in `packed` are a multiple of this
constexpr int kMaxRank = 9;
constexpr int kProductRowsLog2 = 2;  // rows of a tile are a multiple of 4 for ProductResponses
constexpr int kMaxHalo = 1024;       // pixels that a tile reads

struct LowRank {
  ConvShape shape;
  int rank;
  int rows_log2, columns_log2;  // of a tile
  bool flipped;                 // the functions, for the input gradient
  bool relu;
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
    return (group_channels() * element_bytes + kStepBytes - 1) / kStepBytes;
  }
  EXPLAINFIX_HOST_DEVICE int64_t tile_rows() const { return (shape.out_height + rows() - 1) >> rows_log2; }
  EXPLAINFIX_HOST_DEVICE int64_t tile_columns() const { return (shape.out_width + columns() - 1) >> columns_log2; }
  EXPLAINFIX_HOST_DEVICE int64_t tile_images() const { return (shape.images + images() - 1) / images(); }
  EXPLAINFIX_HOST_DEVICE int64_t tiles() const { return tile_rows() * tile_columns() * tile_images(); }
};

// Where things lie in shared memory, in bytes. Two of everything that a step reads, so that the next one's is made or
// fetched meanwhile. The result, which goes out through shared memory to be stored in whole lines, overlays all.
struct LowRankShared {
  int taps, places, halo, left, right, end;  // of the first of two
  int halo_step, left_step, right_step;

  EXPLAINFIX_HOST_DEVICE LowRankShared(const LowRank& p, int outputs, int tap_count, int element_bytes) {
    halo_step = p.halo() * kStepBytes;
    left_step = p.rank * kTilePixels * kStepBytes;
    right_step = p.rank * outputs * kStepBytes;
    taps = 0;
    places = taps + tap_count * int(sizeof(float));
    halo = (places + p.halo() * int(sizeof(int)) + 127) / 128 * 128;
    left = halo + 2 * halo_step;
    right = left + 2 * left_step;
    end = right + 2 * right_step;
    const int result = kTilePixels * result_pitch(outputs, element_bytes);
    if (end < result) end = result;
  }

  // 16 bytes more than a row, so that the rows of a fragment meet different banks.
  EXPLAINFIX_HOST_DEVICE static constexpr int result_pitch(int outputs, int element_bytes) {
    return outputs * element_bytes + 16;
  }
};

// The tile of 128 pixels that does least: it makes and multiplies responses for all its pixels, also those beyond the
// edge, and reads its halo. A pixel is taken for twice the work of one of the halo, which is right for small L.
inline void choose_tile(LowRank* p, bool products) {
  int64_t best = INT64_MAX;
  int best_rows = 0, best_columns = 0;
  for (int columns = 4; columns >= 0; --columns) {  // of equals the widest: neighbours in a row are so in memory
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

// Outputs of a block: 128 if that pads no more than 64 does, and there are blocks for every multiprocessor. In strict
// float32 a thread of 512 has no registers for its part of the sums of 128.
inline int choose_outputs(const LowRank& p, bool strict, int64_t multiprocessors) {
  const int outputs = p.group_outputs();
  const int64_t wide = (outputs + 127) / 128, narrow = (outputs + 63) / 64;
  return strict || 2 * wide > narrow || p.tiles() * p.shape.groups * wide < multiprocessors ? 64 : 128;
}

inline int64_t blocks_of(const LowRank& p, int outputs) {
  return p.tiles() * p.shape.groups * ((p.group_outputs() + outputs - 1) / outputs);
}

// Elements of one direction of `packed`: [groups][chunks][rank][outputs][channels of a chunk].
inline int64_t packed_elements(int64_t groups, int64_t channels, int64_t outputs, int64_t rank, int element_bytes) {
  const int64_t chunk = kStepBytes / element_bytes;
  const int64_t padded = (outputs + kPackedOutputs - 1) / kPackedOutputs * kPackedOutputs;
  return groups * ((channels + chunk - 1) / chunk) * rank * padded * chunk;
}

}  // namespace explainfix
