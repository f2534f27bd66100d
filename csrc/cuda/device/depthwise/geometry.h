// Which inputs the outputs of a depthwise convolution read, and which thread computes which of them. Plain C++, shared
// by the launcher (cuda/launch/depthwise.cu), the kernel (depthwise.cuh) and the emulation's tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cuda/device/common/device.cuh"
#include "shared/conv_params.h"
#include "shared/packed_layout.h"

namespace explainfix {

// How inputs and outputs meet along one axis, of rows or of columns, in a convolution or in its input gradient with
// stride
// 2. Outputs come in steps of `gives`. A step reads `span` inputs from some place on; the next step begins `takes`
// inputs further.
template <int kernel_, int stride, bool stride2_grad>
struct Reach {
  static constexpr int kernel = kernel_;
  static constexpr int gives = stride2_grad ? stride : 1;
  static constexpr int takes = stride2_grad ? 1 : stride;
  static constexpr int steps = (kernel + stride - 1) / stride;  // how many of them read the same input
  static constexpr int span = stride2_grad ? steps : kernel;
  __host__ __device__ static constexpr int inputs(int outputs) { return (outputs / gives - 1) * takes + span; }

  // The tap of the filter by which an input adds to an output, if they meet. Both are counted from where a step begins.
  __host__ __device__ static constexpr int tap(int output, int input) {
    return stride2_grad ? output + stride * (steps - 1 - input) : input - stride * output;
  }
  __host__ __device__ static constexpr bool meet(int output, int input) {
    return tap(output, input) >= 0 && tap(output, input) < kernel;
  }
};

// What a kernel is compiled for. stride2_grad: the input gradient with stride 2; with stride 1 that is a convolution
// with the flipped filters. separable: each filter is a column times a row (from K = kDepthwiseSeparableFrom on).
// A thread computes one channel, or with channels_last two.
struct DepthwiseVariant {
  int kernel, stride;
  bool stride2_grad, separable, channels_last;

  __host__ __device__ constexpr int vector() const { return channels_last ? 2 : 1; }
};

// The neighbouring columns that a thread computes: 4, where registers hold its filters beside the sums.
__host__ __device__ constexpr int depthwise_columns(int kernel, bool separable, int vector) {
  return kernel == 7 && !separable && vector == 2 ? 2 : 4;
}

constexpr unsigned kDepthwiseThreads = 128;  // of a block
// Threads that the whole grid should have if there is work for as many: each of the H100's 132 multiprocessors runs 400
// to 900 at a time.
constexpr int64_t kDepthwiseEnough = 132 * 768;

struct DepthwiseAxis {
  int inputs, outputs;
  int first_input, first_output;  // of the first step; they may lie outside of the plane
  int steps;                      // rows: steps of Reach; columns: tiles
};

// A thread computes a tile (some columns) of a segment (some steps of rows) for one vector of channels. Threads are
// numbered along `lanes` vectors first, then along tiles: columns that two tiles read are then read at about one time,
// and come from cache.
struct DepthwiseGrid {
  int64_t threads;
  DepthwiseAxis down, across;
  int channels, lanes, chunks;  // chunks of `lanes` vectors, the last one shorter
  int segments, segment_steps;  // steps of a segment
  int64_t first_tap,
      tap_step;  // where the taps of a filter, or of its column and its row, lie: from the end if flipped
};

// Is there a kernel for this convolution, or input gradient? With channels_last a thread loads two channels at once, so
// that addresses must be aligned to them, too.
inline bool depthwise_fits(const ConvShape& s) {
  const int k = s.kernel[0];
  if (s.channels_last && s.in_channels % 2) return false;
  bool fits = s.groups == s.in_channels && s.groups == s.out_channels && (k == 3 || k == 5 || k == 7);
  for (int axis = 0; axis < 2; ++axis) {
    fits &= s.kernel[axis] == k && s.stride[axis] == s.stride[0] && s.padding[axis] >= 0 && s.padding[axis] < k;
  }
  return fits && (s.stride[0] == 1 || s.stride[0] == 2);
}

inline DepthwiseVariant depthwise_variant(const ConvShape& s, bool input_grad, bool separable) {
  return {s.kernel[0], s.stride[0], input_grad && s.stride[0] == 2, separable, s.channels_last};
}

namespace detail {

// How many steps before the first one of a segment its inputs must be read from.
inline int overlap(const DepthwiseVariant& v) { return (v.kernel + v.stride - 1) / v.stride - 1; }

inline DepthwiseAxis depthwise_axis(const DepthwiseVariant& v, int64_t inputs, int64_t outputs, int padding,
                                    int step_outputs) {
  DepthwiseAxis axis{int(inputs), int(outputs), -padding, 0, 0};
  if (v.stride2_grad) {
    axis.first_input = padding / v.stride - overlap(v);
    axis.first_output = -(padding % v.stride);
  }
  axis.steps = (axis.outputs - axis.first_output + step_outputs - 1) / step_outputs;
  return axis;
}

// Vectors of channels along which threads are numbered: with channels_last a warp or two, in whole 32-byte sectors,
// with the fewest threads idle. With planes 1: neighbouring threads take neighbouring tiles.
inline int chunk_lanes(int vectors, bool channels_last) {
  if (!channels_last) return 1;
  const auto idle = [&](int lanes) { return (lanes - vectors % lanes) % lanes; };
  int best = 8;
  for (int lanes = 16; lanes <= 64; lanes += 8) {
    if (idle(lanes) <= idle(best)) best = lanes;
  }
  return best;
}

// Steps of a segment: as many as leave enough threads, but at least twice as many as the steps before them whose inputs
// are read once more. `threads`: of one segment of all images.
inline int segment_steps(int64_t threads, int steps, int overlap) {
  const int64_t segments = std::max<int64_t>(1, kDepthwiseEnough / threads);
  return int(std::min<int64_t>(steps, std::max<int64_t>((steps + segments - 1) / segments, 2 * overlap)));
}

}  // namespace detail

// The launch; nullopt where 32 bits do not hold the number of a thread or an offset within a few pixels. Without work,
// it has no threads.
inline std::optional<DepthwiseGrid> depthwise_grid(const ConvShape& s, const DepthwiseVariant& v, bool flipped) {
  constexpr int64_t kMaxSize = 1 << 26;  // channels times 4 bytes times the 13 columns that a thread reads at most
  constexpr int64_t kMaxThreads = int64_t(1) << 31;
  if (std::max({s.in_channels, s.height, s.width, s.out_height, s.out_width}) > kMaxSize) return std::nullopt;
  DepthwiseGrid g{};
  if (std::min({s.images, s.in_channels, s.out_height, s.out_width}) == 0) return g;
  const int columns = depthwise_columns(v.kernel, v.separable, v.vector()), vectors = int(s.in_channels) / v.vector();
  g.down = detail::depthwise_axis(v, s.height, s.out_height, s.padding[0], v.stride2_grad ? v.stride : 1);
  g.across = detail::depthwise_axis(v, s.width, s.out_width, s.padding[1], columns);
  g.channels = int(s.in_channels);
  g.lanes = detail::chunk_lanes(vectors, v.channels_last);
  g.chunks = (vectors + g.lanes - 1) / g.lanes;

  const int64_t row_threads = int64_t(g.chunks) * g.lanes * g.across.steps;
  if (row_threads > kMaxThreads / s.images) return std::nullopt;
  g.segment_steps = detail::segment_steps(row_threads * s.images, g.down.steps, detail::overlap(v));
  g.segments = (g.down.steps + g.segment_steps - 1) / g.segment_steps;
  if (row_threads * s.images > kMaxThreads / g.segments) return std::nullopt;
  g.threads = row_threads * s.images * g.segments;

  const int64_t taps = v.separable ? v.kernel : v.kernel * v.kernel;
  g.first_tap = flipped ? (taps - 1) * g.channels : 0;
  g.tap_step = flipped ? -g.channels : g.channels;
  return g;
}

}  // namespace explainfix
