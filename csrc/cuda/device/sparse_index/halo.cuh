// How the sparse index kernel brings the halo of a tile from x to shared memory: loaded into registers before other
// work and stored after it, so that no thread waits for memory. In shared memory a channel is a plane of pairs (two
// pixels above each other).
#pragma once

#include "cuda/device/sparse_index/instructions.cuh"
#include "cuda/device/sparse_index/packed.cuh"
#include "cuda/device/sparse_index/pixel_pairs.cuh"
#include "cuda/device/sparse_index/tile.h"

namespace explainfix {
namespace device {

constexpr uint32_t kNowhere = 0xffffffffu;
using Places = Vector<uint32_t, 2>;  // of a pair: elements from the tile's first image, or kNowhere

// Finds where the pairs of the halo are in x. The last rows of a band are left to the next one, which begins with them.
// Pairs after the halo's last, up to `pairs` that are read for a channel, are nowhere.
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

// Which pairs of which channels a thread reads. It is the same for all threads of a block but for threadIdx.
template <class V>
struct HaloReads {
  const typename V::Element* const* x;  // the tile's first image; kept in shared memory, for lack of registers
  const Places* places;
  int64_t channel_step;
  SparseStaging staging;

  // Calls read(i, pair, channel, at) for what this thread reads of a chunk; `at` is where that goes in shared memory.
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

// What a thread has loaded of one chunk and not yet stored.
template <class V>
struct HaloAhead {
  using T = typename V::Element;
  using Read = PixelRead<T, V::channels>;
  Read upper[V::ahead], lower[V::ahead];

  __device__ void load(const HaloReads<V>& reads, const SparseChunk<V>& chunk) {
    reads.each(chunk.channels(), [&](int i, int pair, int channel, int) {
      const Places places = reads.places[pair];
      const T* x = opaque(*reads.x + (chunk.begin + channel) * reads.channel_step);
      upper[i].bits = lower[i].bits = 0;
      if (places.at[0] != kNowhere) upper[i] = *reinterpret_cast<const Read*>(x + places.at[0]);
      if (places.at[1] != kNowhere) lower[i] = *reinterpret_cast<const Read*>(x + places.at[1]);
    });
  }

  __device__ void store(const HaloReads<V>& reads, int channels, PixelPair<T>* x) const {
    reads.each(channels, [&](int i, int, int, int at) {
#pragma unroll
      for (int j = 0; j < V::channels; ++j) x[at + j * reads.staging.plane()] = upper[i].above(lower[i], j);
    });
  }
};

}  // namespace device
}  // namespace explainfix
