// Composes the weight of the dense plan from a bank: each filter is one basis function (index) or a combination of all
// of them (coeff). Torch-free: nvcc compiles this for cuda/launch/materialize.h, and the emulation's tests compile it
// with g++.
//
// A kernel writes the weight, reads O*I bytes (index) or O*I*L elements (coeff) and a basis that stays in cache, and
// does L multiply-adds an element: bandwidth is the bound for any L <= 49.
#pragma once

#include "cuda/device/common/device.cuh"
#include "shared/conv_params.h"
#include "shared/passes.h"

namespace explainfix {

// Finds the filter (o * per_group + i) and the pixel that element `at` of the weight's memory belongs to. Threads
// follow memory, so that their writes are neighbours in either layout.
__device__ inline void locate(const WeightLayout& w, int64_t at, int64_t* filter, int64_t* pixel) {
  if (w.k_stride == 1) {
    *filter = at / w.k2;
    *pixel = at % w.k2;
  } else {
    const int64_t row = at / w.per_group;  // o * k2 + pixel
    *filter = row / w.k2 * w.per_group + at % w.per_group;
    *pixel = row % w.k2;
  }
}

// An index of L or more (Python writes 255) is the zero filter.
template <class T>
__global__ void materialize_index_kernel(WeightLayout w, const uint8_t* index, const double* basis, double scale,
                                         T* weight) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < w.filters * w.k2; at += step) {
    int64_t filter, pixel;
    locate(w, at, &filter, &pixel);
    const int64_t function = index[filter];
    weight[at] = static_cast<T>(function < w.rank ? scale * basis[function * w.k2 + pixel] : 0.0);
  }
}

// The sum runs in float, or for a double weight in double.
template <class T, class S>
__global__ void materialize_coeff_kernel(WeightLayout w, const S* coeff, const double* basis, double scale, T* weight) {
  using Acc = WideType<T>;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < w.filters * w.k2; at += step) {
    int64_t filter, pixel;
    locate(w, at, &filter, &pixel);
    Acc sum = 0;
    for (int64_t l = 0; l < w.rank; ++l) {
      sum += static_cast<Acc>(coeff[filter * w.rank + l]) * static_cast<Acc>(basis[l * w.k2 + pixel]);
    }
    weight[at] = static_cast<T>(static_cast<Acc>(scale) * sum);
  }
}

}  // namespace explainfix
