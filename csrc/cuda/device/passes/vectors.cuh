// Eight elements at once: a thread reads and writes tensors so, 16 bytes of 16-bit numbers or 32 of floats. Where memory
// is not aligned for that, or a row ends before, it takes them one by one.
#pragma once

#include "cuda/device/common/elements.cuh"

namespace explainfix {
namespace device {

constexpr int kTogether = 8;
template <class T>
using Eight = Vector<T, kTogether>;

// Threads stride over vectors: from their number on, by the number of all threads of the grid's row.
__device__ inline int64_t first_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t all_threads() { return int64_t(gridDim.x) * blockDim.x; }

template <class T>
__device__ inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Eight<T>) == 0;
}

// whole: eight elements, aligned. Else `count` of them, 8 at most, one by one; the others are zero.
template <bool whole, class T>
__device__ __forceinline__ Eight<T> read(const T* from, int64_t count) {
  if constexpr (whole) return *reinterpret_cast<const Eight<T>*>(from);
  Eight<T> few{};
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    if (i < count) few.at[i] = from[i];
  }
  return few;
}

template <bool whole, class T>
__device__ __forceinline__ void write(T* to, const Eight<T>& values, int64_t count) {
  if constexpr (whole) {
    *reinterpret_cast<Eight<T>*>(to) = values;
  } else {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < count) to[i] = values.at[i];
    }
  }
}

// Rounds eight floats, two at a time where that is one instruction.
template <class T>
__device__ __forceinline__ Eight<T> rounded(const float (&values)[kTogether]) {
  Eight<T> result;
#pragma unroll
  for (int i = 0; i < kTogether; i += 2) {
    if constexpr (sizeof(T) == 2) {
      const uint32_t pair = pair_bits(T(), values[i], values[i + 1]);
      result.at[i].bits = uint16_t(pair);
      result.at[i + 1].bits = uint16_t(pair >> 16);
    } else {
      result.at[i] = T(values[i]);
      result.at[i + 1] = T(values[i + 1]);
    }
  }
  return result;
}

}  // namespace device
}  // namespace explainfix
