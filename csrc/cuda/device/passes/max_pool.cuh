// Max pooling, which also notes the place of each maximum in its window, and its gradient: a thread computes some
// elements of the result. Torch-free: nvcc compiles this for cuda/launch/max_pool.cu, and the emulation's tests compile
// it with g++.
#pragma once

#include "cuda/device/common/device.cuh"
#include "shared/passes.h"
#include "shared/pooling.h"

namespace explainfix {
namespace device {

// Where an element of a tensor of `height` x `width` planes lies.
__device__ inline int64_t address(const Pooling& p, int64_t image, int64_t channel, int64_t row, int64_t column,
                                  int64_t height, int64_t width) {
  return p.channels_last ? ((image * height + row) * width + column) * p.channels + channel
                         : ((image * p.channels + channel) * height + row) * width + column;
}

// The other way round: which element lies at `at`.
__device__ inline void coordinates_of(const Pooling& p, int64_t at, int64_t height, int64_t width, int64_t* image,
                                      int64_t* channel, int64_t* row, int64_t* column) {
  if (p.channels_last) {
    *channel = at % p.channels;
    at /= p.channels;
  }
  *column = at % width;
  at /= width;
  *row = at % height;
  at /= height;
  if (!p.channels_last) {
    *channel = at % p.channels;
    at /= p.channels;
  }
  *image = at;
}

template <class T>
__global__ void max_pool_kernel(Pooling p, const T* x, T* y, uint8_t* places) {
  using A = WideType<T>;
  const int64_t count = p.images * p.channels * p.out_height * p.out_width;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step) {
    int64_t image, channel, row, column;
    coordinates_of(p, at, p.out_height, p.out_width, &image, &channel, &row, &column);
    A best = 0;
    int place = -1;
    for (int tap = 0; tap < p.kernel[0] * p.kernel[1]; ++tap) {
      const int64_t h = row * p.stride[0] - p.padding[0] + tap / p.kernel[1];
      const int64_t w = column * p.stride[1] - p.padding[1] + tap % p.kernel[1];
      if (h < 0 || h >= p.height || w < 0 || w >= p.width) continue;
      const A here = static_cast<A>(x[address(p, image, channel, h, w, p.height, p.width)]);
      if (place < 0 || here > best || here != here) {  // NaN wins, as in torch
        best = here;
        place = tap;
      }
    }
    y[at] = static_cast<T>(best);
    places[at] = uint8_t(place);
  }
}

// A thread gathers from all windows that an input pixel lies in, so that nothing is added atomically.
template <class T>
__global__ void max_pool_grad_kernel(Pooling p, const T* grad, const uint8_t* places, T* dx) {
  using A = WideType<T>;
  const int64_t count = p.images * p.channels * p.height * p.width;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step) {
    int64_t image, channel, row, column;
    coordinates_of(p, at, p.height, p.width, &image, &channel, &row, &column);
    A sum = 0;
    for (int tap = 0; tap < p.kernel[0] * p.kernel[1]; ++tap) {
      const int64_t top = row + p.padding[0] - tap / p.kernel[1], left = column + p.padding[1] - tap % p.kernel[1];
      const int64_t out_row = top / p.stride[0], out_column = left / p.stride[1];
      if (top < 0 || left < 0 || top % p.stride[0] || left % p.stride[1] || out_row >= p.out_height ||
          out_column >= p.out_width) {
        continue;
      }
      const int64_t from = address(p, image, channel, out_row, out_column, p.out_height, p.out_width);
      if (places[from] == tap) sum += static_cast<A>(grad[from]);
    }
    dx[at] = static_cast<T>(sum);
  }
}

}  // namespace device
}  // namespace explainfix
