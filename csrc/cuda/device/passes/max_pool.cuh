// Max pooling, which also notes the place of each maximum in its window, and its gradient: a thread computes up to
// eight neighbouring channels of a pixel of the result. Torch-free: nvcc compiles this for cuda/launch/max_pool.cu, and
// the emulation's tests compile it with g++.
#pragma once

#include "cuda/device/common/eight.cuh"
#include "shared/pooling.h"

namespace explainfix {
namespace device {

// A pixel of the result and the first of the thread's channels. A contiguous tensor is one of images * channels images
// with one channel.
struct PooledPixel {
  int64_t image, row, column, channel, count;

  // `at` counts vectors of channels, then pixels of planes of height x width.
  __device__ PooledPixel(const Pooling& p, int64_t at, int64_t height, int64_t width) {
    const uint64_t groups = uint64_t(p.channels + kTogether - 1) / kTogether;  // nvcc divides 32 bits where it can
    const uint64_t pixel = uint64_t(at) / groups, line = pixel / uint64_t(width), picture = line / uint64_t(height);
    channel = int64_t(uint64_t(at) - pixel * groups) * kTogether;
    column = int64_t(pixel - line * uint64_t(width));
    row = int64_t(line - picture * uint64_t(height));
    image = int64_t(picture);
    count = p.channels - channel < kTogether ? p.channels - channel : kTogether;
  }
};

__device__ inline int64_t vectors_of(const Pooling& p, int64_t height, int64_t width) {
  return p.images * height * width * ((p.channels + kTogether - 1) / kTogether);
}

template <bool whole, class T>
__device__ __forceinline__ void pool(const Pooling& p, int64_t at, const T* x, T* y, uint8_t* places) {
  const PooledPixel here(p, at, p.out_height, p.out_width);
  const int64_t top = here.row * p.stride[0] - p.padding[0], left = here.column * p.stride[1] - p.padding[1];
  const int64_t bottom = top + p.kernel[0] < p.height ? top + p.kernel[0] : p.height;
  const int64_t right = left + p.kernel[1] < p.width ? left + p.kernel[1] : p.width;
  float best[kTogether], place[kTogether];  // places are exact as floats, and packed like them
  bool first = true;
  for (int64_t row = top < 0 ? 0 : top; row < bottom; ++row) {
    const T* line = x + (here.image * p.height + row) * p.width * p.channels + here.channel;
#pragma unroll 3
    for (int64_t column = left < 0 ? 0 : left; column < right; ++column) {
      float values[kTogether];
      unpack(read<whole>(line + column * p.channels, here.count), values);
      const float tap = float((row - top) * p.kernel[1] + column - left);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const bool better = first || values[i] > best[i] || values[i] != values[i];  // NaN wins, as in torch
        best[i] = better ? values[i] : best[i];
        place[i] = better ? tap : place[i];
      }
      first = false;
    }
  }
  const int64_t to = ((here.image * p.out_height + here.row) * p.out_width + here.column) * p.channels + here.channel;
  write<whole>(y + to, pack<T>(best), here.count);
  write<whole>(places + to, pack<uint8_t>(place), here.count);
}

template <class T>
__global__ void __launch_bounds__(256, 2) max_pool_kernel(const Pooling p, const T* x, T* y, uint8_t* places) {
  const bool whole = p.channels % kTogether == 0 && is_aligned(x) && is_aligned(y) && is_aligned(places);
  const int64_t count = vectors_of(p, p.out_height, p.out_width);
  for (int64_t at = first_thread(); at < count; at += all_threads()) {
    whole ? pool<true>(p, at, x, y, places) : pool<false>(p, at, x, y, places);
  }
}

// The windows [first, last] along one axis that a pixel lies in.
struct Windows {
  int64_t first, last;
  __device__ Windows(const Pooling& p, int axis, int64_t pixel, int64_t count) {
    const uint64_t stride = uint64_t(p.stride[axis]);
    const int64_t at = pixel + p.padding[axis],
                  before = at - p.kernel[axis];  // the window at `before` ends just before
    first = before < 0 ? 0 : int64_t(uint64_t(before) / stride) + 1;
    last = int64_t(uint64_t(at) / stride);
    if (last >= count) last = count - 1;
  }
};

// A thread gathers from all windows that an input pixel lies in, so that nothing is added atomically.
template <bool whole, class T>
__device__ __forceinline__ void gather(const Pooling& p, int64_t at, const T* grad, const uint8_t* places, T* dx) {
  const PooledPixel here(p, at, p.height, p.width);
  const Windows rows(p, 0, here.row, p.out_height), columns(p, 1, here.column, p.out_width);
  float sum[kTogether] = {};
  for (int64_t row = rows.first; row <= rows.last; ++row) {
    const int64_t line = (here.image * p.out_height + row) * p.out_width;
    const int64_t tap_row = (here.row + p.padding[0] - row * p.stride[0]) * p.kernel[1];
#pragma unroll 2
    for (int64_t column = columns.first; column <= columns.last; ++column) {
      const int64_t from = (line + column) * p.channels + here.channel;
      float place[kTogether], values[kTogether];
      unpack(read<whole>(places + from, here.count), place);
      unpack(read<whole>(grad + from, here.count), values);
      const float tap = float(tap_row + here.column + p.padding[1] - column * p.stride[1]);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) sum[i] += place[i] == tap ? values[i] : 0.0f;
    }
  }
  const int64_t to = ((here.image * p.height + here.row) * p.width + here.column) * p.channels + here.channel;
  write<whole>(dx + to, pack<T>(sum), here.count);
}

template <class T>
__global__ void __launch_bounds__(256, 2)
    max_pool_grad_kernel(const Pooling p, const T* grad, const uint8_t* places, T* dx) {
  const bool whole = p.channels % kTogether == 0 && is_aligned(grad) && is_aligned(places) && is_aligned(dx);
  const int64_t count = vectors_of(p, p.height, p.width);
  for (int64_t at = first_thread(); at < count; at += all_threads()) {
    whole ? gather<true>(p, at, grad, places, dx) : gather<false>(p, at, grad, places, dx);
  }
}

}  // namespace device
}  // namespace explainfix
