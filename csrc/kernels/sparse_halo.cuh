// x on its way to shared memory, and the row numbers of its channels: both are asked for before other work and put down
// after it, so that nobody waits for them. In shared memory a channel is a plane of pairs of pixels above each other.
#pragma once

#include "elements.cuh"
#include "sparse_tile.h"

namespace explainfix {
namespace device {

constexpr uint32_t kNowhere = 0xffffffffu;
using Places = Vector<uint32_t, 2>;  // of a pair of pixels: elements from the tile's first image on, or kNowhere

// Division by a number that the compiler does not know: exact where dividend * divisor < 2^31.
struct Divider {
  uint32_t factor;
  __device__ explicit Divider(int divisor) : factor((1u << 31) / uint32_t(divisor) + 1) {}
  __device__ int operator()(int dividend) const { return int(uint64_t(uint32_t(dividend)) * factor >> 31); }
};

// Where the pairs of the halo are in x. Each band writes the rows that the next one does not.
template <class V>
__device__ void find_places(const SparseTile<V>& tile, const ConvShape& s, Places* places) {
  const int columns = tile.halo_columns(), bands = tile.bands();
  const int64_t pixel_step = s.rows ? s.in_channels : 1, image_step = s.in_channels * s.height * s.width;
  for (int at = threadIdx.x; at < bands * V::window * columns; at += blockDim.x) {
    const int b = at / (V::window * columns), r = at / columns % V::window, c = at % columns;
    const bool goes_on = b + 1 < bands && tile.image_of(b + 1) == tile.image_of(b);
    if (r >= V::stride && goes_on) continue;
    const int64_t column = tile.column * V::stride - s.padding[1] + c;
    const bool inside = tile.image + tile.image_of(b) < s.images && column >= 0 && column < s.width;
    Places& pair = places[(tile.top(b) + r) * columns + c];
    for (int i = 0; i < 2; ++i) {
      const int64_t row = int64_t(tile.row_of(b)) * V::stride - s.padding[0] + 2 * r + i;
      const int64_t place = tile.image_of(b) * image_step + (row * s.width + column) * pixel_step;
      pair.at[i] = inside && row >= 0 && row < s.height ? uint32_t(place) : kNowhere;
    }
  }
}

// The same for all threads of a block.
template <class V>
struct HaloSource {
  using T = typename V::Element;
  const T* x;  // of the tile's first image
  const Places* places;
  int64_t channel_step;
  int halo, plane, channels;  // pairs of a channel; with a pad, for banks to differ; channels of a chunk
  bool rows;
  Divider divide;

  __device__ HaloSource(const T* images, const ConvShape& s, const SparseTile<V>& tile, const Places* places)
      : x(images + tile.image * s.in_channels * s.height * s.width),
        places(places),
        channel_step(s.rows ? 1 : s.height * s.width),
        halo(tile.halo()),
        plane(halo | 1),
        channels(channels_of(plane)),
        rows(s.rows),
        divide(rows ? channels : halo) {}

  // As many as threads have room for, and where that is more than they transform at once a multiple of it.
  __device__ static int channels_of(int plane) {
    const int at_once = int(blockDim.x) / V::pairs;
    int most = kPairsAhead * int(blockDim.x) / plane;
    const int most_rows = kRowsAhead * int(blockDim.x) / (V::kernel * V::pitch);
    if (most > most_rows) most = most_rows;
    return most > at_once ? most - most % at_once : most;
  }

  // The pair and channel that number `at` of a chunk is: neighbours are neighbours in memory.
  __device__ void locate(int at, int* pair, int* channel) const {
    const int slow = divide(at);
    *pair = rows ? slow : at - slow * halo;
    *channel = rows ? at - slow * channels : slow;
  }
};

// What a thread has under way, of one chunk.
template <class V>
struct HaloAhead {
  using T = typename V::Element;
  T pairs[kPairsAhead][2];
  int32_t rows[kRowsAhead];

  // x: of the chunk's first channel; numbers: of its rows.
  __device__ void ask(const HaloSource<V>& from, int64_t first, int channels, const int32_t* numbers) {
    const T* x = from.x + first * from.channel_step;
#pragma unroll
    for (int i = 0; i < kPairsAhead; ++i) {
      int pair, channel;
      from.locate(threadIdx.x + i * blockDim.x, &pair, &channel);
      if (pair >= from.halo || channel >= channels) continue;
      const Places places = from.places[pair];
      const T* plane = x + channel * from.channel_step;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        pairs[i][half] = places.at[half] != kNowhere ? plane[places.at[half]] : T(0.0f);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      const int at = threadIdx.x + i * blockDim.x;
      if (at < channels * V::kernel * V::pitch) rows[i] = numbers[at];
    }
  }

  __device__ void put(const HaloSource<V>& from, int channels, Vector<T, 2>* x, int32_t* numbers) const {
#pragma unroll
    for (int i = 0; i < kPairsAhead; ++i) {
      int pair, channel;
      from.locate(threadIdx.x + i * blockDim.x, &pair, &channel);
      if (pair < from.halo && channel < channels) x[channel * from.plane + pair] = {{pairs[i][0], pairs[i][1]}};
    }
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      const int at = threadIdx.x + i * blockDim.x;
      if (at < channels * V::kernel * V::pitch) numbers[at] = rows[i];
    }
  }
};

}  // namespace device
}  // namespace explainfix
