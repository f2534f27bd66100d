// The transposed ldmatrix, which only the filter-sparse kernel uses; else as device.cuh.
#pragma once

#include "device.cuh"

#ifndef __CUDACC__
#include "host_transposed.h"
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

}  // namespace device
}  // namespace explainfix
#endif
