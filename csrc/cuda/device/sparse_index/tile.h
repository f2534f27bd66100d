// How the sparse index kernel cuts a convolution into tiles of pixels and chunks of channels, and where things lie in
// shared memory. Plain C++, shared by the launcher (cuda/launch/sparse_index.cu), the kernel (sparse_index.cuh) and the
// emulation's tests.
//
// z[i, f] is input channel i filtered by DCT function f = (u, v) at the pixels of a tile; it is stored as one row.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/common/device.cuh"
#include "shared/conv_params.h"
#include "shared/packed_layout.h"

namespace explainfix {

constexpr int kSparseThreads = 512;  // of a thread block, at most
constexpr int kStoredAtOnce = 8;     // outputs of a pixel, with channels_last and if they are aligned

// What a kernel is compiled for: the element type, K, the stride of rows and columns, whether x and y are
// channels_last. `pair` below means two pixels above each other.
template <class T, int kernel_, int stride_, bool channels_last_>
struct SparseVariant {
  using Element = T;
  static constexpr int kernel = kernel_, stride = stride_;
  static constexpr bool channels_last = channels_last_;
  static constexpr int terms = std::is_same_v<T, float> ? 3 : 1;  // a float is the sum of three bf16
  static constexpr int pixels = terms == 1 ? 64 : 32;             // of a tile
  static constexpr int pairs = pixels / 2;                        // of a tile
  static constexpr int row_bytes = terms * pixels * 2 + 16;       // 16 more, so that rows begin in different banks
  static constexpr bool by_matrix = kernel == 3 && stride == 1 && terms == 1;  // responses by tensor cores
  static constexpr int lists = kernel == 3 ? 2 : 1;         // of a warp; windows of larger filters need the registers
  static constexpr int window = (kernel + stride + 1) / 2;  // pairs in a column that the filters read for a pair
  // Row numbers of the functions with one horizontal frequency v, and of a channel.
  static constexpr int pitch = kernel == 3 ? kSparsePitch3x3 : kSparsePitchLarger;
  static constexpr int numbers = kernel * pitch;
  static constexpr int most_channels = kernel == 3 ? 64 : 16;         // of a chunk, whose row numbers need room
  static constexpr int channels = channels_last ? 8 / sizeof(T) : 1;  // that a thread reads at once
  // Pairs that a thread loads before they are needed.
  static constexpr int ahead = (channels_last ? 3 : 5) - (kernel == 7 ? 1 : 0);
  __host__ __device__ static constexpr int outputs(int threads) { return threads / 32 * lists * kSparseListOutputs; }
};

// Calls use(SparseVariant{}) for a convolution; false if no kernel is for it.
template <class T, int kernel, class Use>
bool with_sparse_kernel(const ConvShape& s, Use use) {
  const bool two = s.stride[0] == 2;
  if (s.channels_last) {
    two ? use(SparseVariant<T, kernel, 2, true>{}) : use(SparseVariant<T, kernel, 1, true>{});
  } else {
    two ? use(SparseVariant<T, kernel, 2, false>{}) : use(SparseVariant<T, kernel, 1, false>{});
  }
  return true;
}
template <class T, class Use>
bool with_sparse_variant(const ConvShape& s, Use use) {
  const int k = s.kernel[0], stride = s.stride[0];
  if (s.kernel[1] != k || s.stride[1] != stride || stride < 1 || stride > 2) return false;
  if (s.padding[0] < 0 || s.padding[0] >= k || s.padding[1] < 0 || s.padding[1] >= k) return false;
  return k == 3   ? with_sparse_kernel<T, 3>(s, use)
         : k == 5 ? with_sparse_kernel<T, 5>(s, use)
         : k == 7 ? with_sparse_kernel<T, 7>(s, use)
                  : false;
}

// A tile is V::pairs pairs of output pixels above each other. They follow each other along a band (rows 2 b and 2 b + 1
// of an image) within a panel (`width` columns of the output), then along the next band, and on into the next image, so
// that tiles are full even if planes are small. The halo of a tile, the inputs that it reads, is made of pairs too; for
// each image it begins anew.
template <class V>
struct SparseTile {
  int width, bands_of_image;
  int image, column;      // the first image, the panel's first column
  int band, skip, bands;  // the first band; how many of its pairs belong to the tile before; bands of the tile

  __host__ __device__ SparseTile(const ConvShape& s, int width, int tiles_of_panel, int tile)
      : width(width), bands_of_image(int(s.out_height + 1) / 2), column(tile / tiles_of_panel * width) {
    const int first = tile % tiles_of_panel * V::pairs, first_band = first / width;
    image = first_band / bands_of_image;
    band = first_band % bands_of_image;
    skip = first % width;
    const int here = (skip + V::pairs - 1) / width + 1, rest = int(s.images) * bands_of_image - first_band;
    bands = here < rest ? here : rest;
  }

  // Bands are counted from the tile's first, images likewise.
  __host__ __device__ int band_of(int pair) const { return (skip + pair) / width; }
  __host__ __device__ int column_of(int pair) const { return (skip + pair) % width; }
  __host__ __device__ int image_of(int b) const { return (band + b) / bands_of_image; }
  __host__ __device__ int row_of(int b) const { return 2 * ((band + b) % bands_of_image); }

  // The halo: the row of pairs in it where the windows of band b begin, and its size.
  __host__ __device__ int top(int b) const { return b * V::stride + image_of(b) * (V::window - V::stride); }
  __host__ __device__ int halo_columns() const { return (width - 1) * V::stride + V::kernel; }
  __host__ __device__ int halo() const { return (top(bands - 1) + V::window) * halo_columns(); }

  // Where in the halo the window of a pair begins. A pair after the last image gets that of another one; nobody stores
  // it.
  __host__ __device__ int window_of(int pair) const {
    const int b = band_of(pair);
    return top(b < bands ? b : bands - 1) * halo_columns() + column_of(pair) * V::stride;
  }
};

// Byte offsets in shared memory. At the end of the kernel the result overlays z: it goes out through shared memory, to
// be stored in whole lines.
template <class V>
struct SparseShared {
  static constexpr int z = 0, x = kSparseRows * V::row_bytes;
  int numbers;   // the row numbers of two chunks
  int operands;  // what dct_matrix.cuh multiplies by
  int images;    // the address of the tile's first image in x
  int windows;   // where the window of each pair begins in the halo
  int pixels;    // where each pixel of the tile is in y
  int places;    // where each pixel of the halo is in x

  __host__ __device__ explicit SparseShared(int threads) {
    numbers = x + (V::ahead * threads * V::channels + V::most_channels) * 2 * int(sizeof(typename V::Element));
    operands = numbers + 2 * V::most_channels * V::numbers * 4;
    images = operands + (V::by_matrix ? 32 * 32 : 0);
    windows = images + 16;
    pixels = windows + V::pairs * 4;
    places = pixels + V::pixels * 8;
  }
  __host__ __device__ int bytes(int pairs) const { return places + 8 * pairs; }
};

// How a thread block reads a chunk of channels of x. A team of threads reads neighbours in memory. With channels_last
// these are the channels of the chunk at one pair, and in further turns at other pairs. Otherwise they are pairs of one
// channel, all of them in some turns, and in further turns those of other channels.
struct SparseStaging {
  int pairs;     // of a channel: its halo, rounded up to whole turns
  int channels;  // of a chunk
  int team_log2, teams, turns;
  // The distance of channels in shared memory, in pairs: an odd number, so that their banks differ.
  __host__ __device__ int plane() const { return pairs | 1; }
};

}  // namespace explainfix
