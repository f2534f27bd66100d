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
  int begin, end, rows;  // rows: where the channels' are
  bool ends_block;

  __device__ int channels() const { return end - begin; }

  // The first one of a block.
  template <class V>
  __device__ static SparseChunk first(const SparseBlock* block, int most) {
    return part<V>(block, *block, block->begin, most);
  }
  template <class V>
  __device__ SparseChunk next(int most) const {
    return ends_block ? first<V>(block + 1, most) : part<V>(block, *block, end, most);
  }

 private:
  template <class V>
  __device__ static SparseChunk part(const SparseBlock* block, SparseBlock values, int begin, int most) {
    const bool ends = begin + most >= values.end;
    return {block, begin, ends ? values.end : begin + most, values.rows + (begin - values.begin) * V::numbers, ends};
  }
};

}  // namespace device
}  // namespace explainfix
