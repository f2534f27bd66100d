// Depthwise convolution and its input gradient: one filter for each channel. Torch-free: nvcc compiles this for
// cuda/launch/depthwise.cu, and the emulation's tests compile it with g++.
//
// The bound is one read of x and one write of y. A thread walks down the rows of a few neighbouring columns. What it
// needs of the rows above it keeps in registers, not as inputs but as sums of outputs that are not finished: each new
// row of inputs adds to all outputs that it reaches. No shared memory, no barrier: columns that two tiles read come
// from L1.
//
// Near the bound two more things count. Instructions: at 3 TB/s an H100 has time for 39 a pixel of bf16; a separable
// filter takes 2 K of them, any other K^2. And bytes in flight, about 7 KB of x for a multiprocessor: rows are loaded
// before the arithmetic of the rows above them.
#pragma once

#include "cuda/device/depthwise/geometry.h"
#include "cuda/device/depthwise/strip.cuh"

namespace explainfix {
namespace device {

// One row of taps over one row of inputs: adds to the sum of an output column. V: channels of the thread.
template <class Reach, int inputs, int V>
__device__ __forceinline__ void correlate(const float (&tap)[Reach::kernel][V], const float (&x)[inputs][V], int column,
                                          float (&sum)[V]) {
#pragma unroll
  for (int input = 0; input < inputs; ++input) {
    if (!Reach::meet(column, input)) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += tap[Reach::tap(column, input)][v] * x[input][v];
  }
}

// Tap t of V channels, of [taps][channels]; counted from the end where filters are flipped.
template <int V>
__device__ __forceinline__ void load_tap(const DepthwiseGrid& g, const float* taps, int t, float (&to)[V]) {
  Packed<float, V>::load(taps + g.first_tap + t * g.tap_step).unpack(to);
}

// The filters of a thread's channels, and how a row of inputs adds to the rows of outputs. In general K^2 multiply-adds
// an output.
template <class Reach, int V, bool separable>
struct Filter {
  static constexpr int K = Reach::kernel;
  float tap[K][K][V];

  // filters: [K][K][channels].
  __device__ __forceinline__ Filter(const DepthwiseGrid& g, const float* filters) {
#pragma unroll
    for (int t = 0; t < K * K; ++t) load_tap(g, filters, t, tap[t / K][t % K]);
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

// Separable filters, a column times a row: 2 K multiply-adds an output.
template <class Reach, int V>
struct Filter<Reach, V, true> {
  static constexpr int K = Reach::kernel;
  float down[K][V], across[K][V];

  // filters: columns [K][channels], then rows [K][channels].
  __device__ __forceinline__ Filter(const DepthwiseGrid& g, const float* filters) {
#pragma unroll
    for (int t = 0; t < K; ++t) {
      load_tap(g, filters, t, down[t]);
      load_tap(g, filters + int64_t(K) * g.channels, t, across[t]);
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

// What a thread computes: `vector` channels from `channel` on, the columns of a tile, some steps of rows.
struct DepthwisePlace {
  int64_t image;
  int channel, tile, first_step, steps;
};

__device__ inline DepthwisePlace place_of(const DepthwiseGrid& g, uint32_t thread, int vector) {
  const uint32_t lane = thread % g.lanes, tiles = thread / g.lanes, segments = tiles / g.across.steps;
  const uint32_t chunks = segments / g.segments;
  const int first_step = int(segments % g.segments) * g.segment_steps, left = g.down.steps - first_step;
  return {chunks / g.chunks, int(chunks % g.chunks * g.lanes + lane) * vector, int(tiles % g.across.steps), first_step,
          left < g.segment_steps ? left : g.segment_steps};
}

// A walk from row `next` on, which wants those of rows [begin, end) that are inside of the plane.
__device__ inline RowRange clip(int next, int begin, int end, int height) {
  const int first = begin < 0 ? 0 : begin, last = end < height ? end : height;
  return {first, last < first ? 0 : last - first, next - first};
}

// The rows that a thread reads, and those that it writes. Both walks begin Reach::steps - 1 steps before the segment,
// for the sums of its first outputs; of those steps only the inputs are wanted that the segment's outputs read.
template <class Reach>
__device__ __forceinline__ RowRange input_rows(const DepthwiseAxis& down, const DepthwisePlace& place) {
  const int begin = down.first_input + place.first_step * Reach::takes;
  const int end = begin + (place.steps - 1) * Reach::takes + Reach::span;
  return clip(begin + Reach::span - Reach::steps * Reach::takes, begin, end, down.inputs);
}

template <class Reach>
__device__ __forceinline__ RowRange output_rows(const DepthwiseAxis& down, const DepthwisePlace& place) {
  const int begin = down.first_output + place.first_step * Reach::gives;
  return clip(begin - (Reach::steps - 1) * Reach::gives, begin, begin + place.steps * Reach::gives, down.outputs);
}

// The sums of the rows of outputs that the inputs so far have reached, the oldest row first. They begin at the bias.
template <int pending, int columns, int V>
struct UnfinishedRows {
  float initial[V], rows[pending][columns][V];

  template <class T>
  __device__ __forceinline__ explicit UnfinishedRows(const T* bias) {
#pragma unroll
    for (int v = 0; v < V; ++v) initial[v] = bias ? static_cast<float>(bias[v]) : 0.0f;
    drop<pending>();
  }

  // Lets the oldest `count` rows go; as many new ones begin.
  template <int count>
  __device__ __forceinline__ void drop() {
#pragma unroll
    for (int row = 0; row < pending; ++row) {
#pragma unroll
      for (int c = 0; c < columns; ++c) {
#pragma unroll
        for (int v = 0; v < V; ++v) rows[row][c][v] = row + count < pending ? rows[row + count][c][v] : initial[v];
      }
    }
  }
};

// `filters` lie as Filter reads them; bias may be null. V: channels of a thread.
template <class T, class Reach, bool separable, bool channels_last, int V>
__global__ void __launch_bounds__(kDepthwiseThreads)
    depthwise_kernel(DepthwiseGrid g, const T* __restrict__ x, const float* __restrict__ filters,
                     const T* __restrict__ bias, T* __restrict__ y) {
  constexpr int columns = depthwise_columns(Reach::kernel, separable, V), inputs = Reach::inputs(columns);
  constexpr int pending = Reach::steps * Reach::gives;                // rows of outputs that an input may reach
  constexpr int ahead = sizeof(T) == 2 && Reach::takes == 1 ? 2 : 1;  // steps whose inputs are on their way
  static_assert(columns % Reach::gives == 0, "a tile has whole steps");

  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= g.threads) return;
  const DepthwisePlace place = place_of(g, thread, V);
  if (place.channel >= g.channels) return;

  const auto plane = [&](auto* tensor, int64_t pixels) {
    return tensor + (channels_last ? place.image * pixels * g.channels + place.channel
                                   : (place.image * g.channels + place.channel) * pixels);
  };
  Strip<const T, V, inputs, channels_last> source(
      plane(x, int64_t(g.down.inputs) * g.across.inputs), g.across.inputs, g.channels, input_rows<Reach>(g.down, place),
      g.across.first_input + place.tile * (columns / Reach::gives * Reach::takes));
  Strip<T, V, columns, channels_last> target(plane(y, int64_t(g.down.outputs) * g.across.outputs), g.across.outputs,
                                             g.channels, output_rows<Reach>(g.down, place),
                                             g.across.first_output + place.tile * columns);

  Packed<T, V> loaded[ahead][Reach::takes][inputs];
#pragma unroll
  for (int i = 0; i < ahead * Reach::takes; ++i) source.load_row(loaded[i / Reach::takes][i % Reach::takes]);
  const Filter<Reach, V, separable> filter(g, filters + place.channel);
  UnfinishedRows<pending, columns, V> sums(bias ? bias + place.channel : nullptr);

  while (target.goes_on()) {
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
#pragma unroll
      for (int i = 0; i < Reach::takes; ++i) {
        float row[inputs][V];
#pragma unroll
        for (int c = 0; c < inputs; ++c) loaded[a][i][c].unpack(row[c]);
        source.load_row(loaded[a][i]);
        filter.add(row, Reach::span - Reach::takes + i, sums.rows);
      }
#pragma unroll
      for (int row = 0; row < Reach::gives; ++row) target.store_row(sums.rows[row]);
      sums.template drop<Reach::gives>();
    }
  }
}

// The kernel of a variant, for the launcher and the tests.
template <class T>
using DepthwiseKernel = void (*)(DepthwiseGrid, const T*, const float*, const T*, T*);

namespace detail {

template <class T, class Reach, bool separable>
DepthwiseKernel<T> kernel_of_layout(const DepthwiseVariant& v) {
  return v.channels_last ? depthwise_kernel<T, Reach, separable, true, 2>
                         : depthwise_kernel<T, Reach, separable, false, 1>;
}

template <class T, class Reach>
DepthwiseKernel<T> kernel_of_filter(const DepthwiseVariant& v) {
  if constexpr (Reach::kernel >= kDepthwiseSeparableFrom) {
    if (v.separable) return kernel_of_layout<T, Reach, true>(v);
  }
  return kernel_of_layout<T, Reach, false>(v);
}

template <class T, int K>
DepthwiseKernel<T> kernel_of_stride(const DepthwiseVariant& v) {
  if (v.stride == 1) return kernel_of_filter<T, Reach<K, 1, false>>(v);
  return v.stride2_grad ? kernel_of_filter<T, Reach<K, 2, true>>(v) : kernel_of_filter<T, Reach<K, 2, false>>(v);
}

}  // namespace detail

template <class T>
DepthwiseKernel<T> depthwise_kernel_of(const DepthwiseVariant& v) {
  switch (v.kernel) {
    case 3:
      return detail::kernel_of_stride<T, 3>(v);
    case 5:
      return detail::kernel_of_stride<T, 5>(v);
    default:
      return detail::kernel_of_stride<T, 7>(v);
  }
}

}  // namespace device
}  // namespace explainfix
