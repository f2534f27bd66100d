// Reads `packed` of the sparse index kernel, as Python's pack_sparse_index lays it out (shared/packed_layout.h): which
// channels are computed together, and the row of z of each of their functions. lists.cuh reads the lists.
//
// Whoever calls the op may bring any words, and the host cannot look at them without waiting for the device. So every
// word is bounded before something is found by it: other words than Python's make wrong numbers, but nothing is read or
// written outside, and no loop goes on. That there are enough words for one chunk, the launcher checks (sparse_words).
#pragma once

#include "cuda/device/common/elements.cuh"
#include "shared/packed_layout.h"

namespace explainfix {
namespace device {

// A word that must be a number from 0 to `most`; `most` if it is none.
__device__ inline int bounded(int32_t word, int most) { return uint32_t(word) < uint32_t(most) ? word : most; }

// One direction, forward or input gradient. The blocks of a group follow each other from first_of(group) on.
struct SparsePacked {
  const int32_t* words;
  int size, groups;
  bool input_grad;

  __device__ int first_of(int group) const {
    return bounded(words[(input_grad ? groups + 1 : 0) + group], size / kSparseBlockWords);
  }
  __device__ SparseBlock block(int i) const {
    const int head = 2 * (groups + 1);
    return reinterpret_cast<const SparseBlock*>(words + head)[bounded(i, (size - head) / kSparseBlockWords - 1)];
  }
  // An offset at which there are `count` words.
  __device__ int offset(int32_t word, int count) const { return bounded(word, size - count); }
};

// Some channels of a block: those that are read to shared memory at once.
template <class V>
struct SparseChunk {
  int block, begin, end;
  bool ends_block;  // the block has no channels after these
  int rows;         // where the row numbers of the channels are in `packed`

  // Channels of block i from `begin` on, at most `most`, of a group that ends at `last`. There is a read of channels at
  // least, and whole ones, so that every chunk goes on.
  __device__ SparseChunk(const SparsePacked& packed, int i, int begin, int most, int last) : block(i), begin(begin) {
    const SparseBlock b = packed.block(i);
    const int whole = b.end & -V::channels, least = begin + V::channels;
    const int block_end = whole < least ? least : whole < last ? whole : last;
    end = begin + most < block_end ? begin + most : block_end;
    ends_block = end == block_end;
    const uint32_t at = uint32_t(b.rows) + (uint32_t(begin) - uint32_t(b.begin)) * V::numbers;
    rows = packed.offset(int32_t(at), channels() * V::numbers) & -4;  // copied four at a time
  }
  __device__ SparseChunk next(const SparsePacked& packed, int most, int last) const {
    return SparseChunk(packed, block + ends_block, end, most, last);  // blocks and their channels are in order
  }
  __device__ int channels() const { return end - begin; }

  // Copies its row numbers to shared memory, in the background.
  __device__ void copy_numbers(const SparsePacked& packed, int32_t* numbers) const {
    for (int at = threadIdx.x * 4; at < channels() * V::numbers; at += blockDim.x * 4) {
      copy_16_async(numbers + at, packed.words + rows + at, true);
    }
  }
  // Bounds those that this thread has copied, when they have arrived: once, and not for each pair that is stored.
  __device__ void bound_numbers(int32_t* numbers) const {
    for (int at = threadIdx.x * 4; at < channels() * V::numbers; at += blockDim.x * 4) {
      auto* four = reinterpret_cast<Vector<int32_t, 4>*>(numbers + at);
      Vector<int32_t, 4> number = *four;
#pragma unroll
      for (int i = 0; i < 4; ++i) number.at[i] = bounded(number.at[i], kSparseRows - 1);
      *four = number;
    }
  }
};

}  // namespace device
}  // namespace explainfix
