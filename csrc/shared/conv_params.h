// What the kernels know of a convolution, as plain data. Python has checked it; kernels trust it.
#pragma once

#include <cstdint>
#include <vector>

namespace explainfix {

struct ConvParams {
  std::vector<int64_t> stride, padding, dilation;  // of height and width
  int64_t groups;
};

// A bank and where its weight W (O, I/groups, kh, kw) goes. Filter (o, i), pixel k lies at
// o * per_group * k2 + i * i_stride + k * k_stride: contiguous (k2, 1) or channels_last (1, per_group).
struct WeightLayout {
  int64_t filters, per_group, k2, rank;
  int64_t i_stride, k_stride;
};

// Plans, as plan.py numbers them.
enum Plan : int64_t { kDense = 0, kIndex = 1, kLowRank = 2, kDepthwise = 3, kLowRankTf32 = 4 };

}  // namespace explainfix
