// The sums of a block to y: through shared memory, to whole lines of memory in either layout.
#pragma once

#include "elements.cuh"
#include "sparse_lists.cuh"

namespace explainfix {
namespace device {

constexpr int kStoredAtOnce = 8;  // outputs of a pixel, where channels_last and alignment allow

// The result of a block in shared memory: [pixel][output] if `rows`, else [output][pixel]. The pad lets the lanes of a
// fragment meet different banks.
struct ResultLayout {
  bool rows;
  int pitch;
  __device__ ResultLayout(bool rows, int outputs, int pixels) : rows(rows), pitch((rows ? outputs : pixels) + 8) {}
  __device__ int at(int output, int pixel) const { return rows ? pixel * pitch + output : output * pitch + pixel; }
};

// Where each pixel of the tile is in y, for output 0; -1: beyond the edge.
template <class V>
__device__ void find_pixels(const SparseTile<V>& tile, const ConvShape& s, int64_t* pixels) {
  for (int pixel = threadIdx.x; pixel < V::pixels; pixel += blockDim.x) {
    const int b = tile.band_of(pixel / 2);
    const int64_t image = tile.image + tile.image_of(b), row = tile.row_of(b) + pixel % 2;
    const int64_t column = tile.column + tile.column_of(pixel / 2);
    const bool inside = image < s.images && row < s.out_height && column < s.out_width;
    const int64_t plane = s.out_height * s.out_width, place = row * s.out_width + column;
    const int64_t at = s.rows ? (image * plane + place) * s.out_channels : image * s.out_channels * plane + place;
    pixels[pixel] = inside ? at : -1;
  }
}

// A warp's outputs, the first of which is `first` of the block's, scaled and with bias (of the block's first, or null).
template <class V>
__device__ void put_sums(const Sums<V> (&sums)[V::lists], int first, int outputs, float scale,
                         const typename V::Element* bias, ResultLayout layout, typename V::Element* result) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int list = 0; list < V::lists; ++list) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int output = first + list * kListOutputs + half * 8 + lane / 4;
      const float shift = bias && output < outputs ? float(bias[output]) : 0.0f;
#pragma unroll
      for (int part = 0; part < V::pixels / 8; ++part) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float value = sums[list][part][half * 2 + i] * scale + shift;
          result[layout.at(output, part * 8 + lane % 4 * 2 + i)] = typename V::Element(value);
        }
      }
    }
  }
}

// y: of the block's first output.
template <class V, int at_once>
__device__ void store_rows(const typename V::Element* result, ResultLayout layout, const int64_t* pixels, int outputs,
                           int block_outputs, typename V::Element* y) {
  using Several = Vector<typename V::Element, at_once>;
  const int lanes = block_outputs / at_once, output = threadIdx.x % lanes * at_once;
  if (output >= outputs) return;
  for (int pixel = threadIdx.x / lanes; pixel < V::pixels; pixel += blockDim.x / lanes) {
    if (pixels[pixel] < 0) continue;
    *reinterpret_cast<Several*>(y + pixels[pixel] + output) =
        *reinterpret_cast<const Several*>(result + layout.at(output, pixel));
  }
}

template <class V>
__device__ void store_planes(const typename V::Element* result, ResultLayout layout, const int64_t* pixels, int outputs,
                             int64_t plane, typename V::Element* y) {
  const int lane = threadIdx.x % V::pixels, pixel = lane % V::pairs * 2 + lane / V::pairs;  // a row of neighbours first
  if (pixels[pixel] < 0) return;
  for (int output = threadIdx.x / V::pixels; output < outputs; output += blockDim.x / V::pixels) {
    y[pixels[pixel] + output * plane] = result[layout.at(output, pixel)];
  }
}

}  // namespace device
}  // namespace explainfix
