// Turns images from NCHW to channels_last and back, for kernels that read channels_last: torch's own copy takes three
// times as long. A tile goes through shared memory, so that both sides are read and written in lines of memory.
#pragma once

#include <cstdint>

#include "cuda/device/common/device.cuh"

namespace explainfix {

constexpr int kTurnTile = 64;      // rows and columns
constexpr int kTurnThreads = 256;  // 8 rows of a warp each

// A row of the tile is padded by 4 bytes, so that 32 neighbours of a column lie in 32 banks.
constexpr int turn_row(size_t element_bytes) { return kTurnTile + 4 / int(element_bytes); }
constexpr size_t turn_shared_bytes(size_t element_bytes) { return kTurnTile * turn_row(element_bytes) * element_bytes; }

namespace device {

// Writes to[image][column][row] = from[image][row][column]. A block does one tile, number blockIdx.x of an image's.
template <class T>
__global__ void __launch_bounds__(kTurnThreads)
    turn_kernel(const T* __restrict__ from, T* __restrict__ to, int rows, int columns) {
  EXPLAINFIX_SHARED(memory);
  T* tile = reinterpret_cast<T*>(memory);
  constexpr int kRow = turn_row(sizeof(T)), kWarps = kTurnThreads / 32;
  const int across = (columns + kTurnTile - 1) / kTurnTile, lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int first_row = int(blockIdx.x) / across * kTurnTile, first_column = int(blockIdx.x) % across * kTurnTile;
  const int64_t image = int64_t(blockIdx.y) * rows * columns;
#pragma unroll
  for (int r = warp; r < kTurnTile; r += kWarps) {
#pragma unroll
    for (int c = lane; c < kTurnTile; c += 32) {
      const int row = first_row + r, column = first_column + c;
      if (row < rows && column < columns) tile[r * kRow + c] = from[image + int64_t(row) * columns + column];
    }
  }
  __syncthreads();
#pragma unroll
  for (int c = warp; c < kTurnTile; c += kWarps) {
#pragma unroll
    for (int r = lane; r < kTurnTile; r += 32) {
      const int row = first_row + r, column = first_column + c;
      if (row < rows && column < columns) to[image + int64_t(column) * rows + row] = tile[r * kRow + c];
    }
  }
}

}  // namespace device
}  // namespace explainfix
