// Reads `packed` of the sparse index kernel, as Python's pack_sparse_index lays it out (shared/packed_layout.h): which
// channels are computed together, and the row of z of each of their functions. lists.cuh reads the lists.
#pragma once

#include "cuda/device/common/device.cuh"
#include "shared/packed_layout.h"

namespace explainfix {
namespace device {

// One direction, forward or input gradient. A group has the blocks from first_of(group) to
// first_of(group + 1).
struct SparsePacked {
  const int32_t* words;
  int groups;
  bool input_grad;

  __device__ int first_of(int group) const { return words[(input_grad ? groups + 1 : 0) + group]; }
  __device__ SparseBlock block(int i) const {
    return reinterpret_cast<const SparseBlock*>(words + 2 * (groups + 1))[i];
  }
};

// Some channels of a block: those that are read to shared memory at once.
template <class V>
struct SparseChunk {
  int block, begin, end, left;  // left: channels that the block has after these
  int rows;                     // where the row numbers of the channels are in `packed`

  // Channels of block i from `begin` on, at most `most`.
  __device__ SparseChunk(const SparsePacked& packed, int i, int begin, int most) : block(i), begin(begin) {
    const SparseBlock b = packed.block(i);
    end = begin + most < b.end ? begin + most : b.end;
    left = b.end - end;
    rows = b.rows + (begin - b.begin) * V::numbers;
  }
  __device__ SparseChunk next(const SparsePacked& packed, int most) const {
    return SparseChunk(packed, block + ends_block(), end, most);  // blocks of a group and their channels are in order
  }
  __device__ int channels() const { return end - begin; }
  __device__ bool ends_block() const { return left == 0; }

  // Copies its row numbers to shared memory, in the background.
  __device__ void copy_numbers(const SparsePacked& packed, int32_t* numbers) const {
    for (int at = threadIdx.x * 4; at < channels() * V::numbers; at += blockDim.x * 4) {
      copy_16_async(numbers + at, packed.words + rows + at, true);
    }
  }
};

}  // namespace device
}  // namespace explainfix
