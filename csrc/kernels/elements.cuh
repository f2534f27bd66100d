// The 16-bit element types of the kernels, with the bits and the rounding (to nearest, ties to even) of torch's.
#pragma once

#include "device.cuh"

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

// What one load or store of a thread moves: `count` neighbouring elements, aligned to their size.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T at[count];
};

}  // namespace device
}  // namespace explainfix
