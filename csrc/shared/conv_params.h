// Sizes of a convolution and of a bank as plain data, without tensors: for the dense plan of both devices and for the
// CUDA kernels (the CPU's tile kernels have TiledConv). The ops (cpu/ops, cuda/launch) fill these structs in, from
// arguments that host/conv_checks.h has checked; kernels trust them.
#pragma once

#include <cstdint>
#include <vector>

namespace explainfix {

// The plans, that is the kernel families, by the numbers that Python's plan module gives them.
enum Plan : int64_t { kDense = 0, kIndex = 1, kLowRank = 2, kDepthwise = 3, kHadamard = 5 };
// Added to a plan's number where Python chose it ("auto"): the CPU's ops then take the dense plan for calls whose size
// or memory layout makes torch faster; on CUDA, Python has chosen by measurement (ops/plans/tune.py).
constexpr int64_t kAuto = 16;

// The arguments that the dense plan passes on to torch's convolution.
struct ConvParams {
  std::vector<int64_t> stride, padding, dilation;  // of height and width
  int64_t groups;
};

// The sizes of a convolution that a CUDA kernel computes, in elements. That is a forward pass, or an input gradient
// with stride 1: a forward pass over the output's gradient with the flipped filters and the channels exchanged. So `in`
// is what is read and `out` what is written. Both are contiguous, in NCHW or (channels_last) NHWC.
struct ConvShape {
  int64_t images, groups, in_channels, out_channels;  // channels of all groups together
  int64_t height, width, out_height, out_width;
  int kernel[2], stride[2], padding[2];
  bool channels_last;
};

// A bank's sizes, and where its composed weight W (O, I/groups, kh, kw) is written. Pixel k of filter (o, i) lies at
// o * per_group * k2 + i * i_stride + k * k_stride. (i_stride, k_stride) is (k2, 1) for a contiguous weight and
// (1, per_group) for channels_last.
struct WeightLayout {
  int64_t filters;    // O * I/groups
  int64_t per_group;  // I/groups
  int64_t k2;         // kh * kw
  int64_t rank;       // L, the number of basis functions
  int64_t i_stride, k_stride;
};

}  // namespace explainfix
