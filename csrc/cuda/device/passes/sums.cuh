// Sums over the pixels of each channel. Torch-free: nvcc compiles this for cuda/launch/passes.cu, and the emulation's
// tests compile it with g++.
//
// A first kernel reads the tensor: blocks sum parts of it, as rows.h shares them out. A second one adds the parts. Both
// add in an order that the shape alone decides: no atomics.
#pragma once

#include "cuda/device/passes/walk.cuh"
#include "shared/batch_norm.h"

namespace explainfix {
namespace device {

// Of a thread's eight elements. stats: of x - a and of its square, where `a` is the channel's first element, so that
// squares of a large mean do not cancel; else of grad and of grad * (x - a), where `a` is the mean.
template <bool stats, class T>
__device__ __forceinline__ void add_terms(const Eight<T>& x, const Eight<T>& grad, const float (&a)[kTogether],
                                          int64_t count, float (&one)[kTogether], float (&two)[kTogether]) {
  float values[kTogether], of_grad[kTogether];
  unpack(x, values);
  unpack(grad, of_grad);
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    if (i >= count) continue;
    const float value = values[i] - a[i], other = stats ? value : of_grad[i];
    one[i] += other;
    two[i] += other * value;
  }
}

// parts: [parts][2][channels], then for stats what was subtracted, [channels].
template <bool stats, class T>
__global__ void __launch_bounds__(256, 3) sums_kernel(const Pass p, const Rows r, float* parts) {
  constexpr int kLoads = stats ? 4 : 2;
  const T *x = static_cast<const T*>(p.x), *grad = static_cast<const T*>(p.grad);
  const int64_t tile = blockIdx.x % uint32_t(r.tiles), part = blockIdx.x / uint32_t(r.tiles);
  const int64_t first = part * r.per_part, rest = r.units - first;
  const Walk walk(p, r, tile, first, rest < r.per_part ? rest : r.per_part);
  const bool whole = all_whole(p, x) && (stats || is_aligned(grad));
  float a[kTogether], one[kTogether] = {}, two[kTogether] = {};
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t channel = channel_of(p, walk, i);
    a[i] = 0;
    if (channel >= p.channels) continue;
    a[i] = stats ? static_cast<float>(x[channel * (p.channels_last ? 1 : p.pixels)])
                 : static_cast<const float*>(p.a)[channel];
  }
  int64_t unit = walk.begin;
  if (whole) {
    for (; unit + (kLoads - 1) * r.rows < walk.end; unit += kLoads * r.rows) {
      Eight<T> xs[kLoads], grads[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int64_t at = unit_at(p, r, walk, unit + i * r.rows).at;
        xs[i] = read<true>(x + at, kTogether);
        if (!stats) grads[i] = read<true>(grad + at, kTogether);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) add_terms<stats>(xs[i], stats ? xs[i] : grads[i], a, kTogether, one, two);
    }
  }
  for (; unit < walk.end; unit += r.rows) {
    const Unit here = unit_at(p, r, walk, unit);
    const Eight<T> some = whole ? read<true>(x + here.at, kTogether) : read<false>(x + here.at, here.count);
    if (stats) {
      add_terms<stats>(some, some, a, here.count, one, two);
    } else {
      const Eight<T> of_grad = whole ? read<true>(grad + here.at, kTogether) : read<false>(grad + here.at, here.count);
      add_terms<stats>(some, of_grad, a, here.count, one, two);
    }
  }

  float* shared = shared_floats();  // [rows][2][width]
  const int width = r.width(p.channels_last);
  if (walk.row < r.rows) {
    float* mine = shared + 2 * width * walk.row;
    if (p.channels_last) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        mine[walk.lane * kTogether + i] = one[i];
        mine[width + walk.lane * kTogether + i] = two[i];
      }
    } else {
      mine[0] = ((one[0] + one[1]) + (one[2] + one[3])) + ((one[4] + one[5]) + (one[6] + one[7]));
      mine[1] = ((two[0] + two[1]) + (two[2] + two[3])) + ((two[4] + two[5]) + (two[6] + two[7]));
    }
  }
  __syncthreads();
  join_rows(shared, r.rows, 2 * width, [](float left, float right) { return left + right; });
  for (int i = int(threadIdx.x); i < 2 * width; i += int(blockDim.x)) {
    const int64_t channel = tile * width + i % width;
    if (channel < p.channels) parts[(part * 2 + i / width) * p.channels + channel] = shared[i];
  }
  if (stats && part == 0 && walk.row == 0) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < walk.count) parts[r.parts * 2 * p.channels + walk.channel + i] = a[i];
    }
  }
}

constexpr int kFinishedTogether = 8;  // channels of a block; so that a warp reads 32 bytes at a time

// Adds the parts, in double. stats: and makes the factors of BatchNorm; else the sums that its gradient needs.
template <bool stats>
__global__ void __launch_bounds__(256, 3)
    finish_sums_kernel(const BatchNorm norm, int64_t count, const float* parts, const float* invstd, float* sums) {
  double* shared = reinterpret_cast<double*>(shared_floats());  // [rows][2][channels of the block]
  const int lane = int(threadIdx.x) % kFinishedTogether, row = int(threadIdx.x) / kFinishedTogether;
  const int rows = int(blockDim.x) / kFinishedTogether;
  const int64_t channel = int64_t(blockIdx.x) * kFinishedTogether + lane;
  double one = 0, two = 0;
  if (channel < norm.channels) {
#pragma unroll 4
    for (int64_t part = row; part < count; part += rows) {
      one += parts[part * 2 * norm.channels + channel];
      two += parts[(part * 2 + 1) * norm.channels + channel];
    }
  }
  shared[2 * kFinishedTogether * row + lane] = one;
  shared[2 * kFinishedTogether * row + kFinishedTogether + lane] = two;
  __syncthreads();
  join_rows(shared, rows, 2 * kFinishedTogether, [](double left, double right) { return left + right; });
  if (row > 0 || channel >= norm.channels) return;
  one = shared[lane];
  two = shared[kFinishedTogether + lane];
  if (stats) {
    const double offset = one / norm.count, var = two / norm.count - offset * offset;
    const float shift = parts[count * 2 * norm.channels + channel];
    finish_batch_norm<float>(norm, channel, float(shift + offset), float(var < 0 ? 0 : var));  // NaN stays
  } else {
    sums[channel] = float(one);
    sums[norm.channels + channel] = float(two * invstd[channel]);
  }
}

}  // namespace device
}  // namespace explainfix
