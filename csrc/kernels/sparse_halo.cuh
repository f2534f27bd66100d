// x on its way to shared memory, and the row numbers of its channels: both are asked for before other work and put down
// after it, so that nobody waits for them. In shared memory a channel is a plane of pairs of pixels above each other.
#pragma once

#include "elements.cuh"
#include "sparse_device.cuh"
#include "sparse_packed.cuh"
#include "sparse_tile.h"

namespace explainfix {
namespace device {

constexpr uint32_t kNowhere = 0xffffffffu;
using Places = Vector<uint32_t, 2>;  // of a pair of pixels: elements from the tile's first image on, or kNowhere

// Where the pairs of the halo are in x. Each band writes the rows that the next one does not.
template <class V>
__device__ void find_places(const SparseTile<V>& tile, const ConvShape& s, Places* places) {
  const int columns = tile.halo_columns(), bands = tile.bands();
  const int64_t pixel_step = V::rows ? s.in_channels : 1, image_step = s.in_channels * s.height * s.width;
  for (int at = threadIdx.x; at < bands * V::window * columns; at += blockDim.x) {
    const int r = at / columns % V::window, b = at / columns / V::window, c = at % columns;
    const bool goes_on = b + 1 < bands && tile.image_of(b + 1) == tile.image_of(b);
    if (r >= V::stride && goes_on) continue;
    const int column = tile.column * V::stride - s.padding[1] + c;
    const bool inside = tile.image + tile.image_of(b) < s.images && column >= 0 && column < s.width;
    Places& pair = places[(tile.top(b) + r) * columns + c];
    for (int i = 0; i < 2; ++i) {
      const int row = tile.row_of(b) * V::stride - s.padding[0] + 2 * r + i;
      const int64_t place = tile.image_of(b) * image_step + (row * s.width + column) * pixel_step;
      pair.at[i] = inside && row >= 0 && row < s.height ? uint32_t(place) : kNowhere;
    }
  }
}

// What a thread reads of each chunk of channels. A team of threads, whose size is a power of 2, reads neighbours in
// memory: with channels_last the chunk's channels at a pair, and so on at other pairs; else all pairs of a channel, in
// some turns, and so on in other channels.
template <class V>
struct HaloSource {
  using T = typename V::Element;
  const T* x;  // of the tile's first image
  const Places* places;
  int64_t channel_step;
  int halo, plane, channels;  // pairs of a channel; with a pad, for banks to differ; channels of a chunk
  unsigned team;
  int turns;

  __device__ HaloSource(const SparseTile<V>& tile, const ConvShape& s, const T* images, const Places* places)
      : x(images + tile.image * s.in_channels * s.height * s.width),
        places(places),
        channel_step(V::rows ? 1 : s.height * s.width),
        halo(tile.halo()),
        plane(halo | 1) {
    const int threads = blockDim.x, most = kNumbersAhead * threads / V::numbers;
    if constexpr (V::rows) {
      team = 1;
      while (4 * team <= most && 2 * team * plane <= kPairsAhead * threads) team *= 2;
      turns = kPairsAhead;
      channels = 2 * team;
    } else {
      team = 32;
      while (team * kPairsAhead < plane) team *= 2;
      turns = (plane + team - 1) / team;
      channels = kPairsAhead / turns * (threads / team);
      if (channels > most) channels = most;
    }
  }

  // Calls read(i, pair, channel) for what this thread reads.
  template <class Read>
  __device__ void each(int chunk_channels, Read read) const {
    const unsigned thread = opaque(int(threadIdx.x));
    const int in_team = thread % team, my_team = thread / team, teams = blockDim.x / team;
    int pair = V::rows ? my_team : in_team, channel = V::rows ? in_team * V::channels : my_team, turn = 0;
#pragma unroll
    for (int i = 0; i < kPairsAhead; ++i) {
      if (pair < halo && channel < chunk_channels) read(i, pair, channel);
      pair += V::rows ? teams : team;
      if (V::rows || ++turn < turns) continue;
      turn = 0;
      pair = in_team;
      channel += teams;
    }
  }
};

// One or two neighbours of type T as the bits of one load: structs of 16 bits the compiler would take apart.
template <class T, int count>
struct Bits {
  using Word = std::conditional_t<sizeof(T) * count == 2, uint16_t,
                                  std::conditional_t<sizeof(T) * count == 4, uint32_t, uint64_t>>;
  Word word;

  __device__ T operator[](int i) const {
    if constexpr (std::is_same_v<T, float>) {
      return float_of_bits(uint32_t(uint64_t(word) >> 32 * i));
    } else {
      T element;
      element.bits = uint16_t(word >> 16 * i);
      return element;
    }
  }
};

// What a thread has under way, of one chunk.
template <class V>
struct HaloAhead {
  using T = typename V::Element;
  using Read = Bits<T, V::channels>;
  Read upper[kPairsAhead], lower[kPairsAhead];
  int32_t numbers[kNumbersAhead];

  __device__ void ask(const HaloSource<V>& source, const SparseChunk& chunk, const int32_t* packed) {
    source.each(chunk.channels(), [&](int i, int pair, int channel) {
      const Places places = source.places[pair];
      const T* x = opaque(source.x + (chunk.begin + channel) * source.channel_step);
      upper[i].word = lower[i].word = 0;
      if (places.at[0] != kNowhere) upper[i] = *reinterpret_cast<const Read*>(x + places.at[0]);
      if (places.at[1] != kNowhere) lower[i] = *reinterpret_cast<const Read*>(x + places.at[1]);
    });
    const int32_t* rows = packed + chunk.rows;
#pragma unroll
    for (int i = 0; i < kNumbersAhead; ++i) {
      const int at = threadIdx.x + i * blockDim.x;
      if (at < chunk.channels() * V::numbers) numbers[i] = rows[at];
    }
  }

  __device__ void put(const HaloSource<V>& source, int channels, Vector<T, 2>* x, int32_t* rows) const {
    source.each(channels, [&](int i, int pair, int channel) {
#pragma unroll
      for (int j = 0; j < V::channels; ++j) x[(channel + j) * source.plane + pair] = {{upper[i][j], lower[i][j]}};
    });
#pragma unroll
    for (int i = 0; i < kNumbersAhead; ++i) {
      const int at = threadIdx.x + i * blockDim.x;
      if (at < channels * V::numbers) rows[at] = numbers[i];
    }
  }
};

}  // namespace device
}  // namespace explainfix
