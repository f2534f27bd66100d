// How the sparse index kernel stores the sums of a thread block to y: through shared memory, so that whole lines are
// written, in either memory format.
#pragma once

#include "cuda/device/common/elements.cuh"
#include "cuda/device/sparse_index/lists.cuh"

namespace explainfix {
namespace device {

// Where an element of the result is in shared memory: [pixel][output] with channels_last, else [output][pixel]. Rows
// are 8 elements longer than that, so that what a warp writes at once lies in different banks.
template <class V>
struct ResultLayout {
  static constexpr int columns = V::channels_last ? V::outputs(kSparseThreads) : V::pixels, pitch = columns + 8;
  static_assert(V::outputs(kSparseThreads) * V::pixels / columns * pitch * sizeof(typename V::Element) <=
                    SparseShared<V>::x,
                "the result fits where z was");
  __device__ static int at(int output, int pixel) {
    return V::channels_last ? pixel * pitch + output : output * pitch + pixel;
  }
};

// Finds where each pixel of the tile is in y, for output 0; -1: beyond the edge.
template <class V>
__device__ void find_pixels(const SparseTile<V>& tile, const ConvShape& s, int64_t* pixels) {
  for (int pixel = threadIdx.x; pixel < V::pixels; pixel += blockDim.x) {
    const int b = tile.band_of(pixel / 2), row = tile.row_of(b) + pixel % 2;
    const int64_t image = tile.image + tile.image_of(b), column = tile.column + tile.column_of(pixel / 2);
    const bool inside = image < s.images && row < s.out_height && column < s.out_width;
    const int64_t plane = s.out_height * s.out_width, place = row * s.out_width + column;
    const int64_t at =
        V::channels_last ? (image * plane + place) * s.out_channels : image * s.out_channels * plane + place;
    pixels[pixel] = inside ? at : -1;
  }
}

// Writes a warp's sums, scaled and with bias, to the result. first: the warp's first output of the block's. bias: of
// the block's first output, or null.
template <class V>
__device__ void put_sums(const Sums<V> (&sums)[V::lists], int first, int outputs, float scale,
                         const typename V::Element* bias, typename V::Element* result) {
  using T = typename V::Element;
  const int lane = threadIdx.x % 32;
  result += ResultLayout<V>::at(first + lane / 4, lane % 4 * 2);
#pragma unroll
  for (int part = 0; part < V::lists * 2; ++part) {  // of eight outputs
    const int output = first + part * 8 + lane / 4;
    const float shift = bias && output < outputs ? float(bias[output]) : 0.0f;
#pragma unroll
    for (int pixels = 0; pixels < V::pixels / 8; ++pixels) {
      const float* pair = &sums[part / 2][pixels][part % 2 * 2];
      const T upper(pair[0] * scale + shift), lower(pair[1] * scale + shift);
      T* to = result + ResultLayout<V>::at(part * 8, pixels * 8);
      if constexpr (V::channels_last) {
        to[0] = upper;
        to[ResultLayout<V>::pitch] = lower;
      } else {
        *reinterpret_cast<Vector<T, 2>*>(to) = {{upper, lower}};
      }
    }
  }
}

// Copies the result to y, at_once outputs of a pixel a thread. outputs: of the block, that exist. y: of its first
// output.
template <class V, int at_once>
__device__ void store_channels_last(const typename V::Element* result, const int64_t* pixels, int outputs,
                                    typename V::Element* y) {
  using Several = Vector<typename V::Element, at_once>;
  const int lanes = V::outputs(blockDim.x) / at_once, output = threadIdx.x % lanes * at_once;
  if (output >= outputs) return;
  for (int pixel = threadIdx.x / lanes; pixel < V::pixels; pixel += blockDim.x / lanes) {
    if (pixels[pixel] < 0) continue;
    *reinterpret_cast<Several*>(y + pixels[pixel] + output) =
        *reinterpret_cast<const Several*>(result + ResultLayout<V>::at(output, pixel));
  }
}

// The same where y is contiguous. plane: pixels of an output.
template <class V>
__device__ void store_planes(const typename V::Element* result, const int64_t* pixels, int outputs, int64_t plane,
                             typename V::Element* y) {
  const int lane = threadIdx.x % V::pixels, pixel = lane % V::pairs * 2 + lane / V::pairs;  // neighbours in a row first
  if (pixels[pixel] < 0) return;
  for (int output = threadIdx.x / V::pixels; output < outputs; output += blockDim.x / V::pixels) {
    y[pixels[pixel] + output * plane] = result[ResultLayout<V>::at(output, pixel)];
  }
}

}  // namespace device
}  // namespace explainfix
