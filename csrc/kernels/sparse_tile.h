// How a filter-sparse convolution is cut into blocks of threads, and where things lie in shared memory. Plain C++: the
// launch, the kernel and the tests on the host share it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "conv_shape.h"
#include "device.cuh"

namespace explainfix {

constexpr int kSparseRows = 640;     // of z in shared memory, as packing_cuda.py fills them; 0 to 7 are zeros
constexpr int kZeroRows = 8;         // one for each remainder mod 8, which tells the banks
constexpr int kListOutputs = 16;     // of a list: the rows of a tensor core instruction
constexpr int kSparseThreads = 512;  // of a block, at most
constexpr int kPairsAhead = 6;       // pairs of x that a thread has asked for before they are needed
constexpr int kRowsAhead = 2;        // row numbers that it has

// What is compiled for: the element type, K, the stride of rows and columns.
template <class T, int kernel_, int stride_>
struct SparseVariant {
  using Element = T;
  static constexpr int kernel = kernel_, stride = stride_;
  static constexpr int terms = std::is_same_v<T, float> ? 3 : 1;  // a float is the sum of three bf16
  static constexpr int pixels = terms == 1 ? 64 : 32;             // of a tile
  static constexpr int pairs = pixels / 2;                        // of pixels above each other
  static constexpr int row_bytes = terms * pixels * 2 + 16;       // 16 more, for rows to begin in different banks
  static constexpr int lists = kernel == 3 ? 2 : 1;  // of a warp; a larger filter's taps need the registers
  static constexpr int outputs(int threads) { return threads / 32 * lists * kListOutputs; }
  static constexpr int window = (kernel + stride + 1) / 2;  // pairs in a column that the filters of a pair read
  static constexpr int pitch = kernel == 3 ? 4 : 8;         // row numbers of functions with one horizontal frequency
};

// A tile: `pairs` pairs of output pixels above each other. They follow each other along a band (rows 2 b and 2 b + 1 of
// an image) within a panel of `width` columns, then along the next band, and on into the next image, so that the tiles
// of small planes are full. Its halo, the inputs that they read, are pairs of rows too; a new image begins anew.
template <class V>
struct SparseTile {
  int width, bands_of_image;
  int64_t image, column;  // the first image, the panel's first column
  int band, skip;         // the first band, and how many of its pairs belong to the tile before

  __host__ __device__ SparseTile(const ConvShape& s, int width, int64_t tile) : width(width) {
    bands_of_image = int((s.out_height + 1) / 2);
    const int64_t in_panel = tiles_of_panel(s, width), first = tile % in_panel * V::pairs;
    column = tile / in_panel * width;
    image = first / width / bands_of_image;
    band = int(first / width % bands_of_image);
    skip = int(first % width);
  }

  __host__ __device__ static int64_t tiles_of_panel(const ConvShape& s, int width) {
    return (s.images * ((s.out_height + 1) / 2) * width + V::pairs - 1) / V::pairs;
  }

  // Bands are counted from the tile's first, images likewise.
  __host__ __device__ int bands() const { return (skip + V::pairs - 1) / width + 1; }
  __host__ __device__ int band_of(int pair) const { return (skip + pair) / width; }
  __host__ __device__ int column_of(int pair) const { return (skip + pair) % width; }
  __host__ __device__ int image_of(int b) const { return (band + b) / bands_of_image; }
  __host__ __device__ int row_of(int b) const { return 2 * ((band + b) % bands_of_image); }

  // The halo: where the windows of a band begin in it, and its size.
  __host__ __device__ int top(int b) const { return b * V::stride + image_of(b) * (V::window - V::stride); }
  __host__ __device__ int halo_rows() const { return top(bands() - 1) + V::window; }
  __host__ __device__ int halo_columns() const { return (width - 1) * V::stride + V::kernel; }
  __host__ __device__ int halo() const { return halo_rows() * halo_columns(); }
};

// Byte offsets in shared memory. At the end of the kernel the result overlays z, on its way to whole lines of memory.
template <class V>
struct SparseShared {
  static constexpr int z = 0, x = kSparseRows * V::row_bytes;
  int rows, pixels, places;  // row numbers; where outputs go; where the halo comes from

  __host__ __device__ explicit SparseShared(int threads) {
    rows = x + kPairsAhead * threads * 2 * int(sizeof(typename V::Element));
    pixels = rows + kRowsAhead * threads * 4;
    places = pixels + V::pixels * 8;
  }
  __host__ __device__ int bytes(int halo) const { return places + 8 * halo; }
};

// The images that a tile has pixels of, at most; those beyond the last one count.
template <class V>
int images_of_tile(const ConvShape& s, int width) {
  const int64_t bands = (s.out_height + 1) / 2, skip = V::pairs % width == 0 ? 0 : width - 1;
  return int(((skip + V::pairs - 1) / width + bands - 1) / bands) + 1;
}

// Pairs in the largest halo.
template <class V>
int largest_halo(const ConvShape& s, int width) {
  const int skip = V::pairs % width == 0 ? 0 : width - 1;
  const int steps = (skip + V::pairs - 1) / width, new_images = images_of_tile<V>(s, width) - 1;
  return (steps * V::stride + new_images * (V::window - V::stride) + V::window) * ((width - 1) * V::stride + V::kernel);
}

// The width of panels that makes the least work: pixels beyond the right edge are computed for nothing, and a wide halo
// is more to read. A pair of the halo costs about 1/600 of what a tile does with a channel.
template <class V>
int choose_width(const ConvShape& s) {
  int best = 0;
  int64_t least = INT64_MAX;
  for (int width = 1; width <= std::min<int64_t>(V::pairs, s.out_width); ++width) {
    const int halo = largest_halo<V>(s, width);
    const int64_t panels = (s.out_width + width - 1) / width;
    const int64_t cost = panels * SparseTile<V>::tiles_of_panel(s, width) * (600 + halo);
    if (cost >= least || (halo | 1) > kPairsAhead * kSparseThreads / 2) continue;
    best = width;
    least = cost;
  }
  return best;
}

struct SparseGrid {
  int width, shared_bytes;
  unsigned tiles, output_blocks, groups, threads;
};

// Nullopt: sizes that the kernel counts in 32 bits would not fit. A block of 512 threads makes twice the outputs from
// the same responses, one of 256 leaves room for a second one on a multiprocessor: which hides its latencies, and
// serves where tiles are few.
template <class V>
std::optional<SparseGrid> sparse_grid(const ConvShape& s, int processors) {
  const int64_t limit = int64_t(1) << 30, outputs = s.out_channels / s.groups;
  if (s.in_channels > limit || outputs > limit || s.out_height > limit || s.out_width > limit) return std::nullopt;
  const int width = choose_width<V>(s);
  if (width == 0 || images_of_tile<V>(s, width) * s.in_channels * s.height * s.width >= 4 * limit) return std::nullopt;
  const int64_t tiles = (s.out_width + width - 1) / width * SparseTile<V>::tiles_of_panel(s, width);
  const int few = kSparseThreads / 2;
  const int threads = outputs > V::outputs(few) && tiles * s.groups >= processors ? kSparseThreads : few;
  const int64_t output_blocks = (outputs + V::outputs(threads) - 1) / V::outputs(threads);
  if (tiles > 2 * limit - 1 || output_blocks > 65535 || s.groups > 65535) return std::nullopt;
  return SparseGrid{width,           SparseShared<V>(threads).bytes(largest_halo<V>(s, width)),
                    unsigned(tiles), unsigned(output_blocks),
                    unsigned(s.groups), unsigned(threads)};
}

}  // namespace explainfix
