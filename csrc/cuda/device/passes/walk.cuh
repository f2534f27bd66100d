// A thread's way over its share of some channels (rows.h).
#pragma once

#include "cuda/device/common/eight.cuh"
#include "cuda/device/passes/rows.h"

namespace explainfix {
namespace device {

// The shared memory of a block, as floats.
__device__ inline float* shared_floats() {
  EXPLAINFIX_SHARED(memory);
  return reinterpret_cast<float*>(memory);
}

struct Walk {
  int lane, row;
  int64_t channel, count;  // the thread's first channel, and of how many, 8 at most
  int64_t begin, end;      // its units, by steps of `rows`; none for a thread beyond the rows or the channels

  __device__ Walk(const Pass& p, const Rows& r, int64_t tile, int64_t first_unit, int64_t units) {
    lane = int(threadIdx.x) % r.lanes;
    row = int(threadIdx.x) / r.lanes;
    channel = p.channels_last ? (tile * r.lanes + lane) * kTogether : tile;
    count = !p.channels_last ? 1 : p.channels - channel < kTogether ? p.channels - channel : kTogether;
    begin = first_unit + row;
    end = row < r.rows && count > 0 ? first_unit + units : 0;
  }
};

// Where a unit begins in memory, and how many elements it has.
struct Unit {
  int64_t at, count;
};
__device__ __forceinline__ Unit unit_at(const Pass& p, const Rows& r, const Walk& walk, int64_t unit) {
  if (p.channels_last) return {unit * p.channels + walk.channel, walk.count};
  const int64_t image = int64_t(uint64_t(unit) / uint64_t(r.per_image));  // nvcc divides 32 bits where it can
  const int64_t first = (unit - image * r.per_image) * kTogether;
  return {(image * p.channels + walk.channel) * p.pixels + first, p.pixels - first};
}

// Are all units eight elements, aligned to their size?
template <class T>
__device__ inline bool all_whole(const Pass& p, const T* x) {
  return (p.channels_last ? p.channels : p.pixels) % kTogether == 0 && is_aligned(x);
}

// The channel of the thread's i-th element of any unit.
__device__ __forceinline__ int64_t channel_of(const Pass& p, const Walk& walk, int i) {
  return walk.channel + (p.channels_last ? i : 0);
}

// Joins what the rows of a block have in shared memory, [rows][width]: row 0 gets join(row 0, join(...)) of all, in an
// order that depends on nothing but the number of rows.
template <class A, class F>
__device__ void join_rows(A* values, int rows, int width, F join) {
  for (int n = rows; n > 1; n = (n + 1) / 2) {
    const int half = (n + 1) / 2;
    for (int i = int(threadIdx.x); i < (n - half) * width; i += int(blockDim.x)) {
      values[i] = join(values[i], values[i + half * width]);
    }
    __syncthreads();
  }
}

}  // namespace device
}  // namespace explainfix
