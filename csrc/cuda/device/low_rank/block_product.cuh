// The matrix product of a step of the low-rank kernel, by the multipliers of a thread block:
//   sums[128 pixels][outputs] += left[128][32 bytes] * right[outputs][32 bytes]^T
// The operands are in shared memory, the sums in registers. There is a class for the tensor cores and one for strict
// float32, which the multiply-adders compute.
//
// Rows of operands are 32 bytes, in two halves of 16. Rows 4 to 7 of every 8 have their halves exchanged, so that the 8
// rows that load_matrices reads together lie in different banks.
#pragma once

#include "cuda/device/common/elements.cuh"
#include "cuda/device/low_rank/tile.h"

namespace explainfix {
namespace device {

// The thread's number among the makers; negative for multipliers, which are the block's first threads.
__device__ inline int maker() { return int(threadIdx.x) - kRoleThreads; }

// Where half a row of an operand lies, in bytes.
__device__ inline int operand_offset(int row, int half) {
  return row * kLowRankStepBytes + ((half ^ (row >> 2 & 1)) << 4);
}

// Elements of 16 bits: two in a word.
template <class T>
struct HalfProduct {
  using Element = T;
  __device__ static uint32_t to_word(const float (&v)[2]) { return pair_bits(T(), v[0], v[1]); }
  __device__ static void unpack(uint32_t word, float (&v)[2]) { unpack_pair(T(), word, v[0], v[1]); }
};

struct Bf16Product : HalfProduct<Bf16> {
  __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_bf16(d, a, b);
  }
};

struct Fp16Product : HalfProduct<Fp16> {
  __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_fp16(d, a, b);
  }
};

// Strict float32.
struct Fp32Product {
  using Element = float;
  __device__ static uint32_t to_word(const float (&v)[1]) { return bits_of_float(v[0]); }
  __device__ static void unpack(uint32_t word, float (&v)[1]) { v[0] = float_of_bits(word); }
};

// The tensor cores cut off the last 13 bits of a float. To make them round to the nearest, half of the value of the
// last bit that stays is added before.
struct Tf32Product : Fp32Product {
  __device__ static uint32_t to_word(const float (&v)[1]) {
    const uint32_t bits = bits_of_float(v[0]);
    return v[0] != v[0] ? bits : bits + 0x1000;  // NaN may be 0x7fffffff: more would make it a number
  }
  __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t right[2] = {b[0] + 0x1000, b[1] + 0x1000};
    multiply_tf32(d, a, right);
  }
};

// The product on tensor cores. The 8 warps share the sums as 2 x 4 (of 128 outputs) or 4 x 2 (of 64): a warp has 64
// pixels x 32 outputs or 32 x 32.
template <class Product, int kOutputs>
class BlockProduct {
  static constexpr int kWarpColumns = kOutputs / 32, kWarpRows = 8 / kWarpColumns;
  static constexpr int kRows = kTilePixels / kWarpRows;

 public:
  __device__ void add(const unsigned char* left, const unsigned char* right) {
    const int lane = threadIdx.x % 32;
    uint32_t b[4][2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t both[4];
      load_matrices(both, right + operand_offset(column() + j * 16 + lane % 8 + lane / 16 * 8, lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 4; ++i) b[2 * j + i / 2][i % 2] = both[i];
    }
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      uint32_t a[4];
      load_matrices(a, left + operand_offset(row() + i * 16 + lane % 16, lane / 16));
#pragma unroll
      for (int j = 0; j < 4; ++j) Product::multiply(sums_[i][j], a, b[j]);
    }
  }

  // Calls f(pixel, output, of_output(output), sum of this output, sum of the next one) for all sums of this thread.
  template <class G, class F>
  __device__ void for_each_pair(G of_output, F f) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int output = column() + j * 8 + lane % 4 * 2;
      const auto both = of_output(output);
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
        for (int low = 0; low < 2; ++low) {
          f(row() + i * 16 + low * 8 + lane / 4, output, both, sums_[i][j][2 * low], sums_[i][j][2 * low + 1]);
        }
      }
    }
  }

 private:
  __device__ static int row() { return int(threadIdx.x) / 32 / kWarpColumns * kRows; }
  __device__ static int column() { return int(threadIdx.x) / 32 % kWarpColumns * 32; }

  float sums_[kRows / 16][4][4] = {};
};

// The product on multiply-adders. A thread has 8 pixels, 16 apart, and pairs of outputs, 32 apart.
template <int kOutputs>
class BlockProduct<Fp32Product, kOutputs> {
  static constexpr int kPairs = kOutputs / 32;

 public:
  __device__ void add(const unsigned char* left, const unsigned char* right) {
#pragma unroll 1  // the operands of more than one pair do not fit in registers
    for (int pair = 0; pair < 4; ++pair) {
      Vector<float, 2> a[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) a[i] = read(left, row() + i * 16, pair);
#pragma unroll
      for (int j = 0; j < 2 * kPairs; ++j) {
        const Vector<float, 2> b = read(right, column() + j / 2 * 32 + j % 2, pair);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
          for (int k = 0; k < 2; ++k) sums_[i][j] += a[i].at[k] * b.at[k];
        }
      }
    }
  }

  template <class G, class F>
  __device__ void for_each_pair(G of_output, F f) const {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const auto both = of_output(column() + j * 32);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        f(row() + i * 16, column() + j * 32, both, sums_[i][2 * j], sums_[i][2 * j + 1]);
      }
    }
  }

 private:
  // A warp has 4 rows and 8 pairs of outputs, so that each read is broadcast to the lanes that share it.
  __device__ static int row() { return int(threadIdx.x) % 32 / 8 + int(threadIdx.x) / 64 * 4; }
  __device__ static int column() { return (int(threadIdx.x) % 8 + int(threadIdx.x) / 32 % 2 * 8) * 2; }
  __device__ static Vector<float, 2> read(const unsigned char* rows, int row, int pair) {
    return *reinterpret_cast<const Vector<float, 2>*>(rows + operand_offset(row, pair / 2) + pair % 2 * 8);
  }

  float sums_[8][2 * kPairs] = {};
};

}  // namespace device
}  // namespace explainfix
