// The lists of Python's pack_sparse_index, and the additions that they ask for, by tensor cores. A step of a list is
// sums of 16 outputs += factors (16 x 16, each 2, -2 or 0) times 16 rows of z. Called by the sparse index kernel.
#pragma once

#include "cuda/device/sparse_index/instructions.cuh"
#include "cuda/device/sparse_index/packed.cuh"
#include "cuda/device/sparse_index/tile.h"

namespace explainfix {
namespace device {

constexpr int kListWords = kSparseRows / kSparseStepRows * kSparseStepWords;  // at most: of a list that has every row
constexpr float kFactor = 2;  // the factors of lists, instead of 1: a number of one bit in bf16 and in fp16

// A lane's part of the sums of 16 outputs: [group of 8 pixels][its 4 numbers of a tensor core's result].
template <class V>
using Sums = float[V::pixels / 8][4];

// Adds a step. row: where the row of z is whose address this lane passes to ldmatrix. Tensor cores do not add as
// exactly as float32 requires: there they add up the three terms of one step only, and the rest is added outside.
template <class V>
__device__ void add_rows(const uint32_t (&factors)[4], const unsigned char* row, Sums<V>& sums) {
  using Operand = std::conditional_t<V::terms == 1, typename V::Element, Bf16>;
#pragma unroll
  for (int part = 0; part < V::pixels / 8; part += 2) {
    float step[2][4] = {};
#pragma unroll
    for (int term = 0; term < V::terms; ++term) {
      uint32_t z[4];
      load_transposed_matrices(z, row + term * V::pixels * 2 + part * 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply(Operand{}, V::terms == 1 ? sums[part + i] : step[i], factors, {z[2 * i], z[2 * i + 1]});
      }
    }
    if constexpr (V::terms > 1) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[part + i / 4][i % 4] += step[i / 4][i % 4];
    }
  }
}

// The lists of a warp in one block of channels, which follow each other in memory.
template <class V>
struct WarpLists {
  int at;  // the lane's word of the next step
  uint32_t word;
  int end[V::lists];  // multiples of a step's words, as `at` is but for the lane

  // Finds the warp's lists from its first one on; a block has `count`. Called before responses are made, so that the
  // first word has arrived afterwards. The step after the last one is read, too.
  __device__ void open(const SparsePacked& packed, int32_t bounds, int first, int count) {
    first = opaque(first);
    const int32_t* begins = packed.words + packed.offset(bounds, count + 1);
    const auto begin_of = [&](int list) {
      return packed.offset(begins[list < count ? list : count], kSparseStepWords) & -kSparseStepWords;
    };
    int begin = begin_of(first);
    at = begin + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < V::lists; ++i) {
      const int words = begin_of(first + i + 1) - begin;
      end[i] = begin += words < kListWords ? words : kListWords;
    }
    word = uint32_t(packed.words[at]);
  }

  // Lane l passes to ldmatrix row 8 n + l % 8, where n is byte 0 of its word; lanes from 16 on the 8 pixels after.
  __device__ void add(const int32_t* packed, const unsigned char* z, Sums<V> (&sums)[V::lists]) {
    z += threadIdx.x % kSparseBanks * V::row_bytes + (threadIdx.x & 16);
#pragma unroll
    for (int i = 0; i < V::lists; ++i) {
#pragma unroll 1
      while (at < end[i]) {
        const uint32_t now = word;
        word = uint32_t(packed[at += kSparseStepWords]);
        uint32_t factors[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) factors[j] = now << 2 * j & 0xc000c000u;
        add_rows<V>(factors, z + bounded(now & 0xff, kSparseRows / kSparseBanks - 1) * kSparseBanks * V::row_bytes,
                    sums[i]);
      }
    }
  }
};

}  // namespace device
}  // namespace explainfix
