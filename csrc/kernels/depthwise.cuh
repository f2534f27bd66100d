// Depthwise convolution and its input gradient. Torch-free: nvcc compiles this for the device, the tests with g++ for
// the host.
//
// Floor: one read of x and one write of y. A thread walks down the rows of a few neighbouring columns. What it needs of
// the rows above it keeps in registers, not as inputs but as the sums of outputs that are not finished: each new row of
// inputs adds to all outputs that it reaches. No shared memory, no barrier: columns that two tiles read come from L1.
//
// Near the floor two more things count. Instructions: at 3 TB/s an H100 has time for 39 a pixel of bf16; a separable
// filter takes 2 K of them, any other K^2. And bytes in flight, about 7 KB of x an SM: rows are loaded before the
// arithmetic of the rows above them.
#pragma once

#include "depthwise_geometry.h"
#include "elements.cuh"

namespace explainfix {
namespace device {

// One row of taps over one row of inputs: adds to the sum that an output column of a tile has.
template <class Reach, int inputs, int V>
__device__ __forceinline__ void correlate(const float (&tap)[Reach::kernel][V], const float (&x)[inputs][V],
                                          int column, float (&sum)[V]) {
#pragma unroll
  for (int input = 0; input < inputs; ++input) {
    if (!Reach::meet(column, input)) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += tap[Reach::tap(column, input)][v] * x[input][v];
  }
}

// The filters of a thread's channels, and how a row of inputs adds to the rows of outputs: K^2 multiply-adds an output.
template <class Reach, int V, bool separable>
struct Filter {
  static constexpr int K = Reach::kernel;
  float tap[K][K][V];

  // filters: [K][K][channels].
  __device__ __forceinline__ Filter(const DepthwiseGrid& g, const float* filters) {
#pragma unroll
    for (int t = 0; t < K * K; ++t) {
      const float* from = filters + int64_t(g.flipped ? K * K - 1 - t : t) * g.channels;
#pragma unroll
      for (int v = 0; v < V; ++v) tap[t / K][t % K][v] = from[v];
    }
  }

  template <int pending, int columns, int inputs>
  __device__ __forceinline__ void add(const float (&x)[inputs][V], int row, float (&sum)[pending][columns][V]) const {
#pragma unroll
    for (int output = 0; output < pending; ++output) {
      if (!Reach::meet(output, row)) continue;
#pragma unroll
      for (int column = 0; column < columns; ++column) {
        correlate<Reach>(tap[Reach::tap(output, row)], x, column, sum[output][column]);
      }
    }
  }
};

// A column times a row: 2 K multiply-adds.
template <class Reach, int V>
struct Filter<Reach, V, true> {
  static constexpr int K = Reach::kernel;
  float down[K][V], across[K][V];

  // filters: columns [K][channels], then rows [K][channels].
  __device__ __forceinline__ Filter(const DepthwiseGrid& g, const float* filters) {
#pragma unroll
    for (int t = 0; t < K; ++t) {
      const float* from = filters + int64_t(g.flipped ? K - 1 - t : t) * g.channels;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        down[t][v] = from[v];
        across[t][v] = from[int64_t(K) * g.channels + v];
      }
    }
  }

  template <int pending, int columns, int inputs>
  __device__ __forceinline__ void add(const float (&x)[inputs][V], int row, float (&sum)[pending][columns][V]) const {
#pragma unroll
    for (int column = 0; column < columns; ++column) {
      float filtered[V] = {};
      correlate<Reach>(across, x, column, filtered);
#pragma unroll
      for (int output = 0; output < pending; ++output) {
        if (!Reach::meet(output, row)) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) sum[output][column][v] += down[Reach::tap(output, row)][v] * filtered[v];
      }
    }
  }
};

// The elements of V channels of a pixel as one load or store moves them. As a number, so that a register holds it.
template <int bytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint64_t;
};
template <class T, int V>
using Word = typename WordOf<sizeof(T) * V>::type;

__device__ inline float element(uint32_t bits, float) { return float_of_bits(bits); }
__device__ inline float element(uint32_t bits, Bf16) { return float_of_bits(bits << 16); }
__device__ inline float element(uint32_t bits, Fp16) { return float_of_fp16(uint16_t(bits)); }
__device__ inline uint32_t bits_of(float value) { return bits_of_float(value); }
__device__ inline uint32_t bits_of(Bf16 value) { return value.bits; }
__device__ inline uint32_t bits_of(Fp16 value) { return value.bits; }

template <class T, int V>
__device__ __forceinline__ void unpack(Word<T, V> word, float (&to)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = element(uint32_t(word >> 8 * sizeof(T) * v), T());
}

template <class T, int V>
__device__ __forceinline__ Word<T, V> pack(const float (&from)[V]) {
  Word<T, V> word = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) word |= Word<T, V>(bits_of(T(from[v]))) << 8 * sizeof(T) * v;
  return word;
}

// Neighbouring columns of a plane, row by row from the top. Pixels outside of the plane read as zero and are not
// written; nor are those outside of rows [begin, end).
template <class W, int columns>
struct Strip {
  char* at;  // the first column in `row`
  int64_t pitch;
  unsigned pixel;  // bytes, as pitch
  int row, begin, end;
  uint32_t inside;  // a bit for each column

  // `plane`: its first pixel.
  __device__ __forceinline__ Strip(const void* plane, int width, unsigned pixel_, int column, int row_, int begin_, int end_)
      : at((char*)(plane) + (int64_t(row_) * width + column) * pixel_),
        pitch(int64_t(width) * pixel_),
        pixel(pixel_),
        row(row_),
        begin(begin_),
        end(end_),
        inside(0) {
#pragma unroll
    for (int c = 0; c < columns; ++c) inside |= uint32_t(unsigned(column + c) < unsigned(width)) << c;
  }

  __device__ __forceinline__ void load_row(W (&to)[columns]) {
    const uint32_t valid = row >= begin && row < end ? inside : 0;
#pragma unroll
    for (int c = 0; c < columns; ++c) to[c] = valid >> c & 1 ? *reinterpret_cast<const W*>(at + c * pixel) : W(0);
    at += pitch;
    ++row;
  }

  __device__ __forceinline__ void store_row(const W (&from)[columns]) {
    const uint32_t valid = row >= begin && row < end ? inside : 0;
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      if (valid >> c & 1) *reinterpret_cast<W*>(at + c * pixel) = from[c];
    }
    at += pitch;
    ++row;
  }
};

// What a thread computes.
struct DepthwisePlace {
  int64_t image;
  int channel, tile, first_step, steps;
};

__device__ inline DepthwisePlace place_of(const DepthwiseGrid& g, uint32_t thread, int vector) {
  const uint32_t lane = thread % g.lanes, tiles = thread / g.lanes, segments = tiles / g.tiles;
  const uint32_t chunks = segments / g.segments;
  const int first_step = int(segments % g.segments) * g.segment_steps, left = g.row_steps - first_step;
  return {chunks / g.chunks, int(chunks % g.chunks * g.lanes + lane) * vector, int(tiles % g.tiles), first_step,
          left < g.segment_steps ? left : g.segment_steps};
}

// rows: pixels of all channels (channels_last); else planes. `filters` as Filter wants them; bias may be null.
template <class T, class Reach, bool separable, bool rows, int V>
__global__ void __launch_bounds__(kDepthwiseThreads)
    depthwise_kernel(DepthwiseGrid g, const T* __restrict__ x, const float* __restrict__ filters,
                     const T* __restrict__ bias, T* __restrict__ y) {
  constexpr int columns = depthwise_columns(Reach::kernel, separable, V), inputs = Reach::inputs(columns);
  constexpr int pending = Reach::steps * Reach::gives;  // rows of outputs that a row of inputs may reach
  constexpr int warm_up = Reach::steps - 1;             // steps before the first whose outputs are complete
  constexpr int ahead = sizeof(T) == 2 && Reach::takes == 1 ? 2 : 1;  // steps

  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= g.threads) return;
  const DepthwisePlace place = place_of(g, thread, V);
  if (place.channel >= g.channels) return;

  const unsigned pixel = (rows ? g.channels : 1) * sizeof(T);
  const auto plane = [&](int64_t pixels) {
    return rows ? place.image * pixels * g.channels + place.channel
                : (place.image * g.channels + place.channel) * pixels;
  };
  const int top = g.first_input[0] + place.first_step * Reach::takes;
  const int bottom = top + (place.steps - 1) * Reach::takes + Reach::span;
  Strip<Word<T, V>, inputs> source(x + plane(int64_t(g.height) * g.width), g.width, pixel,
                                   g.first_input[1] + place.tile * (columns / Reach::gives * Reach::takes),
                                   top + Reach::span - Reach::steps * Reach::takes, top < 0 ? 0 : top,
                                   bottom < g.height ? bottom : g.height);
  const int out_top = g.first_output[0] + place.first_step * Reach::gives;
  const int out_bottom = out_top + place.steps * Reach::gives;
  Strip<Word<T, V>, columns> target(y + plane(int64_t(g.out_height) * g.out_width), g.out_width, pixel,
                              g.first_output[1] + place.tile * columns, out_top - warm_up * Reach::gives,
                              out_top < 0 ? 0 : out_top, out_bottom < g.out_height ? out_bottom : g.out_height);

  Word<T, V> loaded[ahead][Reach::takes][inputs];
#pragma unroll
  for (int a = 0; a < ahead; ++a) {
#pragma unroll
    for (int i = 0; i < Reach::takes; ++i) source.load_row(loaded[a][i]);
  }
  const Filter<Reach, V, separable> filter(g, filters + place.channel);
  float initial[V], sum[pending][columns][V];
#pragma unroll
  for (int v = 0; v < V; ++v) initial[v] = bias ? static_cast<float>(bias[place.channel + v]) : 0.0f;
#pragma unroll
  for (int i = 0; i < pending * columns * V; ++i) sum[i / V / columns][i / V % columns][i % V] = initial[i % V];

  for (int step = -warm_up; step < place.steps; step += ahead) {
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
#pragma unroll
      for (int i = 0; i < Reach::takes; ++i) {
        float row[inputs][V];
#pragma unroll
        for (int c = 0; c < inputs; ++c) unpack<T, V>(loaded[a][i][c], row[c]);
        source.load_row(loaded[a][i]);
        filter.add(row, Reach::span - Reach::takes + i, sum);
      }
#pragma unroll
      for (int output = 0; output < Reach::gives; ++output) {
        Word<T, V> out[columns];
#pragma unroll
        for (int c = 0; c < columns; ++c) out[c] = pack<T, V>(sum[output][c]);
        target.store_row(out);
      }
#pragma unroll
      for (int output = 0; output < pending; ++output) {
#pragma unroll
        for (int c = 0; c < columns; ++c) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            sum[output][c][v] = output + Reach::gives < pending ? sum[output + Reach::gives][c][v] : initial[v];
          }
        }
      }
    }
  }
}

}  // namespace device
}  // namespace explainfix
