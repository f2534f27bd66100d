// How threads walk over the pixels of a hadamard convolution. Plain C++, shared by the launcher
// (cuda/launch/hadamard_conv2d.cu), the kernel (hadamard.cuh) and the emulation's tests.
//
// A line is a column of the image (forward) or a row (input gradient). The threads of a line walk along it: at each
// pixel they filter across the line, transform the channels, and add the result to the outputs along the line that it
// reaches. So an input gradient is the same walk: the vertical filter comes first there, and the horizontal one last.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cuda/device/common/device.cuh"

namespace explainfix {

constexpr int kHadamardKernel = 3;          // rows and columns of a filter
constexpr int kHadamardChannels = 8;        // of a thread: 16 bytes of 16-bit numbers
constexpr unsigned kHadamardThreads = 128;  // of a block, or those of a line if these are more than a warp
constexpr int kHadamardMostOrder = 1024;    // 128 threads
// Blocks that a multiprocessor runs at a time: registers allow no more, of which float32 needs those for 8 more words.
constexpr unsigned hadamard_blocks(size_t element_bytes) { return element_bytes == 4 ? 2 : 3; }

// The convolution, of channels that come first (`in`) and last (`out`). For an input gradient `in` is the gradient of
// y, and `stride` and `padding` are still those of the forward pass. Axes: 0 is the height, 1 the width.
struct HadamardShape {
  int64_t images, groups;
  int64_t in_channels, out_channels;  // of a group
  int64_t in_size[2], out_size[2];
  int64_t kernel, stride[2], padding[2];
  int64_t order, stages, chunks;  // chunks: J, how many sets of rows there are
  bool input_grad;
};

// Filters among the packed ones: float32 rows (J, groups, kw, I/groups), then columns (kh, O), times the scale, from
// the last tap on. A warp reads a tap of its channels from neighbouring memory.
struct HadamardTaps {
  int first, group, tap;  // numbers from the beginning to the first, from group to group, and from tap to tap
};

struct HadamardWalk {
  int64_t images, in_image, out_image;             // elements from image to image
  int across_outputs, pairs;                       // lines of an image, and pairs of them
  int in_across, in_along, out_across, out_along;  // elements from pixel to pixel
  int across_inputs, along_inputs, along_outputs;
  // Line a reads by tap k the pixel (across_step a - across_shift + k) / across_divisor across, if that is whole.
  int across_step, across_shift, across_divisor;
  // A pixel b along the line adds to outputs from emit b - along_shift on, of which every along_stride-th is wanted.
  int along_shift, along_stride;
  int strip;                      // outputs along the line that a thread computes
  int order, stages, threads;     // threads of a line: order / 8
  int slabs, pieces;              // sets of `order` inputs that are added, and of outputs, each by threads of its own
  int in_channels, out_channels;  // of a group
  HadamardTaps before, after;     // the transform
  int before_piece;               // numbers from one piece's filters to the next's
};

inline bool hadamard_fits(const HadamardShape& s) {
  const auto power_of_two = [](int64_t n) { return n > 0 && (n & (n - 1)) == 0; };
  bool fits = s.kernel == kHadamardKernel && power_of_two(s.order) && s.order >= kHadamardChannels &&
              s.order <= kHadamardMostOrder;
  // A thread reads 8 channels and writes twice 4. In a gradient each set of rows would need a transform of its own.
  fits &= s.in_channels % kHadamardChannels == 0 && s.out_channels % kHadamardChannels == 0;
  fits &= s.chunks == 1 || !s.input_grad;
  for (int a = 0; a < 2; ++a) {
    fits &= s.stride[a] <= 2 && s.padding[a] < 1 << 16 && s.in_size[a] < 1 << 24 && s.out_size[a] < 1 << 24;
  }
  const auto elements = [&](int64_t channels, const int64_t (&size)[2]) {
    return s.groups * channels * size[0] * size[1];
  };
  return fits && elements(s.in_channels, s.in_size) < INT32_MAX && elements(s.out_channels, s.out_size) < INT32_MAX &&
         s.images * s.out_size[0] * s.out_size[1] < INT32_MAX &&
         s.groups * ((s.out_channels + s.order - 1) / s.order) < 1 << 16;
}

// `strip` is still to be chosen.
inline HadamardWalk hadamard_walk(const HadamardShape& s) {
  const int across = s.input_grad ? 0 : 1, along = 1 - across;
  const int64_t in = s.groups * s.in_channels, out = s.groups * s.out_channels, reach = s.kernel - 1;
  const auto pieces = [](int64_t size, int64_t piece) { return (size + piece - 1) / piece; };
  HadamardWalk w{};
  w.in_image = in * s.in_size[0] * s.in_size[1];
  w.out_image = out * s.out_size[0] * s.out_size[1];
  w.in_across = int(across == 1 ? in : in * s.in_size[1]);
  w.in_along = int(across == 1 ? in * s.in_size[1] : in);
  w.out_across = int(across == 1 ? out : out * s.out_size[1]);
  w.out_along = int(across == 1 ? out * s.out_size[1] : out);
  w.across_inputs = int(s.in_size[across]);
  w.along_inputs = int(s.in_size[along]);
  w.across_outputs = int(s.out_size[across]);
  w.along_outputs = int(s.out_size[along]);
  w.images = s.images;
  w.pairs = (w.across_outputs + 1) / 2;
  w.across_step = s.input_grad ? 1 : int(s.stride[across]);
  w.across_divisor = s.input_grad ? int(s.stride[across]) : 1;
  w.across_shift = int(s.input_grad ? reach - s.padding[across] : s.padding[across]);
  w.along_stride = s.input_grad ? 1 : int(s.stride[along]);
  w.along_shift = int(s.input_grad ? s.padding[along] : reach - s.padding[along]);
  w.order = int(s.order);
  w.stages = int(s.stages);
  w.threads = int(s.order / kHadamardChannels);
  w.slabs = int(pieces(s.in_channels, s.order));
  w.pieces = int(pieces(s.out_channels, s.order));
  w.in_channels = int(s.in_channels);
  w.out_channels = int(s.out_channels);
  const int inputs = int(s.input_grad ? s.out_channels : s.in_channels);  // of the forward pass
  const int outputs = int(s.input_grad ? s.in_channels : s.out_channels);
  const int set = int(s.groups * s.kernel * inputs);  // the rows of all groups
  const HadamardTaps rows{0, int(s.kernel * inputs), inputs};
  const HadamardTaps columns{int(s.chunks * set), outputs, int(s.groups * outputs)};
  w.before = s.input_grad ? columns : rows;
  w.after = s.input_grad ? rows : columns;
  w.before_piece = s.input_grad ? 0 : set;
  return w;
}

// The walk and the launch of its kernel, of which there is one that completes two outputs at a pixel.
struct HadamardLaunch {
  HadamardWalk walk;
  unsigned grid[3], threads;
  size_t shared_bytes;
  bool emits_two, shares_pixels;  // template arguments
};

// Cuts lines into strips where that fills the card: `slots` blocks run at a time. A strip costs a step for each pixel
// along the line that its outputs read, and about two to begin: so much do loads of filters and first pixels take.
inline int hadamard_strip(const HadamardWalk& w, bool emits_two, int64_t blocks, int64_t slots) {
  int best = w.along_outputs;
  int64_t least = INT64_MAX;
  for (int strips = 1; strips <= std::min(w.along_outputs, 64); ++strips) {
    const int strip = (w.along_outputs + strips - 1) / strips;
    const int64_t steps = strip * w.along_stride / (emits_two ? 2 : 1) + kHadamardKernel - 1 + 2;
    const int64_t cost = (blocks * strips + slots - 1) / slots * steps;
    if (cost < least) {
      least = cost;
      best = strip;
    }
  }
  return best;
}

inline HadamardLaunch hadamard_launch(const HadamardShape& s, size_t element_bytes, int multiprocessors) {
  HadamardLaunch l{hadamard_walk(s)};
  HadamardWalk& w = l.walk;
  l.emits_two = s.input_grad && s.stride[1] == 2;
  l.shares_pixels = s.stride[s.input_grad ? 0 : 1] == 1;
  l.threads = w.threads > 32 ? unsigned(w.threads) : kHadamardThreads;
  const int64_t pairs = w.images * w.pairs, pairs_of_block = l.threads / w.threads;
  const int64_t blocks = (pairs + pairs_of_block - 1) / pairs_of_block, others = s.groups * w.pieces;
  const int64_t slots = multiprocessors * (hadamard_blocks(element_bytes) * kHadamardThreads / l.threads);
  w.strip = hadamard_strip(w, l.emits_two, blocks * others, slots);
  l.grid[0] = unsigned(blocks);
  l.grid[1] = unsigned((w.along_outputs + w.strip - 1) / w.strip);
  l.grid[2] = unsigned(others);
  // For each stage between warps, and for two turns, 8 floats of two pixels a thread.
  l.shared_bytes = w.threads > 32 ? 4 * kHadamardThreads * 16 * sizeof(float) : 0;
  return l;
}

}  // namespace explainfix
