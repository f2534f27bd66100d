// Enough of CUDA for a host compiler to run a kernel whose threads do not talk to each other: a launch is a loop.
// Kernels with barriers or shared memory need the fibers of shared/prototypes/kernel_emulation.
#pragma once

#include <cstdint>

#define __global__
#define __device__

struct Dim {
  unsigned x;
};
inline thread_local Dim blockIdx, threadIdx, gridDim, blockDim;

template <class Kernel, class... Args>
void launch(unsigned blocks, unsigned threads, Kernel kernel, Args... args) {
  gridDim = {blocks};
  blockDim = {threads};
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(args...);
  }
}
