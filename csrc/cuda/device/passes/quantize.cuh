// int8 codes of a tensor: a block finds the range of some channels of one image, then reads them again, from L2 for the
// most part, and writes their codes. Torch-free, as sums.cuh is.
#pragma once

#include "cuda/device/passes/walk.cuh"

namespace explainfix {
namespace device {

// NaN stays, and makes the whole plane NaN.
__device__ __forceinline__ float lower(float low, float value) { return value < low || value != value ? value : low; }
__device__ __forceinline__ float higher(float high, float value) { return value > high ? value : high; }

template <class T>
struct QuantizedImage {
  const Pass& p;
  const Rows& r;
  const Walk walk;
  const T* x;
  uint8_t* codes;
  bool whole;

  // Calls f(where the elements and their codes begin, the elements, how many) for each unit of the thread.
  template <class F>
  __device__ __forceinline__ void for_each(F f) const {
    constexpr int kLoads = 4;
    int64_t unit = walk.begin;
    if (whole) {
      for (; unit + (kLoads - 1) * r.rows < walk.end; unit += kLoads * r.rows) {
        Eight<T> xs[kLoads];
#pragma unroll
        for (int i = 0; i < kLoads; ++i) xs[i] = read<true>(x + unit_at(p, r, walk, unit + i * r.rows).at, kTogether);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) f(unit_at(p, r, walk, unit + i * r.rows).at, xs[i], int64_t(kTogether));
      }
    }
    for (; unit < walk.end; unit += r.rows) {
      const Unit here = unit_at(p, r, walk, unit);
      f(here.at, whole ? read<true>(x + here.at, kTogether) : read<false>(x + here.at, here.count), here.count);
    }
  }

  // The lowest and the highest value of each of the thread's channels, over all rows.
  __device__ void range(float (&low)[kTogether], float (&high)[kTogether]) const {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t channel = channel_of(p, walk, i);
      low[i] = high[i] = channel < p.channels ? static_cast<float>(x[channel * (p.channels_last ? 1 : p.pixels)]) : 0;
    }
    for_each([&](int64_t, const Eight<T>& eight, int64_t count) __attribute__((always_inline)) {
      float values[kTogether];
      unpack(eight, values);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (i >= count) continue;
        low[i] = lower(low[i], values[i]);
        high[i] = higher(high[i], values[i]);
      }
    });
    float *lows = shared_floats(), *highs = lows + r.rows * r.width(p.channels_last);  // [rows][width]
    const int width = r.width(p.channels_last),
              first = walk.row * width + (p.channels_last ? kTogether : 1) * walk.lane;
    if (walk.row < r.rows) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const bool joins = i > 0 && !p.channels_last;  // all eight are of one channel
        lows[first + (joins ? 0 : i)] = joins ? lower(lows[first], low[i]) : low[i];
        highs[first + (joins ? 0 : i)] = joins ? higher(highs[first], high[i]) : high[i];
      }
    }
    __syncthreads();
    join_rows(lows, r.rows, width, lower);
    join_rows(highs, r.rows, width, higher);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      low[i] = lows[p.channels_last ? kTogether * walk.lane + i : 0];
      high[i] = highs[p.channels_last ? kTogether * walk.lane + i : 0];
    }
  }
};

template <class T>
__global__ void __launch_bounds__(512) quantize_kernel(const Pass p, const Rows r) {
  const int64_t tile = blockIdx.x % uint32_t(r.tiles), image = blockIdx.x / uint32_t(r.tiles);
  const int64_t first = image * p.channels * p.pixels;
  const T* x = static_cast<const T*>(p.x) + first;
  uint8_t* codes = p.bytes + first;
  const QuantizedImage<T> part{p, r, Walk(p, r, tile, 0, r.units), x, codes, all_whole(p, x) && is_aligned(codes)};
  float low[kTogether], step[kTogether], inverse[kTogether];
  part.range(low, step);
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    step[i] = (step[i] - low[i] > 1e-12f ? step[i] - low[i] : 1e-12f) / 255.0f;
    inverse[i] = 1.0f / step[i];
  }
  if (part.walk.row == 0) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i >= part.walk.count) continue;
      static_cast<float*>(p.low)[image * p.channels + part.walk.channel + i] = low[i];
      static_cast<float*>(p.step)[image * p.channels + part.walk.channel + i] = step[i];
    }
  }
  part.for_each([&](int64_t at, const Eight<T>& eight, int64_t count) __attribute__((always_inline)) {
    float values[kTogether];
    unpack(eight, values);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const float code = (values[i] - low[i]) * inverse[i];
      values[i] = code < 254.5f ? code + 0.5f : 255.0f;
    }
    part.whole ? write<true>(codes + at, pack<uint8_t>(values), count)
               : write<false>(codes + at, pack<uint8_t>(values), count);
  });
}

}  // namespace device
}  // namespace explainfix
