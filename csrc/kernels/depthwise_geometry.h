// Which inputs the outputs of a depthwise convolution read, and which thread computes which of them. Plain C++: the
// launch, the kernel and the tests on the host share it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "conv_shape.h"
#include "device.cuh"

namespace explainfix {

// One axis of a convolution or of its transpose, which runs the same for rows and columns. The outputs come in steps of
// `gives`; a step reads the `span` inputs from some place on, and the next step begins `takes` inputs further.
template <int kernel_, int stride, bool transposed>
struct Reach {
  static constexpr int kernel = kernel_;
  static constexpr int gives = transposed ? stride : 1;
  static constexpr int takes = transposed ? 1 : stride;
  static constexpr int steps = (kernel + stride - 1) / stride;  // that read the same input
  static constexpr int span = transposed ? steps : kernel;
  __host__ __device__ static constexpr int inputs(int outputs) { return (outputs / gives - 1) * takes + span; }

  // The tap that an input meets in an output, both counted from where a step begins; outside [0, kernel): none.
  __host__ __device__ static constexpr int tap(int output, int input) {
    return transposed ? output + stride * (steps - 1 - input) : input - stride * output;
  }
  __host__ __device__ static constexpr bool meet(int output, int input) {
    return tap(output, input) >= 0 && tap(output, input) < kernel;
  }
};

// What is compiled for. `vector`: channels of a thread. Separable: each filter is a column times a row.
struct DepthwiseVariant {
  int kernel, stride;
  bool transposed, separable, rows;
  int vector;
};

// Neighbouring columns of a thread: 4, while registers hold the filters of its channels.
__host__ __device__ constexpr int depthwise_columns(int kernel, bool separable, int vector) {
  return kernel == 7 && !separable && vector == 2 ? 2 : 4;
}

constexpr unsigned kDepthwiseThreads = 128;     // of a block
constexpr int64_t kDepthwiseEnough = 132 * 1024;  // threads; a card with work for so many is full

// A thread computes some columns (a tile) of some steps of rows (a segment) of `vector` channels. Threads run along
// `lanes` such vectors of channels (a chunk), then tiles: what neighbouring tiles both read, a block reads at one time.
struct DepthwiseGrid {
  int64_t threads;
  int channels, height, width, out_height, out_width;
  int first_input[2], first_output[2];  // of the first step; either may lie outside
  int row_steps, segment_steps;
  int lanes, tiles, segments, chunks;
  bool flipped;  // the filters
};

namespace detail {

// Vectors of channels side by side in memory: whole 32-byte sectors, as few idle lanes as can be, and a warp or more of
// them for whole lines. Of planes, one: neighbouring threads take neighbouring tiles.
inline int chunk_lanes(int vectors, bool rows) {
  if (!rows) return 1;
  const auto idle = [&](int lanes) { return (lanes - vectors % lanes) % lanes; };
  int best = 8;
  for (int lanes = 16; lanes <= 64; lanes += 8) {
    if (idle(lanes) <= idle(best)) best = lanes;
  }
  return best;
}

// Steps of rows of a thread: as many as leave enough threads, for the first `warm_up` steps only read. But at least
// twice as many as those.
inline int segment_steps(int64_t threads, int row_steps, int warm_up) {
  const int64_t segments = std::max<int64_t>(1, kDepthwiseEnough / std::max<int64_t>(1, threads));
  const int64_t steps = (row_steps + segments - 1) / segments;
  return int(std::min<int64_t>(row_steps, std::max<int64_t>(steps, 2 * warm_up)));
}

}  // namespace detail

// nullopt: a plane or a channel count whose offsets 32 bits do not hold, or too many threads.
inline std::optional<DepthwiseGrid> depthwise_grid(const ConvShape& s, const DepthwiseVariant& v, bool flipped) {
  constexpr int64_t kMaxSize = 1 << 26;  // times the columns that a thread reads: below 2^31
  if (std::max({s.in_channels, s.height, s.width, s.out_height, s.out_width}) > kMaxSize) return std::nullopt;
  DepthwiseGrid g{};
  g.channels = int(s.in_channels);
  g.height = int(s.height);
  g.width = int(s.width);
  g.out_height = int(s.out_height);
  g.out_width = int(s.out_width);
  g.flipped = flipped;
  const int gives = v.transposed ? v.stride : 1;
  const int warm_up = (v.kernel + v.stride - 1) / v.stride - 1;
  for (int axis = 0; axis < 2; ++axis) {
    const int padding = s.padding[axis];
    g.first_input[axis] = v.transposed ? padding / v.stride - warm_up : -padding;
    g.first_output[axis] = v.transposed ? -(padding % v.stride) : 0;
  }
  const int columns = depthwise_columns(v.kernel, v.separable, v.vector);
  g.row_steps = (g.out_height - g.first_output[0] + gives - 1) / gives;
  g.tiles = (g.out_width - g.first_output[1] + columns - 1) / columns;
  const int vectors = g.channels / v.vector;
  g.lanes = detail::chunk_lanes(vectors, v.rows);
  g.chunks = (vectors + g.lanes - 1) / g.lanes;
  const int64_t band = int64_t(g.chunks) * g.lanes * g.tiles;  // threads of a segment of an image
  if (band > (1 << 30) || s.images > (1 << 30)) return std::nullopt;
  g.segment_steps = detail::segment_steps(band * s.images, g.row_steps, warm_up);
  g.segments = (g.row_steps + g.segment_steps - 1) / g.segment_steps;
  if (band * g.segments > (int64_t(1) << 31) / std::max<int64_t>(1, s.images)) return std::nullopt;
  g.threads = band * g.segments * s.images;
  return g;
}

}  // namespace explainfix
