// The element types of the kernels that compute in float: 16-bit numbers with the bits and the rounding (to nearest,
// ties to even) of torch's, pairs of them in a word, and what one load or store moves.
#pragma once

#include "cuda/device/common/device.cuh"

namespace explainfix {
namespace device {

struct Bf16 {
  uint16_t bits;
  Bf16() = default;
  __device__ explicit Bf16(float value) : bits(bf16_bits(value)) {}
  __device__ explicit operator float() const { return float_of_bits(uint32_t(bits) << 16); }
};

struct Fp16 {
  uint16_t bits;
  Fp16() = default;
  __device__ explicit Fp16(float value) : bits(fp16_bits(value)) {}
  __device__ explicit operator float() const { return float_of_fp16(bits); }
};

// Two neighbours in a word, the first in its low half. The first argument only says of which type they are.
__device__ inline uint32_t pair_bits(Bf16, float first, float second) { return bf16_pair(first, second); }
__device__ inline uint32_t pair_bits(Fp16, float first, float second) { return fp16_pair(first, second); }
__device__ inline void unpack_pair(Bf16, uint32_t word, float& first, float& second) {
  first = float_of_bits(word << 16);
  second = float_of_bits(word & 0xffff0000u);
}
__device__ inline void unpack_pair(Fp16, uint32_t word, float& first, float& second) {
  first = float_of_fp16(uint16_t(word));
  second = float_of_fp16(uint16_t(word >> 16));
}

// What one load or store of a thread moves: `count` neighbouring elements, aligned to their size together.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T at[count];
};

}  // namespace device
}  // namespace explainfix
