// The few instructions of the GPU that kernels name; everything else in cuda/device is plain C++. nvcc gets the
// instructions from here; the emulation's tests compile the same kernels with g++, and get tests/emulation/host_cuda.h
// instead, which defines the same names.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "host_cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// The block's shared memory, whose size the launch names.
#define EXPLAINFIX_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace explainfix {
namespace device {

__device__ inline float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline uint32_t bits_of_float(float value) { return __float_as_uint(value); }
__device__ inline uint16_t bf16_bits(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
__device__ inline uint16_t fp16_bits(float value) { return __half_as_ushort(__float2half_rn(value)); }
__device__ inline float float_of_fp16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// Writes 16 aligned bytes at once; nvcc sometimes splits a store that says so in C++.
__device__ inline void store_16(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(to)), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// Rounds two floats to a word of two 16-bit numbers, the first in its low half: one instruction.
__device__ inline uint32_t bf16_pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return uint32_t(__bfloat16_as_ushort(pair.x)) | uint32_t(__bfloat16_as_ushort(pair.y)) << 16;
}
__device__ inline uint32_t fp16_pair(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return uint32_t(__half_as_ushort(__low2half(pair))) | uint32_t(__half_as_ushort(__high2half(pair))) << 16;
}

}  // namespace device
}  // namespace explainfix
#endif
