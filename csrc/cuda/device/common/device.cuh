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

// A barrier for warps that run different code: all threads of the block meet, wherever they call it. (__syncthreads()
// must be the same call for all.)
__device__ inline void meet_block() { asm volatile("bar.sync 0;" ::: "memory"); }

// Rounds two floats to a word of two 16-bit numbers, the first in its low half: one instruction.
__device__ inline uint32_t bf16_pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return uint32_t(__bfloat16_as_ushort(pair.x)) | uint32_t(__bfloat16_as_ushort(pair.y)) << 16;
}
__device__ inline uint32_t fp16_pair(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return uint32_t(__half_as_ushort(__low2half(pair))) | uint32_t(__half_as_ushort(__high2half(pair))) << 16;
}

// The value of the lane whose number differs in the bits of `mask`. All lanes of the warp call it.
__device__ inline float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Loads four matrices of 8 x 8 16-bit numbers (or 8 x 4 of 32 bits) from shared memory. Lane i of the warp passes the
// address of row i % 8 of matrix i / 8, and receives from each matrix the elements 2 (i % 4) and 2 (i % 4) + 1 of row
// i / 4.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

#define EXPLAINFIX_MMA(name, shape_and_types)                                                                 \
  __device__ inline void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {                \
    asm volatile("mma.sync.aligned." shape_and_types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                         \
  }
// Tensor core products of a warp: D (16 x 8 floats) += A (16 rows of 32 bytes) times B (8 columns of 32 bytes).
EXPLAINFIX_MMA(multiply_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
EXPLAINFIX_MMA(multiply_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
EXPLAINFIX_MMA(multiply_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef EXPLAINFIX_MMA

// Copies 16 bytes from global to shared memory in the background; writes zeros where `valid` is false, and then reads
// nothing.
__device__ inline void copy_16_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
// Waits until this thread's copies have arrived; the other threads know only after a barrier.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace device
}  // namespace explainfix
#endif
