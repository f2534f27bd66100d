// Instructions that only the sparse index kernel uses. As in common/device.cuh, nvcc gets them from here and the
// emulation's tests from tests/emulation/host_sparse.h.
#pragma once

#include "cuda/device/common/device.cuh"

#ifndef __CUDACC__
#include "host_sparse.h"
#else
namespace explainfix {
namespace device {

// Loads four matrices of 8 x 8 16-bit numbers, transposed. Lane i of the warp passes the address of row i % 8 of matrix
// i / 8, and receives from each matrix the elements 2 (i % 4) and 2 (i % 4) + 1 of column i / 4.
__device__ inline void load_transposed_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Stores to shared memory under a condition, without a branch: one around a few instructions costs as much as they do.
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

// Returns the same number, but the compiler does not know that. So what depends on it is computed again where it is
// needed; computed once and kept, it would take registers that the sums need.
__device__ inline int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The same for a pointer to global memory to which offsets are added: else the compiler adds up each address from its
// parts.
template <class T>
__device__ T* opaque(T* global) {
  asm volatile("" : "+l"(global));
  __builtin_assume(__isGlobal(global));
  return global;
}

}  // namespace device
}  // namespace explainfix
#endif
