// Instructions that only the filter-sparse kernel uses; else as device.cuh.
#pragma once

#include "cuda/device/common/device.cuh"

#ifndef __CUDACC__
#include "host_sparse.h"
#else
namespace explainfix {
namespace device {

// Four 8 x 8 matrices of 16 bits: lane i names row i % 8 of matrix i / 8, and gets of each the elements 2 (i % 4) and
// the next of column i / 4.
__device__ inline void load_transposed_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// To shared memory without a branch: those around a few instructions cost as much as the instructions.
__device__ inline void store_shared_if(bool condition, void* shared, uint32_t word) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.shared.b32 [%1], %2; }" ::"r"(int(condition)),
               "r"(shared_address(shared)), "r"(word)
               : "memory");
}
__device__ inline void store_shared_if(bool condition, void* shared, uint32_t first, uint32_t second) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.shared.v2.b32 [%1], {%2, %3}; }" ::"r"(int(condition)),
               "r"(shared_address(shared)), "r"(first), "r"(second)
               : "memory");
}

// The same number, but the compiler does not know it, so that what follows from it is computed where it is needed. What
// it computes once and keeps instead takes the registers of the sums.
__device__ inline int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A pointer to global memory, from which places are counted: else the compiler takes its sum apart for each of them.
template <class T>
__device__ T* opaque(T* global) {
  asm volatile("" : "+l"(global));
  __builtin_assume(__isGlobal(global));
  return global;
}

}  // namespace device
}  // namespace explainfix
#endif
