// D (16 x 8, float) += A (16 x 16) B (16 x 8) by a warp, of either 16-bit type.
#pragma once

#include "cuda/device/common/elements.cuh"

namespace explainfix {
namespace device {

__device__ inline void multiply(Bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_bf16(d, a, b);
}
__device__ inline void multiply(Fp16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_fp16(d, a, b);
}

}  // namespace device
}  // namespace explainfix
