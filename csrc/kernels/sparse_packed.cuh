// `packed` of the filter-sparse kernel, as packing_cuda.py lays it out.
#pragma once

#include <cstdint>

#include "device.cuh"

namespace explainfix {
namespace device {

struct SparseBlock {
  int32_t begin, end;    // channels, counted over all groups
  int32_t rows, bounds;  // where these are in `packed`
};

// The first block of a group, in one of the directions; what follows its last one is the next group's.
__device__ inline const SparseBlock* blocks_of(const int32_t* packed, bool gradient, int group, int groups) {
  const auto* blocks = reinterpret_cast<const SparseBlock*>(packed + 2 * (groups + 1));
  return blocks + packed[(gradient ? groups + 1 : 0) + group];
}

// Some channels of a block: those that are staged at once.
struct SparseChunk {
  const SparseBlock* block;
  int begin, end;

  __device__ SparseChunk(const SparseBlock* block, int begin, int most)
      : block(block), begin(begin), end(begin + most < block->end ? begin + most : block->end) {}
  __device__ int channels() const { return end - begin; }
  __device__ bool ends_block() const { return end == block->end; }
  __device__ SparseChunk next(int most) const {
    return ends_block() ? SparseChunk(block + 1, block[1].begin, most) : SparseChunk(block, end, most);
  }
};

}  // namespace device
}  // namespace explainfix
