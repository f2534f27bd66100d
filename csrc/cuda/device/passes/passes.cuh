// The passes of shared/passes.h on the GPU. Torch-free: nvcc compiles this for cuda/launch/passes.cu, and the
// emulation's tests compile it with g++.
//
// Every pass reads and writes each element once, so bandwidth is the bound. For sums, each thread adds a strided part
// of one channel, and a second launch adds the parts, in an order that does not change: no atomics, no barriers.
#pragma once

#include "cuda/device/common/device.cuh"

// What activations.h is compiled for.
#define EXPLAINFIX_ISA device
#define EXPLAINFIX_INLINE __device__ inline
#include "shared/activations.h"
#include "shared/passes.h"

namespace explainfix {
namespace device {

// Threads stride over elements: from their number on, by the number of all threads.
__device__ inline int64_t first_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t all_threads() { return int64_t(gridDim.x) * blockDim.x; }

__device__ inline int64_t channel_of(const Pass& p, int64_t at) {
  return p.channels_last ? at % p.channels : at / p.pixels % p.channels;
}

// kAffineAct: y = act(a x + b); kAffineActGrad: y *= act'(a x + b); kCombine: y = a y + b x + c.
template <PassKind kind, int act, class T>
__global__ void map_kernel(Pass p) {
  using A = WideType<T>;
  const A *a = static_cast<const A*>(p.a), *b = static_cast<const A*>(p.b), *c = static_cast<const A*>(p.c);
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const int64_t count = p.images * p.channels * p.pixels;
  for (int64_t at = first_thread(); at < count; at += all_threads()) {
    const int64_t i = channel_of(p, at);
    const A value = static_cast<A>(x[at]);
    if constexpr (kind == PassKind::kAffineAct) {
      y[at] = static_cast<T>(activate<act, A>(a[i] * value + b[i], A(p.slope)));
    } else if constexpr (kind == PassKind::kAffineActGrad) {
      y[at] = static_cast<T>(times_derivative<act, A>(static_cast<A>(y[at]), a[i] * value + b[i], A(p.slope)));
    } else {
      y[at] = static_cast<T>(a[i] * static_cast<A>(y[at]) + b[i] * value + c[i]);
    }
  }
}

// A thread makes some bytes of the mask, or applies them to a gradient.
template <bool make, class T>
__global__ void mask_kernel(Pass p) {
  using A = WideType<T>;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const int64_t count = p.images * p.channels * p.pixels;
  for (int64_t byte = first_thread(); byte < (count + 7) / 8; byte += all_threads()) {
    const int lanes = count - 8 * byte < 8 ? int(count - 8 * byte) : 8;
    uint32_t bits = make ? 0 : p.bytes[byte];
    for (int l = 0; l < lanes; ++l) {
      if (make) {
        bits |= uint32_t(is_inside(p.act, static_cast<A>(x[8 * byte + l]))) << l;
      } else {
        T* to = y + 8 * byte + l;
        const A value = static_cast<A>(*to), outside = p.act == kLeakyRelu ? value * A(p.slope) : A(0);
        *to = static_cast<T>(bits >> l & 1 ? value : outside);
      }
    }
    if (make) p.bytes[byte] = uint8_t(bits);
  }
}

// Where pixel j, counted over all images, of a channel lies.
__device__ inline int64_t element_at(const Pass& p, int64_t channel, int64_t j) {
  return p.channels_last ? j * p.channels + channel : (j / p.pixels * p.channels + channel) * p.pixels + j % p.pixels;
}

// The channel and the part that a thread sums. Neighbouring threads read neighbouring elements: pixels of a channel, or
// with channels_last channels of a pixel.
__device__ inline void share_of(const Pass& p, int64_t parts, int64_t thread, int64_t* channel, int64_t* part) {
  *channel = p.channels_last ? thread % p.channels : thread / parts;
  *part = p.channels_last ? thread / p.channels : thread % parts;
}

// sums[part][2][channel]. stats: of x - x0 and of its square, where x0 is the channel's first element, so that squares
// of a large mean do not cancel; else of y and of y * (x - a) * b.
template <bool stats, class T>
__global__ void sums_kernel(Pass p, int64_t parts) {
  using A = WideType<T>;
  const T *x = static_cast<const T*>(p.x), *y = static_cast<const T*>(p.y);
  for (int64_t thread = first_thread(); thread < p.channels * parts; thread += all_threads()) {
    int64_t channel, part;
    share_of(p, parts, thread, &channel, &part);
    const A a = stats ? static_cast<A>(x[element_at(p, channel, 0)]) : static_cast<const A*>(p.a)[channel];
    const A b = stats ? A(0) : static_cast<const A*>(p.b)[channel];
    double first = 0, second = 0;
    for (int64_t j = part; j < p.images * p.pixels; j += parts) {
      const int64_t at = element_at(p, channel, j);
      const A value = static_cast<A>(x[at]) - a;
      const A other = stats ? value : static_cast<A>(y[at]);
      first += other;
      second += stats ? value * value : other * (value * b);
    }
    p.sums[(part * 2) * p.channels + channel] = first;
    p.sums[(part * 2 + 1) * p.channels + channel] = second;
  }
}

// Adds the parts. stats: to the mean and the variance; else to the two sums.
template <bool stats, class T>
__global__ void finish_sums_kernel(Pass p, int64_t parts, WideType<T>* first, WideType<T>* second) {
  for (int64_t c = first_thread(); c < p.channels; c += all_threads()) {
    double one = 0, two = 0;
    for (int64_t part = 0; part < parts; ++part) {
      one += p.sums[(part * 2) * p.channels + c];
      two += p.sums[(part * 2 + 1) * p.channels + c];
    }
    if (stats) {
      const double count = double(p.images * p.pixels), offset = one / count, var = two / count - offset * offset;
      one = double(static_cast<const T*>(p.x)[element_at(p, c, 0)]) + offset;
      two = var < 0 ? 0 : var;  // NaN stays
    }
    first[c] = static_cast<WideType<T>>(one);
    second[c] = static_cast<WideType<T>>(two);
  }
}

// The range of int8 that an element belongs to, one for each image and channel.
__device__ inline int64_t range_of(const Pass& p, int64_t at) {
  return p.channels_last ? at / (p.channels * p.pixels) * p.channels + at % p.channels : at / p.pixels;
}

// A thread finds the lowest value and the step of an image and channel.
template <class T>
__global__ void range_kernel(Pass p) {
  using A = WideType<T>;
  const T* x = static_cast<const T*>(p.x);
  for (int64_t range = first_thread(); range < p.images * p.channels; range += all_threads()) {
    const int64_t image = range / p.channels, channel = range % p.channels;
    A low = static_cast<A>(x[element_at(p, channel, image * p.pixels)]), high = low;
    for (int64_t j = 1; j < p.pixels; ++j) {
      const A value = static_cast<A>(x[element_at(p, channel, image * p.pixels + j)]);
      low = value < low || value != value ? value : low;  // NaN stays, and makes the whole plane NaN
      high = value > high ? value : high;
    }
    static_cast<A*>(p.low)[range] = low;
    static_cast<A*>(p.step)[range] = (high - low > A(1e-12) ? high - low : A(1e-12)) / A(255);
  }
}

// encode: from elements to codes, or back.
template <bool encode, class T>
__global__ void int8_kernel(Pass p) {
  using A = WideType<T>;
  const int64_t count = p.images * p.channels * p.pixels;
  for (int64_t at = first_thread(); at < count; at += all_threads()) {
    const int64_t range = range_of(p, at);
    const A low = static_cast<const A*>(p.low)[range], step = static_cast<const A*>(p.step)[range];
    if (encode) {
      const A code = (static_cast<A>(static_cast<const T*>(p.x)[at]) - low) / step;
      p.bytes[at] = uint8_t(code < A(254.5) ? code + A(0.5) : A(255));
    } else {
      static_cast<T*>(p.y)[at] = static_cast<T>(low + step * A(p.bytes[at]));
    }
  }
}

}  // namespace device
}  // namespace explainfix
