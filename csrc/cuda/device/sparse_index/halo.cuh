// x on its way to shared memory, asked for before other work and put down after it, so that nobody waits for it. In
// shared memory a channel is a plane of pairs of pixels above each other.
#pragma once

#include "cuda/device/sparse_index/instructions.cuh"
#include "cuda/device/sparse_index/packed.cuh"
#include "cuda/device/sparse_index/pixel_pairs.cuh"
#include "cuda/device/sparse_index/tile.h"

namespace explainfix {
namespace device {

constexpr uint32_t kNowhere = 0xffffffffu;
using Places = Vector<uint32_t, 2>;  // of a pair of pixels: elements from the tile's first image on, or kNowhere

// Where the `pairs` pairs that are read for a channel are in x: those of the halo, each band's but for the rows that
// the next one begins with, and nothing.
template <class V>
__device__ void find_places(const SparseTile<V>& tile, const ConvShape& s, int pairs, Places* places) {
  const int columns = tile.halo_columns(), bands = tile.bands;
  for (int at = tile.halo() + threadIdx.x; at < pairs; at += blockDim.x) places[at] = {{kNowhere, kNowhere}};
  const int64_t pixel_step = V::channels_last ? s.in_channels : 1, image_step = s.in_channels * s.height * s.width;
  for (int at = threadIdx.x; at < bands * V::window * columns; at += blockDim.x) {
    const int r = at / columns % V::window, b = at / columns / V::window, c = at % columns;
    const bool goes_on = b + 1 < bands && tile.image_of(b + 1) == tile.image_of(b);
    if (r >= V::stride && goes_on) continue;
    const int column = tile.column * V::stride - s.padding[1] + c;
    const bool inside = column >= 0 && column < s.width;
    Places& pair = places[(tile.top(b) + r) * columns + c];
    for (int i = 0; i < 2; ++i) {
      const int row = tile.row_of(b) * V::stride - s.padding[0] + 2 * r + i;
      const int64_t place = tile.image_of(b) * image_step + (row * s.width + column) * pixel_step;
      pair.at[i] = inside && row >= 0 && row < s.height ? uint32_t(place) : kNowhere;
    }
  }
}

// The same for all threads of a block.
template <class V>
struct HaloReads {
  const typename V::Element* const* x;  // of the tile's first image; in shared memory, for the registers are full
  const Places* places;
  int64_t channel_step;
  SparseStaging staging;

  // Calls read(i, pair, channel, at) for what this thread reads of a chunk, and where that is in shared memory.
  template <class Read>
  __device__ void each(int channels, Read read) const {
    const int thread = opaque(int(threadIdx.x)), my_team = thread >> staging.team_log2, plane = staging.plane();
    const int in_team = thread - (my_team << staging.team_log2), team = 1 << staging.team_log2;
    int pair = V::channels_last ? my_team : in_team, channel = V::channels_last ? in_team * V::channels : my_team;
    int at = channel * plane + pair;
#pragma unroll
    for (int i = 0, turn = 0; i < V::ahead; ++i) {
      if ((V::channels_last && i == staging.turns) || channel >= channels) break;
      read(i, pair, channel, at);
      pair += V::channels_last ? staging.teams : team;
      at += V::channels_last ? staging.teams : team;
      if (V::channels_last || ++turn < staging.turns) continue;
      turn = 0;
      pair = in_team;
      channel += staging.teams;
      at = channel * plane + pair;
    }
  }
};

// What a thread has under way, of one chunk.
template <class V>
struct HaloAhead {
  using T = typename V::Element;
  using Read = PixelRead<T, V::channels>;
  Read upper[V::ahead], lower[V::ahead];

  __device__ void ask(const HaloReads<V>& source, const SparseChunk<V>& chunk) {
    source.each(chunk.channels(), [&](int i, int pair, int channel, int) {
      const Places places = source.places[pair];
      const T* x = opaque(*source.x + (chunk.begin + channel) * source.channel_step);
      upper[i].bits = lower[i].bits = 0;
      if (places.at[0] != kNowhere) upper[i] = *reinterpret_cast<const Read*>(x + places.at[0]);
      if (places.at[1] != kNowhere) lower[i] = *reinterpret_cast<const Read*>(x + places.at[1]);
    });
  }

  __device__ void put(const HaloReads<V>& source, int channels, PixelPair<T>* x) const {
    source.each(channels, [&](int i, int, int, int at) {
#pragma unroll
      for (int j = 0; j < V::channels; ++j) x[at + j * source.staging.plane()] = upper[i].above(lower[i], j);
    });
  }
};

}  // namespace device
}  // namespace explainfix
