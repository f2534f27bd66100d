// The fast Walsh-Hadamard transform of a pixel's channels, in the registers of a line's threads: channel c = 8 thread +
// register. Three stages are within a thread, the others between threads whose numbers differ in one bit.
#pragma once

#include "cuda/device/common/elements.cuh"
#include "cuda/device/hadamard/walk.h"

namespace explainfix {
namespace device {

// A stage between threads of different warps, through the block's shared memory. There each stage has a place of its
// own, which turns of 0 and 1 use alternately: a fast thread may be one pixel ahead.
template <int pixels>
__device__ __forceinline__ void stage_in_block(float (&a)[pixels][8], int m, float sign, int turn, float* shared) {
  using Four = Vector<float, 4>;
  Four* place = reinterpret_cast<Four*>(shared) + ((m >= 64 ? 2 : 0) + turn) * 2 * pixels * kHadamardThreads;
#pragma unroll
  for (int i = 0; i < 2 * pixels; ++i) {
    const float* from = &a[i / 2][i % 2 * 4];
    place[i * kHadamardThreads + threadIdx.x] = {{from[0], from[1], from[2], from[3]}};
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2 * pixels; ++i) {
    const Four other = place[i * kHadamardThreads + (threadIdx.x ^ m)];
#pragma unroll
    for (int c = 0; c < 4; ++c) a[i / 2][i % 2 * 4 + c] = fmaf(sign, a[i / 2][i % 2 * 4 + c], other.at[c]);
  }
}

// stages: the bits of channels that are transformed, all below the order. turn: 0 or 1, alternately.
template <int pixels>
__device__ __forceinline__ void transform_channels(float (&a)[pixels][8], int stages, int thread, int turn,
                                                   float* shared) {
#pragma unroll
  for (int m = 1; m < 8; m *= 2) {
    if (!(stages & m)) continue;
#pragma unroll
    for (int pixel = 0; pixel < pixels; ++pixel) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i & m) continue;
        const float sum = a[pixel][i] + a[pixel][i + m], difference = a[pixel][i] - a[pixel][i + m];
        a[pixel][i] = sum;
        a[pixel][i + m] = difference;
      }
    }
  }
#pragma unroll
  for (int m = 1; m < kHadamardMostOrder / 8; m *= 2) {
    if (!(stages & 8 * m)) continue;
    const float sign = thread & m ? -1.f : 1.f;
    if (m >= 32) {
      stage_in_block(a, m, sign, turn, shared);
      continue;
    }
#pragma unroll
    for (int pixel = 0; pixel < pixels; ++pixel) {
#pragma unroll
      for (int i = 0; i < 8; ++i) a[pixel][i] = fmaf(sign, a[pixel][i], __shfl_xor_sync(0xffffffffu, a[pixel][i], m));
    }
  }
}

}  // namespace device
}  // namespace explainfix
